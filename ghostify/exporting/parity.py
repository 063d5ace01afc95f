"""Whether a file, in its own runtime, gives what the network gives in eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ghostify.exporting.formats import Runner

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2}
"""By how much outputs may differ, as a share of the largest magnitude of the network's own."""


class Compared(BaseModel):
    """The outputs of a file beside those of the network, on batches of one size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int
    optimized: bool
    """Whether with the optimisations of the file's runtime."""
    difference: float
    """The largest, as a share of the largest magnitude of that output of the network."""


class Parity(BaseModel):
    """Whether a file is the same network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    images: int
    real: bool
    """Whether images of the run's data, and not noise."""
    compared: tuple[Compared, ...]

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.precision]

    @property
    def worst(self) -> float:
        """The largest difference."""
        return max(one.difference for one in self.compared)

    @property
    def passed(self) -> bool:
        return self.worst <= self.tolerance

    def __str__(self) -> str:
        return f"outputs differ by {self.worst:.1e} of the largest at most ({self.tolerance:.0e} allowed)"


def check(
    network: nn.Module,
    runners: Mapping[bool, Runner],
    images: Sequence[Tensor],
    *,
    precision: str,
    batches: Sequence[int],
    real: bool,
) -> Parity:
    """Compare a file with its network.

    ``network`` takes tensors in a row, as the file does; ``runners`` are the file with its runtime's optimisations
    (True) and, where there is such a switch, without (False); ``images`` holds samples for each input; ``batches`` are
    the sizes that the file takes.
    """
    compared = [
        Compared(batch=size, optimized=optimized, difference=_difference(network, run, images, size))
        for size in batches
        for optimized, run in runners.items()
    ]
    return Parity(precision=precision, images=len(images[0]), real=real, compared=tuple(compared))


def _difference(network: nn.Module, run: Runner, images: Sequence[Tensor], size: int) -> float:
    worst = 0.0
    for start in range(0, len(images[0]) - size + 1, size):
        batch = [one[start : start + size] for one in images]
        with torch.inference_mode():
            pairs = zip(network(*batch), run(*batch), strict=True)
            worst = max([worst, *(_share(wanted, found) for wanted, found in pairs)])
    return worst


def _share(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    scale = wanted.abs().max().double().item() or 1.0
    return (wanted.double() - found.double()).abs().max().item() / scale
