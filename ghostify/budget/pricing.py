"""What each option costs more than what it takes the place of: counted, or on the clock.

A layer's time is that of the pieces which run in its place (``clock``); what the network takes besides (pools, the
classifier, starting operations) stays as it is, so differences are all that is asked of the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghostify.budget.candidates import Numbered, Option
from ghostify.budget.solving import Vector
from ghostify.clock import Clock, Piece, Surroundings, Time, pieces_of, total
from ghostify.costs import Cost
from ghostify.scanning import Site
from ghostify.targets import BYTES_PER_PARAMETER, Quantity

COUNTS: Mapping[Quantity, Callable[[Cost], float]] = {
    "macs": lambda cost: cost.macs,
    "params": lambda cost: cost.params,
    "activations": lambda cost: cost.acts,
    "size": lambda cost: BYTES_PER_PARAMETER * cost.params,
}
"""What is counted exactly, from the cost of a network or a difference of costs."""


@dataclass(frozen=True)
class Prices:
    """By quantity, what the network costs as it is, and what each option changes (n), in the quantity's own unit."""

    before: Mapping[Quantity, float]
    changes: Mapping[Quantity, Vector]
    own: Mapping[Quantity, Vector]
    """What each option takes the place of costs as it is (n); zero of those that leave things as they are."""

    def rows(self, quantities: Sequence[Quantity]) -> Vector:
        """The changes of some quantities, a row each."""
        return np.stack([self.changes[quantity] for quantity in quantities])


def counted(whole: Cost, numbered: Numbered) -> Prices:
    """Prices of all that is counted."""
    before = {quantity: float(of(whole)) for quantity, of in COUNTS.items()}
    changes = {
        quantity: np.array([float(of(option.change)) for option in numbered.options]) for quantity, of in COUNTS.items()
    }
    own = {
        quantity: np.array([float(of(_replaced(option))) for option in numbered.options])
        for quantity, of in COUNTS.items()
    }
    return Prices(before, changes, own)


def _replaced(option: Option) -> Cost:
    """What an option takes the place of, as it costs in the network as it was."""
    if len(option.swaps) > 1:  # each is priced given those before it, so what they replace does not add up
        return sum((old.cost for old, _ in option.instead), Cost())
    return sum((swap.before for swap in option.swaps), Cost())


def clocked(
    numbered: Numbered,
    sites: Sequence[Site],
    around: Mapping[str, Sequence[Surroundings]],
    clock: Clock,
    told: Callable[[int, int], None],
) -> tuple[Vector, Vector, float]:
    """By option, by how many milliseconds it is slower (n), in one forward pass; how long what it replaces takes; and
    how long all ``sites`` take, the layers of the network as it is.

    A difference inside its own noise is none: what the clock cannot see is not worth any harm.
    """
    whole = [piece for site in sites for piece in pieces_of(site, around.get(site.name, ()))]
    ran = [list(_before(option, around)) for option in numbered.options]
    runs = [list(_after(option, around)) for option in numbered.options]
    times = clock.times((piece for pieces in (*ran, *runs, whole) for piece in pieces), told)
    changes = [_seen(total(new, times) - total(old, times)) for old, new in zip(ran, runs, strict=True)]
    return np.array(changes), np.array([total(old, times).ms for old in ran]), total(whole, times).ms


def _seen(difference: Time) -> float:
    return difference.ms if abs(difference.ms) > 2 * difference.noise else 0.0


def _before(option: Option, around: Mapping[str, Any]) -> Iterator[Piece]:
    """The pieces that run where an option was not taken."""
    for old, _ in option.instead:
        yield from pieces_of(old, around.get(old.name, ()))
    if option.ghost is not None and option.site is not None:
        yield from pieces_of(option.site, around.get(option.target, ()))


def _after(option: Option, around: Mapping[str, Any]) -> Iterator[Piece]:
    for _, new in option.instead:
        yield from pieces_of(new, around.get(new.name, ()))
    if option.ghost is not None and option.site is not None:
        yield from pieces_of(option.site, around.get(option.target, ()), option.ghost)
