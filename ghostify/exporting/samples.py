"""What a network and its file are both given: tensors in a row, some samples of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

LEAST = 32
"""So many samples are compared."""
_HALVED = 32
"""By how much most networks divide height and width, five times by two."""


@dataclass(frozen=True)
class Samples:
    """``tensors``: for each input, (N, …); one of another first size is the same for all samples.

    ``source`` says what they are, as in ``test images of digits``; ``real`` whether they are of anybody's data.
    ``labels``, (N,), are the classes of classifiers.
    """

    tensors: tuple[Tensor, ...]
    source: str
    real: bool
    labels: Tensor | None = None
    size: str = ""
    """That of the images, as in ``96x96``, where it is another one than that of the example."""

    def __len__(self) -> int:
        return samples_in(self.tensors)

    def first(self, count: int) -> Samples:
        """The first samples, ``count`` of them or all there are."""
        labels = self.labels if self.labels is None else self.labels[:count]
        return replace(self, tensors=self._rows(torch.arange(min(count, len(self)))), labels=labels)

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], slice]]:
        """All samples in batches of ``size``, with the places of those that each holds for the first time.

        A file may take no smaller batch, so the last one is filled up with the first samples.
        """
        total = len(self) or 1  # inputs without a dimension are one sample
        for start in range(0, total, size):
            rows = torch.arange(start, start + size) % total
            yield self._rows(rows), slice(start, min(start + size, total))

    def _rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        total = len(self)
        return tuple(tensor[rows] if _is_per_sample(tensor, total) else tensor for tensor in self.tensors)


def larger(samples: Samples) -> Samples:
    """The same images about half as large again, for files whose height and width are open."""
    tensors = tuple(_enlarged(tensor) if _is_image(tensor) else tensor for tensor in samples.tensors)
    sizes = [tensor.shape[2:] for tensor in tensors if _is_image(tensor)]
    return replace(samples, tensors=tensors, size="x".join(map(str, sizes[0])) if sizes else "")


def samples_in(tensors: Sequence[Tensor]) -> int:
    """How many samples a row of tensors holds: as many as the first that has a dimension; 0 where none has."""
    return next((len(tensor) for tensor in tensors if tensor.dim()), 0)


def noise(example: Sequence[Tensor], count: int = LEAST, seed: int = 0) -> Samples:
    """Samples like those of an example where there is no data: floats of its mean and spread, and whole numbers drawn
    from its own, for they may be places in a table.
    """
    generator = Generator().manual_seed(seed)
    held = samples_in(example)
    made = tuple(_like(tensor, count, generator) if _is_per_sample(tensor, held) else tensor for tensor in example)
    return Samples(made, "noise", real=False)


def _like(tensor: Tensor, count: int, generator: Generator) -> Tensor:
    shape = (count, *tensor.shape[1:])
    if not tensor.is_floating_point():
        places = torch.randint(tensor.numel(), shape, generator=generator)
        return tensor.flatten()[places]
    drawn = torch.randn(shape, generator=generator)
    spread = float(tensor.float().std(correction=0)) or 1.0  # an example of zeros, say
    return (drawn * spread + float(tensor.float().mean())).to(tensor.dtype)


def _is_image(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_floating_point()


def _enlarged(images: Tensor) -> Tensor:
    height, width = (_larger(side) for side in images.shape[2:])
    return interpolate(images, (height, width), mode="bilinear", align_corners=False)


def _larger(side: int) -> int:
    """A multiple of what the side is a multiple of, because maps are halved on their way: 224 → 352, 32 → 64."""
    step = math.gcd(side, _HALVED)
    return math.ceil(1.5 * side / step) * step


def _is_per_sample(tensor: Tensor, total: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == total
