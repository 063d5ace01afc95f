"""Calibration images in batches, and what each batch is for.

seen      solves are made of them
held      they choose how strong a ridge is, and then join the solve
judged    nothing is made of them: what is told of a fit is measured there, and a fit that is worse there is undone
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ghostify.batches import Batch, count
from ghostify.fitting.interpreter import batched

HELD = 8
"""One batch of so many is held, and one judged."""
_JUDGES = 16
"""Images that are judged by where a quarter of all is as many: an error on fewer says little."""


@dataclass(frozen=True)
class Calibration:
    """Batches of one size: those that are seen, then those held, then those judged."""

    batches: Sequence[Batch]
    held: int
    judged: int

    @staticmethod
    def of(images: Batch) -> Calibration:
        """All but the few images (N, C, …) that make up no whole batch; of a single one, nothing is judged."""
        batches = batched(images)
        judged = judged_of(len(batches), count(batches[0]))
        return Calibration(batches, held_of(len(batches) - judged), judged)

    @property
    def fitted(self) -> Sequence[Batch]:
        """The batches that solves may see."""
        return self.batches[: len(self.batches) - self.judged]

    @property
    def seen(self) -> Sequence[Batch]:
        return self.fitted[: len(self.fitted) - self.held]

    @property
    def choosing(self) -> Sequence[Batch]:
        """The batches that are held."""
        return self.fitted[len(self.fitted) - self.held :]

    @property
    def judging(self) -> Sequence[Batch]:
        return self.batches[len(self.batches) - self.judged :]


def held_of(batches: int) -> int:
    """How many of so many batches are held; of a single one none can be."""
    return max(1, batches // HELD) if batches > 1 else 0


def judged_of(batches: int, size: int) -> int:
    """How many of so many batches of a size are judged."""
    if batches < 2:
        return 0
    # A quarter at most, because a fit to few images needs the others more than its error does.
    wanted = min(batches // 4, math.ceil(_JUDGES / size))
    return max(1, batches // HELD, wanted)
