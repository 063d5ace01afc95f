"""Networks of one kind of swap each, built and fitted, tell how the harms of that kind add up; then it is solved anew.

    factor(kind) = harm measured of a network that has swaps of this kind alone / the sum of their harms

The harms of single swaps add up to too much in a shallow network, where later layers make good more than was measured
of each, and to too little in a deep one.  Measured over predicted, it was 0.8 for both kinds in a ResNet20 on CIFAR-10,
but 0.9 for thin blocks and 1.3 for ghosts in a ResNet56; there the plan that knows of it does a tenth less harm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from ghostify.budget.choosing import Choosing
from ghostify.errors import PlanError
from ghostify.planning import Plan

_LEAST, _MOST = 0.25, 4.0
"""Factors are taken to lie between: what is beyond is an accident of few images."""


def tried(choosing: Choosing, first: Plan, made: Callable[[Plan], nn.Module], told: Callable[[str], None]) -> Plan:
    """The plan that a budget chooses once harms of each kind are corrected; ``first`` where there is nothing to learn.

    ``made`` builds and fits the network of a plan.
    """
    kinds = sorted({swap.rule for swap in first.swaps})
    if len(kinds) < 2 or not _is_to_be_tried(choosing):
        return first
    choosing.correct({kind: _factor(choosing, kind, made, told) for kind in kinds})
    return choosing.plan()


def _is_to_be_tried(choosing: Choosing) -> bool:
    """Whether something can be learned: of measured harms, by images.  What is kept is learned after the fit anyway."""
    known = choosing.witness is not None and choosing.measured is not None
    return known and choosing.budget.trials and choosing.budget.keep is None and not choosing.corrected


def _factor(choosing: Choosing, kind: str, made: Callable[[Plan], nn.Module], told: Callable[[str], None]) -> float:
    """What is measured of a network of one kind of swap, over what is predicted; 1 where none meets the targets."""
    assert choosing.witness is not None, "there are images to judge by"
    alone = choosing.of_kind(kind)
    try:
        plan = alone.plan()
    except PlanError:
        return 1.0
    told(f"Fitting a network of kind {kind} alone, to learn how harms of that kind add up")
    measured = choosing.witness.saw(made(plan)).harm
    return float(np.clip(measured / alone.harm, _LEAST, _MOST)) if alone.harm > 0 else 1.0
