"""The images that scales are read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghostify.batches import Batch
from ghostify.errors import ExportError
from ghostify.tracing import tensors_of_call

LEAST = 32
"""Fewer samples say too little of how large maps become."""
MOST = 512
"""So many are used of a run's training images: as many as weights are fitted to."""
_BATCH = 64
"""Samples of a batch where its size is open."""


@dataclass(frozen=True)
class Calibration:
    """Samples of what a network is given, scaled as in training, without labels."""

    tensors: tuple[Tensor, ...]
    """For each input, (N, …)."""
    size: int | None = None
    """The only size of a batch that the network takes; None where it takes any."""

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batches(self, count: int | None = None) -> list[tuple[Tensor, ...]]:
        """All samples, or the first ``count``, in batches that the network takes.

        Those of a last batch that would be smaller are left out where the size of a batch is not open.
        """
        total = min(count or len(self), len(self))
        size = self.size or min(_BATCH, total)
        if self.size:
            total = max(total // size, 1) * size
        parts = [tensor[:total].split(size) for tensor in self.tensors]
        return list(zip(*parts, strict=True))


def calibration_of(images: Batch | None, example: Sequence[Tensor], size: int | None) -> Calibration:
    """``images`` as a network that takes ``example``, in batches of ``size``, takes them: in a row, on the CPU.

    Raises ``ExportError`` where there are none, too few, of another shape, or with numbers that are not finite.  Noise
    does not stand in for them: scales read off noise are wrong for images, and nothing would tell.
    """
    if images is None:
        raise ExportError(
            "int8 needs training images to read its scales off; give some, as in --data folder:PATH, or "
            "calibration=images in Python."
        )
    tensors = tuple(tensor.detach().cpu().contiguous() for tensor in tensors_of_call(images))
    _require_like(tensors, example)
    least = max(LEAST, size or 0)
    if len(tensors[0]) < least:
        raise ExportError(f"int8 is calibrated on {least} images at least, and there are {len(tensors[0])}.")
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise ExportError("The calibration images hold NaN or infinite numbers.")
    return Calibration(tensors, size)


def _require_like(tensors: Sequence[Tensor], example: Sequence[Tensor]) -> None:
    """Raises ``ExportError`` where samples have another shape than those of the example."""
    given, wanted = ([tuple(one.shape[1:]) for one in some] for some in (tensors, example))
    if given != wanted:
        raise ExportError(f"The calibration images have the shapes {given}, but the network takes {wanted}.")
