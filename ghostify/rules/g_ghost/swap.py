"""The value that says of one stage that it becomes a G-Ghost stage, and in which form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field

from ghostify.recipe import CheapInput, Entry, GhostRatio, Keep, Rounding, StageCheap
from ghostify.rules.base import Swap


class GGhostSwap(Swap):
    """A stage that becomes a G-Ghost stage; its cost is that of all its blocks, the first included."""

    target: str = ""
    geometry: str = ""
    rule: Literal["g-ghost"] = "g-ghost"
    blocks: Annotated[tuple[str, ...], Field(min_length=3)]
    """The modules of the stage, the first block first; write your own to name a stage by hand, which needs no more."""
    ratio: GhostRatio = 0.5
    cheap: StageCheap = "1x1"
    cheap_input: CheapInput = "slice"
    entry: Entry = "slice"
    mix: Literal[0, 1, 2] = 1
    mix_y1: bool = True
    end: bool = True
    inner_width: Annotated[float | None, Field(gt=0, le=1)] = None
    group_width: Annotated[float, Field(gt=0, le=1)] = 1.0
    keep: Keep = "strongest"
    round_to: Annotated[int, Field(ge=1)] = 8
    rounding: Rounding = "nearest"

    @property
    def settings(self) -> str:
        """As a table shows them."""
        mixed = f" mix{self.mix}{'+Y1' if self.mix_y1 else ''}" if self.mix else ""
        return f"λ={self.ratio:g} {self.cheap}{mixed}{' end' if self.end else ''}"

    @property
    def touches(self) -> tuple[str, ...]:
        return self.blocks[1:]

    def renamed(self, rename: Callable[[str], str]) -> Self:
        blocks = tuple(map(rename, self.blocks))
        return super().renamed(rename).model_copy(update={"blocks": blocks})
