"""What every rewrite rule speaks: a proposal is a ``Swap`` or a ``Skip``, and both are values made to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost
from ghostify.recipe import Rounding
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


S = TypeVar("S", bound=Swap)


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


def offered(proposals: Iterable[Sequence[S | Skip]]) -> dict[str, list[S]]:
    """By subject, the swaps among several proposals of one rule; of those that cost the same, the first."""
    found: dict[str, list[S]] = {}
    for swap in (entry for entries in proposals for entry in entries):
        if isinstance(swap, Skip):
            continue
        known = found.setdefault(swap.target, [])
        if all(other.after != swap.after for other in known):
            known.append(swap)
    return found


def different(ways: Iterable[tuple[S, ...]]) -> list[tuple[S, ...]]:
    """Ways to swap several subjects together; of those that cost the same, the first."""
    found: dict[tuple[Cost, ...], tuple[S, ...]] = {}
    for way in ways:
        found.setdefault(tuple(swap.after for swap in way), way)
    return [way for way in found.values() if len(way) > 1]


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
