"""What a plan chose among, as a value to be shown: of each block and layer its options, what each costs and harms.

Options of a layer depend on the width of its block; those shown are the ones at the width that was taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ghostify.budget.candidates import Numbered, Option
from ghostify.budget.pricing import Prices
from ghostify.budget.solving import Choice, Solution, Vector
from ghostify.budget_result import Chosen, Way
from ghostify.rules.c_ghost import intrinsic
from ghostify.targets import Quantity


class _Solved(Protocol):
    """A budget with its plan."""

    numbered: Numbered
    prices: Prices
    harms: Vector
    solution: Solution | None


def ledger(solved: _Solved, quantity: Quantity) -> tuple[Chosen, ...]:
    """The choices that were to be made, by what their options cost of a ``quantity``."""
    assert solved.solution is not None, "a plan was made"
    taken, original = set(solved.solution.taken), _in_the_original(solved, quantity)
    open_to = (choice for choice in solved.numbered.choices if choice.parent is None or choice.parent in taken)
    return tuple(_chosen(solved, choice, taken, original, quantity) for choice in open_to)


def _chosen(
    solved: _Solved, choice: Choice, taken: set[int], original: Mapping[str, float], quantity: Quantity
) -> Chosen:
    options = solved.numbered.options
    own, changes = _own(solved, choice, quantity), solved.prices.changes[quantity]
    ways = (
        Way(
            form=_form(options[place]),
            m=_maps(options[place]),
            harm=float(solved.harms[place]),
            cost=own + float(changes[place]),
            taken=place in taken,
        )
        for place in choice.options
    )
    target = options[choice.options[0]].target
    return Chosen(target=target, quantity=quantity, before=original.get(target, own), ways=tuple(ways))


def _in_the_original(solved: _Solved, quantity: Quantity) -> dict[str, float]:
    """By target, what it costs where its block is as it is, or it is in none."""
    options = solved.numbered.options
    found = {}
    for choice in solved.numbered.choices:
        if choice.parent is None or not options[choice.parent].swaps:
            found[options[choice.options[0]].target] = _own(solved, choice, quantity)
    return found


def _own(solved: _Solved, choice: Choice, quantity: Quantity) -> float:
    """What the subject of a choice costs before it is made: all its swaps take the same place."""
    own = solved.prices.own[quantity]
    return float(max(own[place] for place in choice.options))


def _form(option: Option) -> str:
    """The settings of an option's swaps, which are one for all blocks of a chain."""
    settings = dict.fromkeys(swap.settings for swap in option.swaps)
    return ", ".join(settings) or "as it is"


def _maps(option: Option) -> int | None:
    """How many maps are intrinsic, where the option is a C-Ghost module."""
    if option.ghost is None or option.site is None:
        return None
    return intrinsic(option.site, option.ghost)
