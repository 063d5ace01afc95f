"""A plan without the swaps that do not pay on the clock, and what the rest gives.

A swap pays where what it saves is more than the noise.  Without those that do not, rules propose anew, because what one
rule leaves alone another may take; and at last the whole network is timed, since pieces that are faster are no promise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ghostify.clock.judging import Judge
from ghostify.clock.place import Place
from ghostify.clock.result import Measured, SwapTime
from ghostify.clock.turns import ratio_between
from ghostify.clock.wholes import recorded, side_by_side
from ghostify.errors import PlanError
from ghostify.planning import Plan, check, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting import rehearse, rewrite

_LEAST_OF_ALL = 0.02
"""Share of the network's time that all swaps together must save: two set-ups of one network differ by as much."""
_UNFORCED = "--no-measure swaps it"


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
    """Itself.  Raises ``PlanError`` where the whole is slower by more than the noise, or gains next to nothing."""
    if found.swaps and found.predicted < 1 / (1 - _LEAST_OF_ALL):
        raise PlanError(
            f"The plan for {network} changes nothing, because its {len(found.swaps)} swaps would save "
            f"{1 - 1 / found.predicted:.1%} of the time on {found.place}, which is less than two set-ups of one "
            "network may differ by; --no-measure swaps all the same."
        )
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
