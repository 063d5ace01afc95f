"""What harm each option is expected to do, in a row with the options."""

from __future__ import annotations

import numpy as np

from ghostify.budget.candidates import Numbered, Option
from ghostify.budget.solving import Vector
from ghostify.costs import Cost
from ghostify.harm import Harms


def expected(numbered: Numbered, harms: Harms) -> Vector:
    """What was measured of each option; of a layer in a thinner block, at the share of its maps that are left there."""
    return np.array([_measured(option, harms) for option in numbered.options])


def _measured(option: Option, harms: Harms) -> float:
    if option.swap is None:
        return 0.0
    return harms.of(option.swap, option.share)


def proxies(numbered: Numbered, whole: Cost) -> Vector:
    """Harms where there are no images: the share of its MACs that an option takes away, squared, by their weight.

    The first that a layer loses are its most redundant, so the last ones cost more.
    """
    return np.array([_lost(option) ** 2 * _macs(option) / whole.macs for option in numbered.options])


def _lost(option: Option) -> float:
    """The share of its MACs that an option takes away."""
    before = _macs(option)
    return min(1.0, -option.change.macs / before) if before else 0.0


def _macs(option: Option) -> float:
    return float(option.swap.before.macs) if option.swap else 0.0
