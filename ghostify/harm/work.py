"""How much there is to compute where harms are measured, so that it can be told when it will be done.

    pass       images · Σ MACs of the layers behind a place
    solve      some times n³, of a layer with n outputs

A harm near the image is a pass through all the network, and one at its end hardly any, so steps are no measure of time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from ghostify.harm.rows import Call
from ghostify.harm.walk import Walk
from ghostify.scanning import Scan

_PROJECTED = 40
"""n³ per number of intrinsic maps: turns of a fit, and as many decompositions."""
_ANSWERED = 20
"""n³ per layer that answers."""

Told = Callable[[int, int], None]


class Work:
    """What the parts of a measurement cost, in multiply-adds."""

    def __init__(self, walk: Walk, scan: Scan, calls: Mapping[str, Sequence[Call]], images: int) -> None:
        """``images``: how many are looked at, of which half is fitted to."""
        self.images = images
        passed, solved = [0.0] * (len(walk.nodes) + 1), [0.0] * (len(walk.nodes) + 1)
        for site in scan.sites:
            own = calls.get(site.name, ())
            for call in own:
                passed[walk.index[call.node]] += site.cost.macs / len(own)
                solved[walk.index[call.node]] += _ANSWERED * site.out_channels**3
        self._passed, self._solved = _behind(passed), _behind(solved)

    def changes(self, place: int, many: int, answered: bool) -> float:
        """Of so many changes at a place, seen on half of the images.

        Where it is ``answered``, also of one that all layers behind it answer.
        """
        passes = many / 2 * self.images * self._passed[place]
        if not answered:
            return passes
        # What answers add takes about as long as the layers' own pass.
        return passes + 2 * self.images * self._passed[place] + self._solved[place]

    def projections(self, n: int, many: int) -> float:
        """Of so many numbers of intrinsic maps of a layer with n outputs."""
        return many * _PROJECTED * n**3

    def before(self) -> float:
        """Of what is known before the first step: some passes through the original, one of them backwards."""
        return 4 * self.images * self._passed[0]


class Progress:
    """Tells how much of some work is done, in hundredths."""

    def __init__(self, told: Told, total: float) -> None:
        self.told, self.total, self.done = told, max(total, 1.0), 0.0

    def add(self, work: float) -> None:
        """So much more is done."""
        self.done += work
        self.told(min(100, int(100 * self.done / self.total)), 100)


def _behind(values: Sequence[float]) -> list[float]:
    """By place, the sum of the values there and behind it."""
    return list(accumulate(reversed(values)))[::-1]
