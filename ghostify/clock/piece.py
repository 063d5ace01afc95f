"""What time is told of: a piece of a network, by its geometry alone, and the time it takes.

A piece is a layer with what runs behind it:

    (N, c, H, W) → layer → [norm] → [+ other] → [activation] → [pool] → (N, n, H', W')

A pool is fused with nothing, but it takes as much less time as there are fewer channels; behind wide maps that is more
than what the layer takes.
Two layers of one geometry are one piece, in whichever network, for the time does not depend on the weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ghostify.recipe import CheapOperation, Parts

_UNSURE = 0.1
"""Share of a time that its standard error may be where it is kept."""
_UNSURE_MS = 0.005
"""Milliseconds that it may be in any case: of the shortest pieces it is as much on an idle machine."""


class GhostForm(BaseModel):
    """The form of a C-Ghost module that stays one when it runs, because its filters have more than one tap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    s: int
    m: int | None = None
    cheap: CheapOperation
    parts: Parts = "linear"


class Pool(BaseModel):
    """A pooling over places of a map, with the names of torch's own modules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["max", "avg"]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil: bool = False


class Piece(BaseModel):
    """A layer with what runs behind it, as far as that depends on how many channels it gives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["conv", "transposed", "linear"]
    reads: tuple[int, ...]
    """Shape of what it reads, the batch included: (N, c, H, W), of a linear layer (N, …, c)."""
    outputs: int
    """n, its output channels."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    norm: bool = False
    """Whether a norm is computed behind it; one that folds into the layer is not."""
    act: str = ""
    """The activation behind it, as ``ACTIVATIONS`` names it; empty for none."""
    add: bool = False
    """Whether another value is added before the activation, as at the end of a residual block."""
    pool: Pool | None = None
    ghost: GhostForm | None = None
    """The form where the layer is a C-Ghost module."""


class Time(BaseModel):
    """Time of one forward pass in milliseconds, and its standard error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ms: float
    noise: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(ms=self.ms + other.ms, noise=math.hypot(self.noise, other.noise))

    def __sub__(self, other: Time) -> Time:
        return Time(ms=self.ms - other.ms, noise=math.hypot(self.noise, other.noise))

    def __mul__(self, times: int) -> Time:
        # an error in the time of one piece is the same in all of its places
        return Time(ms=times * self.ms, noise=times * self.noise)

    @property
    def steady(self) -> bool:
        """Whether it is sure enough to be kept: on a machine that others use, a time may be anything."""
        return self.noise <= max(_UNSURE * self.ms, _UNSURE_MS)

    def __str__(self) -> str:
        return f"{self.ms:.3g} ms"


def total(pieces: Iterable[Piece], times: Mapping[Piece, Time]) -> Time:
    """The time of pieces that run one after the other, each as often as it is named."""
    found = Time(ms=0.0)
    for piece, often in Counter(iter(pieces)).items():
        found += times[piece] * often
    return found
