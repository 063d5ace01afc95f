"""What was recorded, rewritten: as a whole, or part by part and put together again.

    recorded parts → one scan, one plan → each part rewritten → all put back

Only a part's own ``Ghosted`` speaks in its own names; everything else in those of the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ghostify.arguments import takes
from ghostify.errors import PlanError, RewriteError
from ghostify.names import within
from ghostify.planning import Plan, check, scan_for
from ghostify.rewriting.naming import entered_by, of_part
from ghostify.rewriting.result import Ghosted, a_plan, a_recording
from ghostify.rewriting.rewrite import in_place, replaced, rewrite_run, verify
from ghostify.rules import Choices, Skip
from ghostify.rules.protocol import submodule
from ghostify.running import undisturbed
from ghostify.scanning.parts import merged
from ghostify.tracing import WHOLE, Recording, Traced, recordable, run_watched


@takes(recorded=a_recording, plan=a_plan)
@undisturbed()
def rewrite(recorded: Recording | Traced, plan: Plan, choices: Choices | None = None) -> Ghosted:
    """A copy of the recorded model with the plan's swaps made, checked against what the plan promised.

    A model that was recorded in parts is rewritten part by part, and a part that cannot be is left alone.  The copy
    shares no memory with the original and is in its train/eval mode.  What a plan leaves open, ``choices`` may decide.
    Raises ``PlanError`` when the plan does not fit or changes nothing, ``RewriteError`` when the result is not what was
    planned.
    """
    return rewrite_each(Recording.of(recorded), plan, lambda name, run, own: rewrite_run(run, own, choices))


def rewrite_each(recording: Recording, plan: Plan, how: Callable[[str, Traced, Plan], Ghosted]) -> Ghosted:
    """``rewrite``, with ``how`` to rewrite one part by its own plan: by its name (a whole's is ""), its run, its plan.

    Raises ``PlanError`` when no part would change, ``RewriteError`` when the result does not run.
    """
    if recording.whole:
        return how(WHOLE, recording.whole, plan)
    plan = check(plan, scan_for(recording, plan))
    ghosted: dict[str, Ghosted] = {}
    left = dict(recording.left)
    # One part that cannot be rewritten is no reason to leave the others.
    for name, run in recording.parts.items():
        try:
            ghosted[name] = how(name, run, of_part(plan, name).require_changes())
        except (PlanError, RewriteError) as problem:
            left[name] = str(problem)
    if not ghosted:
        raise PlanError(f"No part of {plan.network} would change: {next(iter(left.values()))}")
    return _whole_of(recording, plan, ghosted, left)


def _whole_of(recording: Recording, plan: Plan, ghosted: dict[str, Ghosted], left: dict[str, str]) -> Ghosted:
    """The model put together of its parts, those that were rewritten and the others, and checked as one."""
    module = _put_back(recording.model, {name: part.module for name, part in ghosted.items()})
    _require_runs_alone(module, recording)
    before = merged(recording, recording.model, {name: part.before for name, part in ghosted.items()})
    after = merged(recording, module, {name: part.after for name, part in ghosted.items()})
    done = _as_done(plan, ghosted, left)
    verify(done, before, after)
    return Ghosted(module, done, before, after, parts=ghosted, left=left)


def rebuilt(module: nn.Module, plan: Plan, example: Any = None) -> nn.Module:
    """A copy of ``module`` with a plan's swaps made, in parts where it says so, and nothing checked.

    Swaps of stages need an ``example``.  Raises ``RewriteError`` for a missing target.
    """
    if plan.parts is None:
        return replaced(module, plan.swaps, example)
    inside = {name: of_part(plan, name).swaps for name in plan.parts.inputs}
    outside = [swap for swap in plan.swaps if not any(within(swap.target, name) for name in inside)]
    # These first, so that parts are recorded on what they will be given.
    module = replaced(module, outside, example) if outside else module
    given = {} if in_place(plan.swaps) else recordable(module, example)
    made = {}
    for name, swaps in inside.items():
        part = submodule(module, name)
        if not in_place(swaps) and name not in given:
            raise RewriteError(f"{name!r} of {type(module).__name__} cannot be recorded, so its stages are not made.")
        made[name] = replaced(part, swaps, given.get(name))
    return _put_back(module, made)


# -- the whole -------------------------------------------------------------------------------------------------


def _as_done(plan: Plan, ghosted: Mapping[str, Ghosted], left: Mapping[str, str]) -> Plan:
    """The plan with what became of each part: a fit may decide more of a swap, and a part may have been refused."""
    swaps = [entered_by(part, swap) for part, one in ghosted.items() for swap in one.plan.swaps]
    skips = [
        Skip(target=swap.target, reason=f"lies in {part!r}, which was left alone: {reason.removesuffix('.')}")
        for part, reason in left.items()
        for swap in plan.swaps
        if within(swap.target, part)
    ]
    # Summed anew, because parts that were left alone cost what they did.
    after = plan.before
    for swap in swaps:
        after = after - swap.before + swap.after
    return plan.model_copy(update={"swaps": tuple(swaps), "skips": (*plan.skips, *skips), "after": after})


def _put_back(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the model with its parts replaced under every name they have."""
    memo = {id(submodule(model, name)): part for name, part in parts.items()}
    return copy.deepcopy(model, memo)


def _require_runs_alone(module: nn.Module, recording: Recording) -> None:
    """Refuse a result that does not run, or runs a module of the original (a forward may hold on to one)."""
    own = {part: name for name, part in recording.model.named_modules()}

    def refuse(part: nn.Module) -> None:
        if part in own:
            raise RewriteError(
                f"A copy of {type(module).__name__} runs {own[part] or 'the whole'!r} of the original, which some "
                "forward holds on to; make it find its layers through self."
            )

    try:
        run_watched(copy.deepcopy(module), recording.example, refuse)
    except RewriteError:
        raise
    except Exception as problem:
        reason = " ".join(str(problem).split())[:300]
        raise RewriteError(f"The rewritten {type(module).__name__} does not run: {reason}") from problem
