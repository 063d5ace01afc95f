"""A swap of the thin rule: a block that becomes narrower inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field

from ghostify.recipe import Keep, Rounding
from ghostify.rules.base import Swap


class ThinSwap(Swap):
    """A block that becomes narrower inside; what it adds to others stays as it is.  No ghosts.

    Its costs are those of the layers that make or read its inner channels, given the swaps before it.
    """

    rule: Literal["thin"] = "thin"
    inner: Annotated[tuple[str, ...], Field(min_length=1)]
    """The layers inside the block that become narrower, each with those that read it."""
    width: Annotated[float, Field(gt=0, le=1)]
    group_width: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a group kept in grouped convolutions; where it is 1, groups are dropped whole."""
    keep: Keep = "strongest"
    round_to: Annotated[int, Field(ge=1)] = 8
    rounding: Rounding = "nearest"

    @property
    def settings(self) -> str:
        """As a table shows them."""
        return f"thin={self.width:g}"

    @property
    def form(self) -> tuple[object, ...]:
        """The settings that decide which channels stay, wherever the block is."""
        return self.width, self.group_width, self.keep, self.round_to, self.rounding

    @property
    def touches(self) -> tuple[str, ...]:
        return self.inner

    def renamed(self, rename: Callable[[str], str]) -> Self:
        return super().renamed(rename).model_copy(update={"inner": tuple(map(rename, self.inner))})
