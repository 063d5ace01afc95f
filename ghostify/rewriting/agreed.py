"""model + example + what is wanted → (Recording, Plan) that go together: as a whole, or in parts where it resists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ghostify.errors import RewriteError, TraceError
from ghostify.planning import Plan, Refused, check, plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting.naming import left_by
from ghostify.rewriting.parts import rewrite
from ghostify.rewriting.result import Ghosted
from ghostify.rewriting.rewrite import build
from ghostify.rules import Original, Swap, rule_of
from ghostify.running import undisturbed
from ghostify.scanning import Scan, scan
from ghostify.tracing import NoParts, Recording, Traced, reason_of, record_parts, trace


class _Doubtful(Exception):
    """A recording cannot vouch for other inputs, and its rewrite fails because of that."""


@undisturbed()
def agreed(
    model: nn.Module,
    example: Any,
    wanted: GhostSettings | Plan,
    device: torch.device | None = None,
    *,
    fitted: bool = False,
) -> tuple[Recording, Plan]:
    """A network recorded as a whole, or in parts where it resists, and the plan wanted for that.

    Where a fit is to follow (``fitted``), settings leave alone what cannot be fitted; a plan says what it swaps.  A
    network resists where it cannot be recorded, or where its recording cannot vouch for another input and a trial shows
    that it cannot be rewritten.  Raises ``TraceError`` when it does not run, and for lack of parts what the whole
    raises; ``PlanError`` when the plan does not fit or changes nothing.
    """
    if isinstance(wanted, Plan) and wanted.parts:
        return agreed_in_parts(model, example, wanted, wanted.parts.reason, device, fitted=fitted)
    try:
        return _agreed_as_a_whole(model, example, wanted, device, fitted)
    except (_Doubtful, TraceError) as problem:
        try:
            return agreed_in_parts(model, example, wanted, reason_of(problem), device, fitted=fitted)
        except (NoParts, TraceError):
            # A doubt says why parts were tried; what went wrong is the failure behind it.
            raise problem.__cause__ if isinstance(problem, _Doubtful) and problem.__cause__ else problem from None


def agreed_in_parts(
    model: nn.Module,
    example: Any,
    wanted: GhostSettings | Plan,
    reason: str,
    device: torch.device | None = None,
    *,
    fitted: bool = False,
) -> tuple[Recording, Plan]:
    """The parts of a network that resists for a ``reason``, and the plan wanted for them.  Raises as ``agreed``."""
    recording = record_parts(model, example, reason).require_parts()
    return recording, _plan_for(recording, wanted, device, fitted)


def carried_out(
    recording: Recording,
    plan: Plan,
    how: Callable[[Recording, Plan], Ghosted],
    wanted: GhostSettings | Plan,
    device: torch.device | None = None,
    *,
    fitted: bool = False,
    told: Callable[[str], None] = lambda line: None,
) -> Ghosted:
    """What ``how`` makes of a recording by the plan; in parts after all, if only that shows that the whole resists.

    Then it is ``told`` so.
    """
    try:
        return how(recording, plan)
    except RewriteError:
        # Without doubts the recording is true, and its parts would fail alike.
        if not (recording.whole and recording.whole.doubts):
            raise
        reason = recording.whole.doubts[0].removesuffix(".")
    model, example = recording.model, recording.example
    recording, plan = agreed_in_parts(model, example, wanted, reason, device, fitted=fitted)
    told(plan.partly)
    return how(recording, plan)


@undisturbed()
def rehearse(
    recorded: Recording | Traced,
    settings: GhostSettings,
    device: torch.device | None = None,
    *,
    fitted: bool = False,
    refused: Refused | None = None,
) -> Plan:
    """The plan that settings propose for what was recorded, after each swap of a rule that asks for it was built once.

    Some code shows only when it runs that it cannot work with fewer channels; such stages are left alone with the
    reason, and so is, where the network is to be ``fitted``, what cannot be, and what is ``refused``.  Raises
    ``PlanError``.
    """
    recording = Recording.of(recorded)
    seen = scan_for(recording, settings, fitted)
    proposed = plan(seen, settings, device=device, fitted=fitted, refused=refused)
    obstacles: dict[str, str] = {}
    for swap in proposed.swaps:
        if rule_of(swap).rehearsed:
            try:
                _try(recording, seen, swap)  # only to see whether it can be built; the rewrite builds it again
            except RewriteError as problem:
                obstacles[swap.target] = str(problem).removeprefix(f"{swap.target} ").removesuffix(".")
    # Planned anew, because a stage that is left alone leaves its layers to other rules.
    if not obstacles:
        return proposed
    return plan(seen.hindered(obstacles), settings, device=device, fitted=fitted, refused=refused)


def _try(recording: Recording, seen: Scan, swap: Swap) -> None:
    """Build what takes the place of a swap's target.  Raises ``RewriteError`` where it cannot be."""
    if recording.whole:
        build(Original(recording.whole.module, recording.whole, seen), swap)
        return
    part = recording.part_of([swap.target])
    assert part is not None, "a swap lies in a part"
    run = recording.parts[part]
    build(Original(run.module, run, scan(run)), left_by(part, swap))


def _plan_for(recording: Recording, wanted: GhostSettings | Plan, device: torch.device | None, fitted: bool) -> Plan:
    if isinstance(wanted, Plan):
        return check(wanted, scan_for(recording, wanted)).require_changes()
    return rehearse(recording, wanted, device, fitted=fitted).require_changes()


def _agreed_as_a_whole(
    model: nn.Module, example: Any, wanted: GhostSettings | Plan, device: torch.device | None, fitted: bool
) -> tuple[Recording, Plan]:
    run = trace(model, example)
    recording = Recording(model, example, Recording.of(run).parts)
    plan = _plan_for(recording, wanted, device, fitted)
    # A trial takes a whole rewrite, so only doubts are put to it.
    if run.doubts:
        try:
            rewrite(recording, plan)
        except RewriteError as problem:
            raise _Doubtful(run.doubts[0]) from problem
    return recording, plan
