"""What harm each option is expected to do, in a row with the options."""

from __future__ import annotations

import numpy as np

from ghostify.budget.candidates import Numbered, Option
from ghostify.budget.solving import Vector
from ghostify.costs import Cost
from ghostify.harm import Harms
from ghostify.rules import Swap


def expected(numbered: Numbered, harms: Harms) -> Vector:
    """What was measured of each option; of a layer in a thinner block, at the share of its maps that are left there."""
    return np.array([_measured(option, harms) for option in numbered.options])


def _measured(option: Option, harms: Harms) -> float:
    return sum(harms.of(swap, option.share) for swap in option.swaps)


def proxies(numbered: Numbered, whole: Cost) -> Vector:
    """Harms where there are no images: of each layer the share of its MACs that goes, squared, by the layer's weight.

        Σ over layers  (1 − left / MACs)² · MACs / MACs of the network

    The first multiply-adds that a layer loses are its most redundant, so the last ones cost more.  Those of a ghost in
    a thinner block are the last of what both take away.
    """
    return np.array([_lost(option) / whole.macs for option in numbered.options])


def _lost(option: Option) -> float:
    """What an option adds to the squares, in MACs."""
    if option.instead:
        return sum(_squared(old.cost.macs, new.cost.macs) for old, new in option.instead)
    return sum(_of_swap(swap, option) for swap in option.swaps)


def _of_swap(swap: Swap, option: Option) -> float:
    macs = option.original.cost.macs if option.original else swap.before.macs
    return _squared(macs, swap.after.macs) - _squared(macs, swap.before.macs)


def _squared(macs: int, left: int) -> float:
    """(1 − left / MACs)² · MACs of one layer."""
    return max(0, macs - left) ** 2 / macs if macs else 0.0
