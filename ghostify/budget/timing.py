"""How long the network as it is and the one planned take, side by side, in their inference form."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from ghostify.clock import Place
from ghostify.clock.wholes import in_turns, recorded, session_of
from ghostify.measuring import Comparison
from ghostify.rewriting import Ghosted
from ghostify.runtimes import Session
from ghostify.tracing import Recording


class Timed(NamedTuple):
    """Milliseconds of one forward pass: of the original, and of the planned network by the ratio within turns."""

    before: float
    after: float
    turns: Comparison | None = None
    """The turns of both, where they were taken."""

    @property
    def doubt(self) -> str:
        """A sentence where the times were taken on a busy machine; else empty."""
        if self.turns is None or not self.turns.is_rough:
            return ""
        return f"These times are rough ({self.turns.spread}): plan again on an idle machine before you rely on them."


class Stopwatch:
    """The original, to time others beside at one place."""

    def __init__(self, original: Recording, place: Place) -> None:
        self.original, self.place = original, place

    def alone(self) -> float:
        """The time of the original, undisturbed, as the clock tells those of pieces."""
        return min(in_turns({"original": self._session}, self.place).ms["original"])

    def beside(self, ghosted: Ghosted) -> Timed:
        """The times of both, by the ratio within each turn, in which drift of the machine cancels."""
        planned = session_of(recorded(ghosted, self.original), self.place)
        timings = in_turns({"original": self._session, "planned": planned}, self.place)
        turns = timings.compare("original", "planned")
        return Timed(turns.before.median_ms, turns.before.median_ms / turns.speedup, turns)

    @cached_property
    def _session(self) -> Session:
        """Of the original, made once: of a large network a runtime may take as long to make one as to time it."""
        return session_of(self.original, self.place)
