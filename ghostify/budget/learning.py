"""What plans that were timed teach of the next: which share of a saving that prices promise comes true on the clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LEAST, MOST = 0.1, 10.0
"""A share lies between: a saving that is hardly seen would ask for everything."""


class Saving(NamedTuple):
    """What a plan saves, by the prices and as it was measured, in the unit of the prices."""

    promised: float
    measured: float


def share_come_true(wanted: float, savings: Sequence[Saving]) -> float:
    """The share of what is promised that is expected to come true of a plan that saves ``wanted``.

    Where one plan saved less and another more, it is read off the straight line between the nearest two: each learned
    from alone, they would be chosen by turns.  Else it is the share of the nearest that saved enough, which can be had;
    where none did, that of the last.

        p = p₀ + (wanted − m₀) (p₁ − p₀) / (m₁ − m₀)      share = wanted / p      p: promised, m: measured
    """
    less = max((one for one in savings if one.measured < wanted), key=lambda one: one.measured, default=None)
    more = min((one for one in savings if one.measured >= wanted), key=lambda one: one.measured, default=None)
    if less is not None and more is not None and less.promised < more.promised:
        part = (wanted - less.measured) / (more.measured - less.measured)
        share = wanted / (less.promised + part * (more.promised - less.promised))
    else:
        one = more or savings[-1]
        share = one.measured / one.promised if one.promised > 0 else 1.0
    return min(MOST, max(LEAST, share))
