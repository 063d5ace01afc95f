"""How long the network as it is and the one planned take, side by side, in their inference form."""

from __future__ import annotations

from typing import NamedTuple

from ghostify.clock import Place
from ghostify.clock.wholes import recorded, side_by_side
from ghostify.rewriting import Ghosted
from ghostify.tracing import Recording


class Timed(NamedTuple):
    """Milliseconds of one forward pass: of the original, and of the planned network by the ratio within turns."""

    before: float
    after: float


class Stopwatch:
    """The original, to time others beside at one place."""

    def __init__(self, original: Recording, place: Place) -> None:
        self.original, self.place = original, place

    def alone(self) -> float:
        """The time of the original, undisturbed, as the clock tells those of pieces."""
        return min(side_by_side({"original": self.original}, self.place).ms["original"])

    def beside(self, ghosted: Ghosted) -> Timed:
        """The times of both, by the ratio within each turn, in which drift of the machine cancels."""
        both = {"original": self.original, "planned": recorded(ghosted, self.original)}
        timings = side_by_side(both, self.place)
        before = timings.latency("original").median_ms
        return Timed(before, before / timings.compare("original", "planned").speedup)
