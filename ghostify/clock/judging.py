"""The time of each swap of a plan, as its target is and as the swap leaves it.

layer, block    the pieces that run in its place
stage           the whole network with that one swap beside the whole network without it
width           nothing by itself: the whole network tells
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

from ghostify.clock.building import macs_of
from ghostify.clock.clock import Clock, Told, unheard
from ghostify.clock.piece import Piece, Time, total
from ghostify.clock.pieces import pieces_of
from ghostify.clock.result import SwapTime
from ghostify.clock.surroundings import Surroundings, surroundings_in
from ghostify.clock.turns import difference
from ghostify.clock.wholes import recorded, side_by_side
from ghostify.names import within
from ghostify.planning import Plan
from ghostify.rewriting import rewrite
from ghostify.rules import CGhostSwap, Swap, by_rule, rule_of
from ghostify.scanning import Scan
from ghostify.tracing import Recording

Say = Callable[[str], None]
Watched = Callable[[], AbstractContextManager[Told]]
"""Gives somebody to be told how many of the pieces are measured."""


@dataclass
class Judge:
    """What swaps of a recorded network give on a clock."""

    recording: Recording
    clock: Clock
    watched: Watched = lambda: nullcontext(unheard)
    say: Say = lambda text: None
    _stages: dict[Swap, SwapTime] = field(default_factory=dict)

    @cached_property
    def around(self) -> dict[str, tuple[Surroundings, ...]]:
        return surroundings_in(self.recording, self.clock.place.batch)

    def times(self, plan: Plan, scan: Scan) -> list[SwapTime]:
        """The time of each swap of a plan that has one of its own; ``scan`` is the network as it is."""
        found: list[tuple[Swap, tuple[Piece, ...], tuple[Piece, ...]]] = []
        stages: list[SwapTime] = []
        seen = scan
        for rule, own in by_rule(plan.swaps):
            if rule.in_place or rule.opens:
                found += [(swap, *self._pieces(swap, seen)) for swap in own]
            elif not rule.alone:
                stages += [self._stage(swap, plan, seen) for swap in own]
            seen = rule.after(seen, own)
        with self.watched() as told:
            times = self.clock.times((piece for _, before, after in found for piece in (*before, *after)), told)
        return stages + [
            SwapTime(
                target=swap.target,
                rule=swap.rule,
                before=total(before, times),
                after=total(after, times),
                macs_before=sum(map(macs_of, before)),
                macs_after=sum(map(macs_of, after)),
            )
            for swap, before, after in found
        ]

    def _pieces(self, swap: Swap, scan: Scan) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """What runs in place of a layer, or of the layers of a block, before a swap and after it."""
        if isinstance(swap, CGhostSwap):
            site = scan.site(swap.target)
            assert site is not None, "a plan's swap has a site"
            around = self.around.get(site.name, ())
            return pieces_of(site, around), pieces_of(site, around, swap)
        rule = rule_of(swap)
        touched = set(rule.touches(swap, scan))
        return self._of_layers(scan, touched), self._of_layers(rule.after(scan, [swap]), touched)

    def _of_layers(self, scan: Scan, names: set[str]) -> tuple[Piece, ...]:
        sites = (site for site in scan.sites if site.name in names)
        return tuple(piece for site in sites for piece in pieces_of(site, self.around.get(site.name, ())))

    def _stage(self, swap: Swap, plan: Plan, scan: Scan) -> SwapTime:
        """A stage by what it saves of the whole network; its own time before is that of its pieces."""
        if swap not in self._stages:
            self.say(f"Measuring {swap.target} as a stage")
            alone = rewrite(self.recording, plan.model_copy(update={"swaps": (swap,)}))
            networks = {"without": self.recording, "with": recorded(alone, self.recording)}
            turns = side_by_side(networks, self.clock.place).ms
            gain = difference(turns["without"], turns["with"])
            homes = swap.touches
            names = {site.name for site in scan.sites if any(within(site.name, home) for home in homes)}
            pieces = self._of_layers(scan, names)
            before = total(pieces, self.clock.times(pieces))
            after = Time(ms=before.ms - gain.ms, noise=gain.noise)
            self._stages[swap] = SwapTime(target=swap.target, rule=swap.rule, before=before, after=after)
        return self._stages[swap]
