"""Names of the whole and of a part: a plan's entries, renamed."""

from __future__ import annotations

from typing import TypeVar

from ghostify.names import within
from ghostify.planning import Plan
from ghostify.rules import Skip, Swap
from ghostify.scanning.naming import entering, leaving

_Entry = TypeVar("_Entry", Swap, Skip)


def of_part(plan: Plan, part: str) -> Plan:
    """What a plan says of one part, in that part's names."""
    inside = (leaving(part, name) for name in plan.exclude if within(name, part) and name != part)
    # A pattern that keeps all around a part keeps all of it: in the part's own names, its root.
    around = ("",) if any(within(part, name) for name in plan.exclude) else ()
    return Plan(
        network=part or plan.network,
        inputs=(),
        swaps=tuple(left_by(part, swap) for swap in plan.swaps if within(swap.target, part)),
        skips=tuple(left_by(part, skip) for skip in plan.skips if within(skip.target, part)),
        exclude=around or tuple(inside),
    )


def entered_by(part: str, entry: _Entry) -> _Entry:
    """What a plan of a part says of something, as a plan of the whole says it."""
    return entry.renamed(lambda name: entering(part, name))


def left_by(part: str, entry: _Entry) -> _Entry:
    """The other way round."""
    return entry.renamed(lambda name: leaving(part, name))
