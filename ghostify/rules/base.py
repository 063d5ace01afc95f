"""What every rewrite rule speaks: a proposal is a ``Swap`` or a ``Skip``, and both are values made to be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ghostify.cheap import by_one_word
from ghostify.costs import Cost
from ghostify.recipe import (
    CheapInput,
    CheapOperation,
    Entry,
    GhostRatio,
    Keep,
    Parts,
    Ratio,
    Rounding,
    StageCheap,
    Stream,
)
from ghostify.scanning import Scan, Site

UNFIT = "cannot be fitted"
"""How the reason of a skip begins that another fit would not give."""


class Swap(BaseModel):
    """Something to be replaced: by which rule, with which settings, at what predicted cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    geometry: str
    """What was planned for; it tells a plan made for another model."""
    before: Cost = Cost()
    after: Cost = Cost()
    rule: str

    @property
    def settings(self) -> str:
        """As a table shows them."""
        return ""

    @property
    def touches(self) -> tuple[str, ...]:
        """The modules it replaces, as far as it names them itself."""
        return (self.target,)

    @property
    def kept(self) -> tuple[str, ...]:
        """Patterns of the modules that it was told to leave as they are."""
        return ()

    def renamed(self, rename: Callable[[str], str]) -> Self:
        """The same with every name of a module changed."""
        return self.model_copy(update={"target": rename(self.target)})


class CGhostSwap(Swap):
    """A convolution (or linear layer) that becomes a C-Ghost module."""

    rule: Literal["c-ghost"] = "c-ghost"
    s: Ratio
    m: Annotated[int | None, Field(ge=1)] = None
    """The number of intrinsic maps where it is not ⌈n/s⌉."""
    cheap: CheapOperation
    parts: Parts = "linear"
    ordered: bool = False
    """Whether the module puts its maps into an order of their own, by a selection of channels at run time."""

    @property
    def settings(self) -> str:
        """As a table shows them."""
        width = "" if self.m is None else f" m={self.m}"
        extras = " norm-act" * (self.parts == "norm-act") + " ordered" * self.ordered
        return f"s={self.s}{width} {self.cheap.short}{extras}"

    @property
    def outputs(self) -> int | None:
        """How many outputs the layer has by its geometry; None where that does not tell."""
        named = re.match(r"\d+→(\d+) ", self.geometry)
        return int(named[1]) if named else None

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, values: Any) -> Any:
        """Plans of format 1 tell the cheap operation by two numbers."""
        return by_one_word(values)

    @model_serializer(mode="wrap")
    def _without_usual_m(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan tells m where it is set, so that whoever changes s need not change it."""
        values: dict[str, Any] = written(self)
        return {key: value for key, value in values.items() if key != "m" or value is not None}


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


class ThinSwap(Swap):
    """A block that becomes narrower inside; what it adds to others stays as it is.  No ghosts.

    Its costs are those of the layers that make or read its inner channels, given the swaps before it.
    """

    rule: Literal["thin"] = "thin"
    inner: Annotated[tuple[str, ...], Field(min_length=1)]
    """The layers inside the block that become narrower, each with those that read it."""
    width: Annotated[float, Field(gt=0, lt=1)]
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
    def touches(self) -> tuple[str, ...]:
        return self.inner

    def renamed(self, rename: Callable[[str], str]) -> Self:
        return super().renamed(rename).model_copy(update={"inner": tuple(map(rename, self.inner))})


class WidthSwap(Swap):
    """A whole network, every layer of which (or what lies inside blocks) becomes narrower; no ghosts."""

    rule: Literal["width"] = "width"
    width: Annotated[float, Field(gt=0, lt=1)]
    stream: Stream = "scaled"
    """Whether channels that are added to each other become fewer, too, or all are kept."""
    group_width: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a group kept in grouped convolutions; where it is 1, groups are dropped whole."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that keep their outputs."""
    keep: Keep = "first"
    round_to: Annotated[int, Field(ge=1)] = 8
    rounding: Rounding = "nearest"

    @property
    def settings(self) -> str:
        """As a table shows them."""
        return f"{'width' if self.stream == 'scaled' else 'thin'}={self.width:g}"

    @property
    def touches(self) -> tuple[str, ...]:
        return ("",)  # the root, and with it everything

    @property
    def kept(self) -> tuple[str, ...]:
        return self.exclude


class Skip(BaseModel):
    """Something to be left alone, and why, as the end of a sentence that begins with its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    reason: str

    def renamed(self, rename: Callable[[str], str]) -> Self:
        """The same under another name."""
        return self.model_copy(update={"target": rename(self.target)})


class Split(NamedTuple):
    """How the maps of a layer are split: every s of them come from one intrinsic map, by kernels of size d."""

    target: str
    s: int
    d: int
    mixed: bool
    """Whether a full pointwise convolution gives each ghost all intrinsic maps."""
    m: int | None = None
    """The number of intrinsic maps where it is set."""


def unfittable(scan: Scan, exclude: Sequence[str]) -> list[Site]:
    """The sites that no weights can be fitted to, those aside that patterns exclude."""
    return [site for site in scan.sites if site.unfit and not any(map(site.matches, exclude))]


def cannot_be_fitted(why: str) -> str:
    """The reason of a skip, because a fit is to follow and weights cannot be fitted there."""
    return f"{UNFIT}, because {why}; fit none swaps it all the same"


def thinner(share: float, round_to: int, rounding: Rounding, *, narrow: bool = False) -> Callable[[int], int]:
    """How many of w channels are kept: so large a share, to a multiple of ``round_to`` of at least one.

    Of no more channels than one multiple all are kept; with ``narrow`` as near the share as whole numbers come,
    because a stage that keeps all its channels has no ghosts.
    """

    def of(width: int) -> int:
        exact = share * width + 1e-9  # 0.7 · 10 is a little less than 7
        step = 1 if narrow and width <= round_to else round_to
        multiples = int(exact / step + (0.5 if rounding == "nearest" else 0))
        return min(width, max(1, multiples) * step)

    return of
