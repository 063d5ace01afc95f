"""Labelled images read a batch at a time: framed, varied, normalised; and loaders that can be repeated exactly.

Everything random about a training epoch is drawn before it starts, from its seed and number alone: the order, and a row
of ``DRAWS`` uniform numbers per image that decide how it is shifted, cropped and mirrored.  So an epoch is the same
after a resume, and for any number of loader processes.
"""

from __future__ import annotations

import hashlib
import math
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ghostify.batches import Batch
from ghostify.errors import DataError
from ghostify.inputs import Inputs, InputSpec
from ghostify.sources.decoding import Pixels, read_image, unit

Shape = tuple[int, int, int]
Box = tuple[float, float, float, float]
DRAWS = 5  # vertical place, horizontal place, mirror, crop area, crop shape
LARGE = 64  # images up to this size are shifted, larger ones are cropped and resized
KEEP = 224 / 256  # share of a large image's shorter side that is looked at in evaluation
ROOM = 2**29  # bytes of decoded small images that are kept in memory at most


@dataclass(frozen=True)
class Jitter:
    """How a training image is varied: shifted by up to ``shift`` pixels over black, and mirrored when ``flip``."""

    shift: int = 0
    flip: bool = False

    def __call__(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """(n, C, H, W), (n, DRAWS) uniform in [0, 1) → (n, C, H, W)"""
        if self.shift:
            pixels = _shifted(pixels, self.shift, (draws[:, :2] * (2 * self.shift + 1)).long())
        if self.flip:
            pixels = torch.where((draws[:, 2] < 0.5)[:, None, None, None], pixels.flip(3), pixels)
        return pixels


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation per channel that pixels in [0, 1] are normalised with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


class Images(Dataset[tuple[Tensor, int]], ABC):
    """A dataset of (image (C, H, W), label) pairs, which can also be read a batch at a time."""

    shape: Shape
    """(C, H, W)"""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Sequence[int], draws: Tensor | None = None) -> tuple[Batch, Any]:
        """Images (n, C, H, W) and labels (n,), or what else a user's data are, varied as ``draws`` (n, DRAWS) says.

        Raises DataError.
        """

    @abstractmethod
    def take(self, indices: Sequence[int]) -> Images:
        """The same dataset with these images only."""

    @property
    def inputs(self) -> Inputs:
        """What a network is given of it."""
        return (InputSpec(self.shape),)

    @property
    def has_classes(self) -> bool:
        """Whether its labels are class numbers."""
        return True

    @property
    def structured(self) -> bool:
        """Whether a batch may be anything else than a tensor of images and one of labels."""
        return False

    @property
    def known_labels(self) -> Tensor | None:
        """The class of each image, (N,), where it is known without reading them all."""
        return None

    @property
    def quick(self) -> Images:
        """The same images, in the form that is quickest to read again and again."""
        return self

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        images, labels = self.batch([index])
        return images[0], int(labels[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayImages(Images):
    """Images held in memory, (N, c, h, w), bytes or floats in [0, 1]; brought to ``shape`` as they are read."""

    pixels: Tensor
    labels: Tensor
    shape: Shape
    scale: Scale
    jitter: Jitter = Jitter()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def known_labels(self) -> Tensor:
        return self.labels

    def batch(self, indices: Sequence[int], draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(indices)
        pixels = _resized(self.pixels[rows], self.shape[1:])
        if draws is not None:
            pixels = self.jitter(pixels, draws)
        return self.scale(_with_channels(_unit(pixels), self.shape[0])), self.labels[rows]

    def take(self, indices: Sequence[int]) -> ArrayImages:
        rows = torch.as_tensor(indices)
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class FileImages(Images):
    """Images in files, decoded as they are read; ``crops`` cuts a random part out of each for training."""

    files: tuple[str, ...]
    labels: Tensor
    shape: Shape
    scale: Scale
    jitter: Jitter = Jitter()
    crops: bool = False

    def __len__(self) -> int:
        return len(self.files)

    @property
    def known_labels(self) -> Tensor:
        return self.labels

    def batch(self, indices: Sequence[int], draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows: list[list[float] | None] = [None] * len(indices)
        if draws is not None and self.crops:
            rows = draws.tolist()
        frames = [self._frame(self.files[index], row) for index, row in zip(indices, rows, strict=True)]
        if any(frame.dtype != np.uint8 for frame in frames):
            frames = [unit(frame) for frame in frames]
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        if draws is not None:
            pixels = self.jitter(pixels, draws)
        return self.scale(_unit(pixels)), self.labels[torch.as_tensor(indices)]

    def take(self, indices: Sequence[int]) -> FileImages:
        files = tuple(self.files[index] for index in indices)
        return replace(self, files=files, labels=self.labels[torch.as_tensor(indices)])

    @cached_property
    def quick(self) -> Images:
        """The same images decoded once and for all, where they are small and fit in ``ROOM``."""
        if max(self.shape[1:]) > LARGE or len(self) * math.prod(self.shape) > ROOM:
            return self
        pixels = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        for index, file in enumerate(self.files):
            frame = self._frame(file)
            if frame.dtype != np.uint8:
                return self  # deep images take four times the room, and are rare
            pixels[index] = torch.from_numpy(frame).permute(2, 0, 1)
        return ArrayImages(pixels=pixels, labels=self.labels, shape=self.shape, scale=self.scale, jitter=self.jitter)

    def _frame(self, file: str, row: list[float] | None = None) -> Pixels:
        """One image as (H, W, C), bytes or floats in [0, 1]: its middle, or the part that ``row`` of draws chooses."""
        channels, height, width = self.shape
        image = read_image(file, "L" if channels == 1 else "RGB")
        if row is not None:
            image = image.resize((width, height), Image.Resampling.BILINEAR, _random_box(image.size, row))
        elif image.size != (width, height):
            keep = KEEP if max(height, width) > LARGE else 1.0
            box = _centre_box(image.size, (width, height), keep)
            image = image.resize((width, height), Image.Resampling.BILINEAR, box)
        pixels = np.array(image).reshape(height, width, -1)
        return pixels if pixels.shape[2] == channels else np.repeat(pixels, channels, 2)  # deep images are grey


def data_error(problem: BaseException) -> DataError:
    """The one line of a DataError, also when a loader process wrapped it into its traceback."""
    marker = f"{DataError.__name__}: "
    text = str(problem)
    return DataError(text.rpartition(marker)[2].strip().partition("\n")[0])


class Loader(DataLoader[tuple[Tensor, Tensor]]):
    """Batches of (images (n, C, H, W), labels (n,)) in a given order; what goes wrong is a DataError of one line."""

    def __init__(
        self, images: Images, batches: list[list[int]], workers: int, seed: int = 0, draws: Tensor | None = None
    ) -> None:
        super().__init__(
            _Batches(images, draws),
            batch_size=None,
            sampler=batches,
            collate_fn=_as_it_is,  # torch's own would make lists of tuples, and pinning does
            num_workers=0 if isinstance(images, ArrayImages) else workers,  # memory is quicker than a pipe
            pin_memory=torch.cuda.is_available() and not images.structured,
            generator=Generator().manual_seed(seed),  # so that loading takes nothing from the global generator
        )

    def check_worker_number_rationality(self) -> None:
        """No advice of torch's: how many loader processes there are is the user's to say, and waiting takes no core."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as problem:
            # Its frames hold the loader processes in a cycle; ended by the garbage collector, each takes 5 s to go.
            traceback.clear_frames(problem.__traceback__)
            raise data_error(problem) from None
        except RuntimeError as problem:
            if "DataLoader worker" not in str(problem):
                raise
            raise DataError(
                "A loader process died, often for lack of (shared) memory; use fewer workers, or 0."
            ) from None


def _as_it_is(batch: Any) -> Any:
    return batch


def epoch_seed(seed: int, epoch: int) -> int:
    """One 32-bit seed for an epoch of a run, unlike that of its neighbours."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=4).digest())


def shuffled(count: int, seed: int) -> list[int]:
    """0 .. count - 1 in an order that ``seed`` alone decides."""
    return torch.randperm(count, generator=Generator().manual_seed(seed)).tolist()


def in_batches(order: Sequence[int], size: int) -> list[list[int]]:
    """``order`` cut into lists of ``size``, the last one shorter where it must be."""
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


class _Batches(Dataset[Any]):
    """Whole batches by their list of indices, which is what lets them be varied and normalised at once."""

    def __init__(self, images: Images, draws: Tensor | None) -> None:
        self.images, self.draws = images, draws

    def __getitem__(self, indices: list[int]) -> tuple[Batch, Any] | None:
        if not indices:
            return None  # a batch of fewer images than there are processes
        return self.images.batch(indices, None if self.draws is None else self.draws[torch.as_tensor(indices)])


def _shifted(pixels: Tensor, most: int, offsets: Tensor) -> Tensor:
    """Every image moved on its own: window ``offsets`` (n, 2), each 0 .. 2 * most, of the image padded with black."""
    n, channels, height, width = pixels.shape
    rows = (offsets[:, :1] + torch.arange(height)) * (width + 2 * most)
    places = rows[:, :, None] + (offsets[:, 1:] + torch.arange(width))[:, None, :]
    padded = F.pad(pixels, (most,) * 4).flatten(2)
    return padded.gather(2, places.view(n, 1, -1).expand(-1, channels, -1)).view(n, channels, height, width)


def _unit(pixels: Tensor) -> Tensor:
    if pixels.dtype != torch.uint8:
        return pixels
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    if pixels.shape[2:] == size:
        return pixels
    return F.interpolate(_unit(pixels), size, mode="bilinear", align_corners=False, antialias=True)


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    return (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)  # ITU-R 601, as Pillow


def _centre_box(size: tuple[int, int], wanted: tuple[int, int], keep: float) -> Box:
    """The largest middle part of an image (width, height) with the wanted proportions, times ``keep``."""
    (width, height), (wide, high) = size, wanted
    scale = keep * min(width / wide, height / high)
    left, upper = (width - wide * scale) / 2, (height - high * scale) / 2
    return left, upper, width - left, height - upper


def _random_box(size: tuple[int, int], row: list[float]) -> Box:
    """torchvision's RandomResizedCrop: 8 to 100 % of the area at 3:4 to 4:3.

    What does not fit is clamped rather than drawn again, so that an image takes a fixed number of draws.
    """
    (width, height), (down, right, _, share, shape) = size, row
    area = width * height * (0.08 + 0.92 * share)
    ratio = math.exp(math.log(3 / 4) + math.log(16 / 9) * shape)
    wide, high = min(math.sqrt(area * ratio), width), min(math.sqrt(area / ratio), height)
    left, upper = (width - wide) * right, (height - high) * down
    return left, upper, min(left + wide, width), min(upper + high, height)
