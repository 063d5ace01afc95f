"""A plan carried out → the network with what came of its budget; another one where what was to be kept was not.

A target of cost is met before the fit.  What is to be kept is known only after it, so each round takes a fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ghostify.budget.checking import Seen
from ghostify.budget.choosing import Choosing
from ghostify.planning import Plan
from ghostify.rewriting import Ghosted

FITS = 3
"""How often at most a network is fitted again because it kept too little, or much more than was asked."""
_MORE = 0.5
"""Of the answers that may change: where fewer do, a cheaper network may keep enough."""


def settled(
    choosing: Choosing, ghosted: Ghosted, again: Callable[[Plan], Ghosted], told: Callable[[str], None]
) -> Ghosted:
    """The network, with what came of its budget in it; ``again`` makes one of another plan."""
    seen = choosing.witness.saw(ghosted.module) if choosing.witness else None
    done = _with_result(choosing, ghosted, seen)
    if choosing.budget.keep is None or seen is None:
        return done
    best, fits = done if _keeps(choosing, seen) else None, 0
    while fits < FITS and _is_off(choosing, seen):
        told(f"{seen.kept:.1%} is kept, {choosing.budget.keep.share:.1%} was asked: planning again")
        done = again(choosing.again(seen))
        seen = choosing.witness.saw(done.module) if choosing.witness else seen
        done, fits = _with_result(choosing, done, seen), fits + 1
        if _keeps(choosing, seen):
            best = done
    return best or done


def _with_result(choosing: Choosing, ghosted: Ghosted, seen: Seen | None) -> Ghosted:
    timed = choosing.stopwatch.beside(ghosted) if choosing.stopwatch else None
    return replace(ghosted, budget=choosing.result(seen, timed, ghosted.after.cost))


def _keeps(choosing: Choosing, seen: Seen) -> bool:
    keep = choosing.budget.keep
    return keep is None or seen.kept >= keep.share


def _is_off(choosing: Choosing, seen: Seen) -> bool:
    """Whether too little is kept, or so much that a cheaper network may do."""
    keep = choosing.budget.keep
    if keep is None:
        return False
    return seen.kept < keep.share or 1 - seen.kept < _MORE * (1 - keep.share)
