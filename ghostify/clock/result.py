"""What swaps give on the clock, each and all together, as values."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ghostify.clock.piece import Time
from ghostify.clock.place import Place
from ghostify.measuring import Comparison

_CERTAIN = 2.0
"""Standard errors by which a swap must be faster."""
_LEAST = 0.05
"""Share of its time that a swap must save: pieces are no truer to their networks than that."""
_LEFT = 0.01
"""Share of a network's time that is left at least, whatever a disturbed measurement says."""


class SwapTime(BaseModel):
    """What one swap gives on the clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    rule: str
    before: Time
    after: Time
    macs_before: int = 0
    macs_after: int = 0
    """Multiply-adds as the layers run; 0 where they were timed in the whole network."""

    @property
    def saves(self) -> Time:
        return self.before - self.after

    @property
    def pays(self) -> bool:
        """Whether it is faster, by more than the noise."""
        return self.saves.ms > max(_CERTAIN * self.saves.noise, _LEAST * self.before.ms)


class Measured(BaseModel):
    """What a plan gives on the clock: each swap, and the whole network in its inference form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Place
    swaps: tuple[SwapTime, ...]
    whole: Comparison
    """The original beside the rewritten network, both in their inference form."""
    low: float
    high: float
    """Between these lies the median ratio in 95 of 100 cases."""

    def of(self, rule: str, target: str) -> SwapTime | None:
        """The time of one swap, where it has one of its own."""
        return next((swap for swap in self.swaps if (swap.rule, swap.target) == (rule, target)), None)

    @property
    def predicted(self) -> float:
        """How much faster the whole is by what its swaps save.

        Of the original the shortest times count, because neighbours on the machine only make a run longer.
        """
        before = self.whole.before.low_ms
        left = before - sum(swap.saves.ms for swap in self.swaps)
        return before / max(left, _LEFT * before)
