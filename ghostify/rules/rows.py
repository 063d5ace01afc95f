"""The rows of a report that rules make, and what theory promises of the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from ghostify.cheap import by_one_word
from ghostify.costs import Cost
from ghostify.recipe import Stream


class Ratios(BaseModel):
    """Theoretical ratios: r_s (MACs) and r_c (parameters) by the first forms of Eq. 4 and 5, and their approximations.

    For a whole network with G-Ghost stages, what those promise (Eq. 13 and 14) is in them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    r_s: float
    r_c: float
    approx_r_s: float
    approx_r_c: float


class LayerReport(BaseModel):
    """One swapped layer: what it cost, what it costs, and what theory says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    geometry: str
    s: int
    cheap: str
    """Its cheap operation, as a plan tells it."""
    form: str = ""
    """Ratio, cheap operation and parts, as a table shows them."""
    before: Cost
    after: Cost
    theory: Ratios

    @model_validator(mode="before")
    @classmethod
    def _of_older_reports(cls, values: Any) -> Any:
        return by_one_word(values)


class BlockReport(BaseModel):
    """One block that became narrower inside: what its inner channels cost, what they cost now, what theory says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    geometry: str
    form: str
    width: float
    """The share that was asked for."""
    before: Cost
    after: Cost
    theory: Ratios


class StageRatios(BaseModel):
    """Theoretical ratios of a stage: r_f and r_p for the form it has, and as Eq. 13 and 14 print them (f_i for f_n)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r_f: float
    r_p: float
    approx_r_f: float
    approx_r_p: float


class StageReport(BaseModel):
    """One swapped stage, its first block included: what it cost, what it costs, and what theory says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    geometry: str
    form: str
    """Ratio, cheap operation, mix and end, as a table shows them."""
    ratio: float
    """λ as it came out: the share of the stage's channels that are ghosts."""
    before: Cost
    after: Cost
    theory: StageRatios


class Promise(NamedTuple):
    """What theory promises of one swap: so many of the network's MACs and parameters become so many times fewer."""

    macs: int
    params: int
    theory: Ratios


@dataclass
class Rows:
    """What the swaps of a plan give to a report, each added by its rule."""

    layers: list[LayerReport] = field(default_factory=list)
    stages: list[StageReport] = field(default_factory=list)
    blocks: list[BlockReport] = field(default_factory=list)
    width: float | None = None
    """The share that was kept of every layer, or of every block's inside, where that was done to the whole network."""
    stream: Stream = "scaled"
    promises: list[Promise] = field(default_factory=list)

    def theory(self, whole: Cost) -> Ratios:
        """The ratios of the whole network, when each swap shrinks as promised and every other cost stays."""
        macs = [(one.macs, one.theory.r_s, one.theory.approx_r_s) for one in self.promises]
        params = [(one.params, one.theory.r_c, one.theory.approx_r_c) for one in self.promises]
        return Ratios(
            r_s=_shrunk(whole.macs, [(part, by) for part, by, _ in macs]),
            r_c=_shrunk(whole.params, [(part, by) for part, by, _ in params]),
            approx_r_s=_shrunk(whole.macs, [(part, by) for part, _, by in macs]),
            approx_r_c=_shrunk(whole.params, [(part, by) for part, _, by in params]),
        )


def _shrunk(whole: int, parts: list[tuple[int, float]]) -> float:
    """By how much the whole shrinks when each part becomes so many times smaller."""
    left = whole - sum(part for part, _ in parts) + sum(part / by for part, by in parts)
    return whole / left if left else 1.0
