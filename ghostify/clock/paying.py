"""Which swaps of a plan pay on the clock, and the plan of these alone.

    layer, block    the pieces that run in its place, as they are and as the swap leaves them
    stage           the whole network with that one swap beside the whole network without it
    width           nothing by itself: the whole network tells

A swap pays where what it saves is more than the noise.  Without those that do not, rules propose anew, because what one
rule leaves alone another may take; and at last the whole network is timed, since pieces that are faster are no promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from pydantic import BaseModel, ConfigDict

from ghostify.clock.building import macs_of
from ghostify.clock.clock import Clock, Told
from ghostify.clock.piece import Piece, Time, total
from ghostify.clock.pieces import pieces_of
from ghostify.clock.place import Place
from ghostify.clock.surroundings import Surroundings, surroundings_in
from ghostify.clock.turns import difference, ratio_between
from ghostify.clock.wholes import recorded, side_by_side
from ghostify.errors import PlanError
from ghostify.measuring import Comparison
from ghostify.names import within
from ghostify.planning import Plan, check, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting import rehearse, rewrite
from ghostify.rules import CGhostSwap, Swap, by_rule, rule_of
from ghostify.scanning import Scan
from ghostify.tracing import Recording

_CERTAIN = 2.0
"""Standard errors by which a swap must be faster."""
_LEAST = 0.02
"""Share of its time that a swap must save: pieces are no truer to their networks than that."""
_UNFORCED = "--no-measure swaps it"
Say = Callable[[str], None]


class SwapTime(BaseModel):
    """What one swap gives on the clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    rule: str
    before: Time
    after: Time
    macs_before: int = 0
    macs_after: int = 0
    """Multiply-adds as the layers run; 0 where they were timed in the whole network."""

    @property
    def saves(self) -> Time:
        return self.before - self.after

    @property
    def pays(self) -> bool:
        """Whether it is faster, by more than the noise."""
        return self.saves.ms > max(_CERTAIN * self.saves.noise, _LEAST * self.before.ms)


class Measured(BaseModel):
    """What a plan gives on the clock: each swap, and the whole network in its inference form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: Place
    swaps: tuple[SwapTime, ...]
    whole: Comparison
    """The original beside the rewritten network, both in their inference form."""
    low: float
    high: float
    """Between these lies the median ratio in 95 of 100 cases."""

    def of(self, rule: str, target: str) -> SwapTime | None:
        """The time of one swap, where it has one of its own."""
        return next((swap for swap in self.swaps if (swap.rule, swap.target) == (rule, target)), None)

    @property
    def predicted(self) -> float:
        """How much faster the whole is by what its swaps save."""
        before = self.whole.before.median_ms
        return before / (before - sum(swap.saves.ms for swap in self.swaps))


@dataclass
class Judge:
    """What swaps of a recorded network give on a clock."""

    recording: Recording
    clock: Clock
    told: Told = lambda done, total: None
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
        times = self.clock.times((piece for _, before, after in found for piece in (*before, *after)), self.told)
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


def paying(
    judge: Judge,
    settings: GhostSettings,
    proposed: Plan,
    *,
    device: torch.device | None = None,
    fitted: bool = False,
) -> tuple[Plan, tuple[SwapTime, ...]]:
    """The plan by ``settings`` without the swaps that do not pay, beginning with what was ``proposed``; their times.

    Raises ``PlanError`` where none pays.
    """
    scan, plan = scan_for(judge.recording, settings, fitted), proposed
    refused: dict[tuple[str, str], str] = {}
    while True:
        times = judge.times(plan, scan)
        losing = [time for time in times if not time.pays]
        if not losing:
            return check(plan, scan_for(judge.recording, plan)), tuple(times)
        refused |= {(time.rule, time.target): _reason(time, judge.clock.place) for time in losing}
        plan = rehearse(judge.recording, settings, device, fitted=fitted, refused=refused)
        if not plan.swaps:
            raise _nothing_pays(plan, times, judge.clock.place)


def measured(judge: Judge, plan: Plan, swaps: Sequence[SwapTime]) -> Measured:
    """What a plan gives on the clock: ``swaps``, as they were measured, and the whole network.

    Weights do not matter to time, so none are fitted to what is timed here.
    """
    judge.say(f"Measuring the network as it is and as planned, on {judge.clock.place}")
    networks = {"original": judge.recording, "rewritten": recorded(rewrite(judge.recording, plan), judge.recording)}
    timings = side_by_side(networks, judge.clock.place)
    low, high = ratio_between(timings.ms["original"], timings.ms["rewritten"])
    whole = timings.compare("original", "rewritten")
    return Measured(place=judge.clock.place, swaps=tuple(swaps), whole=whole, low=low, high=high)


def require_faster(found: Measured, network: str) -> Measured:
    """Itself.  Raises ``PlanError`` where the whole network is slower by more than the noise."""
    if found.high >= 1:
        return found
    raise PlanError(
        f"The plan for {network} changes nothing, because the whole network would be slower: {found.whole} in its "
        f"inference form on {found.place}; --no-measure swaps all the same."
    )


def _reason(time: SwapTime, place: Place) -> str:
    """Why a swap is left out, as the end of a sentence."""
    slower = "would be slower" if time.saves.ms < 0 else "would be no faster"
    return f"{slower}: {time.before} as it is, {time.after} then, {place} ({_UNFORCED})"


def _nothing_pays(plan: Plan, times: Sequence[SwapTime], place: Place) -> PlanError:
    best = max(times, key=lambda time: time.saves.ms / (time.before.ms or 1))
    return PlanError(
        f"The plan for {plan.network} changes nothing, because no swap is faster on {place}: {best.target!r}, which "
        f"gains most, takes {best.before} as it is and {best.after} then; --no-measure swaps all the same."
    )
