"""What every rewrite rule speaks: a proposal is a ``Swap`` or a ``Skip``, and both are values made to be read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from ghostify.costs import Cost
from ghostify.recipe import Kernel, Parts, Ratio


class Swap(BaseModel):
    """One module to be replaced: by which rule, with which settings, at what predicted cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    geometry: str
    """The convolution as it was planned for; it tells a plan made for another model."""
    rule: Literal["c-ghost"] = "c-ghost"
    s: Ratio
    d: Kernel
    parts: Parts = "linear"
    before: Cost = Cost()
    after: Cost = Cost()

    @field_validator("d")
    @classmethod
    def _odd(cls, d: int) -> int:
        if d % 2 == 0:
            raise ValueError(f"the cheap kernel d must be odd so that it keeps the map's size; try {d - 1} or {d + 1}")
        return d


class Skip(BaseModel):
    """One module to be left alone, and why, as the end of a sentence that begins with its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    reason: str
