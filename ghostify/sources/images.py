"""Labelled images read a batch at a time: framed, varied, normalised."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ghostify.batches import Batch
from ghostify.errors import DataError
from ghostify.inputs import Inputs, InputSpec
from ghostify.sources.augmenting import AS_IT_IS, Jitter, random_part
from ghostify.sources.damaged import read_each
from ghostify.sources.decoding import File, Pixels, read_image, unit
from ghostify.sources.preprocessing import LARGE, Preprocessing, Scale, Shape
from ghostify.sources.seeding import seeds_in

ROOM = 2**29  # bytes of decoded small images that are kept in memory at most


class Images(Dataset[tuple[Tensor, int]], ABC):
    """A dataset of (image (C, H, W), label) pairs, which can also be read a batch at a time."""

    shape: Shape
    """(C, H, W)"""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Sequence[int], draws: Tensor | None = None) -> tuple[Batch, Any]:
        """Images (n, C, H, W) and labels (n,), or what else a user's data are, varied as ``draws`` (n, DRAWS) says.

        Raises ``Damaged`` where some of them cannot be read.
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

    @property
    def left_out(self) -> tuple[str, ...]:
        """Why images are missing in the ``quick`` form."""
        return ()

    @property
    def worth_processes(self) -> bool:
        """Whether reading takes longer than bringing a batch from another process."""
        return True

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
    jitter: Jitter = AS_IT_IS
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def known_labels(self) -> Tensor:
        return self.labels

    @property
    def worth_processes(self) -> bool:
        return self.jitter.randaugment is not None

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

    files: tuple[File, ...] = field(repr=False)
    labels: Tensor
    shape: Shape
    preprocessing: Preprocessing
    jitter: Jitter = AS_IT_IS
    crops: bool = False

    def __len__(self) -> int:
        return len(self.files)

    @property
    def known_labels(self) -> Tensor:
        return self.labels

    def batch(self, indices: Sequence[int], draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seeds = seeds_in(draws) if draws is not None and self.crops else [None] * len(indices)
        frames = read_each(lambda place: self._frame(self.files[indices[place]], seeds[place]), len(indices))
        if any(frame.dtype != np.uint8 for frame in frames):
            frames = [unit(frame) for frame in frames]
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        if draws is not None:
            pixels = self.jitter(pixels, draws)
        return self.preprocessing.scale(_unit(pixels)), self.labels[torch.as_tensor(indices)]

    def take(self, indices: Sequence[int]) -> FileImages:
        files = tuple(self.files[index] for index in indices)
        return replace(self, files=files, labels=self.labels[torch.as_tensor(indices)])

    @cached_property
    def quick(self) -> Images:
        """The same images decoded once and for all, where they are small and fit in ``ROOM``; without the damaged."""
        if max(self.shape[1:]) > LARGE or len(self) * math.prod(self.shape) > ROOM:
            return self
        pixels = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        good, problems = [], []
        for index, file in enumerate(self.files):
            try:
                frame = self._frame(file)
            except DataError as problem:
                problems.append(str(problem))
                continue
            if frame.dtype != np.uint8:
                return self  # deep images take four times the room, and are rare
            pixels[index] = torch.from_numpy(frame).permute(2, 0, 1)
            good.append(index)
        decoded = ArrayImages(
            pixels=pixels,
            labels=self.labels,
            shape=self.shape,
            scale=self.preprocessing.scale,
            jitter=self.jitter,
            left_out=tuple(problems),
        )
        return decoded.take(good) if problems else decoded

    def _frame(self, file: File, seed: int | None = None) -> Pixels:
        """One image as (H, W, C), bytes or floats in [0, 1]: its middle, or the part that ``seed`` chooses."""
        channels, height, width = self.shape
        image = read_image(file, "L" if channels == 1 else "RGB")
        framed = self.preprocessing.framed(image) if seed is None else random_part(image, self.preprocessing, seed)
        pixels = np.array(framed).reshape(height, width, -1)
        return pixels if pixels.shape[2] == channels else np.repeat(pixels, channels, 2)  # deep images are grey


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
