"""What the turns of two sessions tell: how far they are apart, and how sure that is.

Turns are parted into rounds, and of each round the difference is taken, in which drift of the machine cancels; what is
told is the median over the rounds, with its standard error by their spread.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ghostify.clock.piece import Time

ROUNDS = 5
_CERTAIN = 1.96
"""Deviations on either side of a mean between which a number lies in 95 of 100 cases."""


def difference(one: Sequence[float], other: Sequence[float]) -> Time:
    """How much longer one takes than the other, from times in milliseconds taken in turns."""
    differences = [
        _undisturbed(first) - _undisturbed(second) for first, second in zip(_rounds(one), _rounds(other), strict=True)
    ]
    return Time(ms=statistics.median(differences), noise=_standard_error(differences))


def ratio_between(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Between which two numbers the median of one / other, turn by turn, lies in 95 of 100 cases.

    The number of ratios below their median is binomial with p = 1/2, so its mean is n/2 and its deviation √n/2.
    """
    ratios = sorted(first / second for first, second in zip(one, other, strict=True))
    n = len(ratios)
    reach = _CERTAIN * math.sqrt(n) / 2
    low, high = math.floor(n / 2 - reach), math.ceil(n / 2 + reach)
    return ratios[max(0, low)], ratios[min(n - 1, high)]


def _rounds(turns: Sequence[float]) -> list[Sequence[float]]:
    """The turns in ``ROUNDS`` parts of one length."""
    size = max(1, len(turns) // ROUNDS)
    return [turns[start : start + size] for start in range(0, size * min(ROUNDS, len(turns)), size)]


def _undisturbed(turns: Sequence[float]) -> float:
    """The lower quartile: what disturbs a run, a neighbour on the machine above all, only makes it longer."""
    return statistics.quantiles(turns, n=4, method="inclusive")[0] if len(turns) > 1 else turns[0]


def _standard_error(rounds: Sequence[float]) -> float:
    """Of the median of the rounds, by their median deviation, which one disturbed round does not spoil."""
    middle = statistics.median(rounds)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in rounds)
    return 1.2533 * deviation / math.sqrt(len(rounds))
