"""When a checkpoint is due between the ends of epochs: so rarely that saving takes little of the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LEAST = 60.0
"""Seconds between checkpoints at least, where no number of steps is given: less work than that is soon done again."""
SHARE = 0.02
"""Of the time, what saving takes at most."""


@dataclass
class Pace:
    """Tells when to save: every so many steps, or as often as takes at most ``SHARE`` of the time."""

    every: int | None = None
    """Steps between checkpoints; None: by the clock."""
    _steps: int = 0
    _cost: float = 0.0
    _last: float = field(default_factory=lambda: time.monotonic())

    def due(self) -> bool:
        """Whether to save after this step; to be asked once for each."""
        self._steps += 1
        if self.every is not None:
            return self._steps >= self.every
        return time.monotonic() - self._last >= max(LEAST, self._cost / SHARE)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around saving, which is timed."""
        began = time.monotonic()
        yield
        self._steps, self._last = 0, time.monotonic()
        self._cost = self._last - began
