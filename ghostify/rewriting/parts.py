"""A network that resists as a whole, rewritten part by part, and put together again.

    model + example → its largest parts that can be recorded → one scan, one plan → each part rewritten → all put back

Only a part's own ``Ghosted`` speaks in its own names; everything else in those of the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ghostify.errors import PlanError, RewriteError, TraceError
from ghostify.names import within
from ghostify.planning import Plan, check, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting.naming import entered_by, of_part
from ghostify.rewriting.recorded import NoParts, TracedParts, reason_of, run_told, trace_parts
from ghostify.rewriting.rewrite import Ghosted, in_place, rehearse, replaced, rewrite, verify
from ghostify.rules import Skip
from ghostify.rules.protocol import submodule
from ghostify.running import undisturbed
from ghostify.tracing import Traced, recordable, trace


@dataclass
class Parts:
    """A model of which some parts were rewritten: the whole, each part's outcome, and those left as they are."""

    whole: Ghosted
    """All of it, in the names of the whole: what ``compare`` and ``save`` take."""
    ghosted: dict[str, Ghosted]
    """By qualified name, each in its own names."""
    left: dict[str, str]
    """By qualified name, why."""

    @property
    def module(self) -> nn.Module:
        """The whole."""
        return self.whole.module

    def __str__(self) -> str:
        lines = [f"{name or 'the whole'}: {ghosted}" for name, ghosted in self.ghosted.items()]
        return "\n".join(
            [*lines, *(f"{name or 'the whole'}: left alone: {reason}" for name, reason in self.left.items())]
        )


@undisturbed()
def agreed(
    model: nn.Module,
    example: Any,
    wanted: GhostSettings | Plan,
    device: torch.device | None = None,
    *,
    fitted: bool = False,
) -> tuple[Traced | TracedParts, Plan]:
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
            raise problem.__cause__ if isinstance(problem, _Doubtful) and problem.__cause__ else problem from None


def agreed_in_parts(
    model: nn.Module,
    example: Any,
    wanted: GhostSettings | Plan,
    reason: str,
    device: torch.device | None = None,
    *,
    fitted: bool = False,
) -> tuple[TracedParts, Plan]:
    """The parts of a network that resists for a ``reason``, and the plan wanted for them.  Raises as ``agreed``."""
    recorded = trace_parts(model, example, reason).require_parts()
    plan = recorded.check(wanted) if isinstance(wanted, Plan) else recorded.plan(wanted, device, fitted=fitted)
    return recorded, plan.require_changes()


@undisturbed()
def rewrite_parts(
    recorded: TracedParts, plan: Plan, how: Callable[[str, Traced, Plan], Ghosted] | None = None
) -> Parts:
    """A copy of the model with the plan's swaps made part by part, checked as ``rewrite`` checks each.

    ``how`` rewrites one part by its own plan (None: ``rewrite``); a part that cannot be rewritten is left alone.
    Raises ``PlanError`` when no part would change, ``RewriteError`` when the result does not run.
    """
    plan = recorded.check(plan)
    ghosted: dict[str, Ghosted] = {}
    left = dict(recorded.left)
    for name, traced in recorded.parts.items():
        try:
            own = of_part(plan, name).require_changes()
            ghosted[name] = how(name, traced, own) if how else rewrite(traced, own)
        except (PlanError, RewriteError) as problem:
            left[name] = str(problem)
    if not ghosted:
        raise PlanError(f"No part of {plan.network} would change: {next(iter(left.values()))}")
    module = _put_back(recorded.model, {name: part.module for name, part in ghosted.items()})
    _require_runs_alone(module, recorded)
    before = recorded.scanned_with(recorded.model, {name: part.before for name, part in ghosted.items()})
    after = recorded.scanned_with(module, {name: part.after for name, part in ghosted.items()})
    done = _as_done(plan, ghosted, left)
    verify(done, before, after)
    return Parts(Ghosted(module, done, before, after), ghosted, left)


def rebuilt(module: nn.Module, plan: Plan, example: Any = None) -> nn.Module:
    """A copy of ``module`` with a plan's swaps made, in parts where it says so, and nothing checked.

    Swaps of stages need an ``example``.  Raises ``RewriteError`` for a missing target.
    """
    if plan.parts is None:
        return replaced(module, plan.swaps, example)
    inside = {name: of_part(plan, name).swaps for name in plan.parts.inputs}
    outside = [swap for swap in plan.swaps if not any(within(swap.target, name) for name in inside)]
    module = replaced(module, outside, example) if outside else module
    given = {} if in_place(plan.swaps) else recordable(module, example)
    made = {}
    for name, swaps in inside.items():
        part = submodule(module, name)
        if not in_place(swaps) and name not in given:
            raise RewriteError(f"{name!r} of {type(module).__name__} cannot be recorded, so its stages are not made.")
        made[name] = replaced(part, swaps, given.get(name))
    return _put_back(module, made)


def _agreed_as_a_whole(
    model: nn.Module, example: Any, wanted: GhostSettings | Plan, device: torch.device | None, fitted: bool
) -> tuple[Traced, Plan]:
    traced = trace(model, example)
    plan = (
        rehearse(traced, wanted, device, fitted=fitted)
        if isinstance(wanted, GhostSettings)
        else check(wanted, scan_for(traced, wanted))
    )
    plan.require_changes()
    if traced.doubts:
        try:
            rewrite(traced, plan)
        except RewriteError as problem:
            raise _Doubtful(traced.doubts[0]) from problem
    return traced, plan


class _Doubtful(Exception):
    """A recording cannot vouch for other inputs, and its rewrite fails for that."""


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
    after = plan.before
    for swap in swaps:
        after = after - swap.before + swap.after
    return plan.model_copy(update={"swaps": tuple(swaps), "skips": (*plan.skips, *skips), "after": after})


def _put_back(model: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the model with its parts replaced under every name they have."""
    memo = {id(submodule(model, name)): part for name, part in parts.items()}
    return copy.deepcopy(model, memo)


def _require_runs_alone(module: nn.Module, recorded: TracedParts) -> None:
    """Refuse a result that does not run, or runs a module of the original (a forward may hold on to one)."""
    own = {part: name for name, part in recorded.model.named_modules()}

    def refuse(part: nn.Module) -> None:
        if part in own:
            raise RewriteError(
                f"A copy of {type(module).__name__} runs {own[part] or 'the whole'!r} of the original, which some "
                "forward holds on to; make it find its layers through self."
            )

    try:
        run_told(copy.deepcopy(module), recorded.example, refuse)
    except RewriteError:
        raise
    except Exception as problem:
        reason = " ".join(str(problem).split())[:300]
        raise RewriteError(f"The rewritten {type(module).__name__} does not run: {reason}") from problem
