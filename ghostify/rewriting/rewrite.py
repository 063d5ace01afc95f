"""A network recorded as a whole, rewritten by a plan.

A rewrite is a deep copy in which some modules are remembered as their replacements: ``copy.deepcopy``'s own memo then
puts the new module wherever the old one was referred to, under every parent that shares it, and leaves every other
name, weight, hook and mode as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ghostify.arguments import instance, takes
from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError, TraceError
from ghostify.fit_result import Fit
from ghostify.names import overlap, within
from ghostify.planning import Plan, check, plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rules import Choices, Original, Swap, in_order, rule_of
from ghostify.running import undisturbed
from ghostify.scanning import Scan, scan
from ghostify.tracing import Traced, private_copy, recorded_shapes, trace


@dataclass
class Ghosted:
    """A rewritten module, the plan that made it, the scans of the network before and after, and what was fitted."""

    module: nn.Module
    plan: Plan
    before: Scan
    after: Scan
    fit: Fit | None = None
    notes: tuple[str, ...] = ()
    """What a reader of its report must know."""

    def __str__(self) -> str:
        return self.plan.table().title


def rewritten(value: Any) -> Ghosted:
    """A rewritten network, or the whole of one rewritten part by part.  Raises ``RewriteError``."""
    value = getattr(value, "whole", value)
    return instance(Ghosted, maker="ghostify.convert(model, example)", error=RewriteError)(value)


a_recording = instance(Traced, maker="ghostify.trace(model, example)", error=TraceError)
a_plan = instance(
    Plan, maker="ghostify.plan(ghostify.scan(model, example)) or ghostify.read_plan(path)", error=PlanError
)


@takes(traced=a_recording, plan=a_plan)
@undisturbed()
def rewrite(traced: Traced, plan: Plan, choices: Choices | None = None) -> Ghosted:
    """A copy of the traced module with the plan's swaps made, checked against what the plan promised.

    The copy shares no memory with the original and is in its train/eval mode.  Raises ``PlanError`` when the plan does
    not fit or changes nothing, ``RewriteError`` when the result is not what was planned.
    """
    before = scan_for(traced, plan)
    plan = check(plan, before).require_changes()
    original = Original(traced.module, traced, before, choices or Choices())
    # deepcopy looks into its memo before it copies: what is found there is put in place under every name
    module = copy.deepcopy(traced.module, _replacements(original, plan.swaps))
    return Ghosted(module, plan, before, _checked(module, traced, plan, before))


@undisturbed()
def rehearse(
    traced: Traced, settings: GhostSettings, device: torch.device | None = None, *, fitted: bool = False
) -> Plan:
    """The plan that settings propose for a network, after its stages were built once.

    Some code shows only when it runs that it cannot work with fewer channels; such stages are left alone with the
    reason, and so is, where the network is to be ``fitted``, what cannot be.  Raises ``PlanError``.
    """
    seen = scan_for(traced, settings, fitted)
    original = Original(traced.module, traced, seen)
    return rehearsed(seen, settings, lambda swap: build(original, swap), device, fitted=fitted)


def rehearsed(
    seen: Scan,
    settings: GhostSettings,
    build: Callable[[Swap], Any],
    device: torch.device | None = None,
    *,
    fitted: bool = False,
) -> Plan:
    """The plan for a scan, after each swap of a rule that asks for it was built once."""
    proposed = plan(seen, settings, device=device, fitted=fitted)
    obstacles: dict[str, str] = {}
    for swap in proposed.swaps:
        if rule_of(swap).rehearsed:
            try:
                build(swap)  # only to see whether it can be built; the rewrite builds it again
            except RewriteError as problem:
                obstacles[swap.target] = str(problem).removeprefix(f"{swap.target} ").removesuffix(".")
    return plan(seen.hindered(obstacles), settings, device=device, fitted=fitted) if obstacles else proposed


def replaced(module: nn.Module, swaps: Sequence[Swap], example: Any = None) -> nn.Module:
    """A copy of ``module`` with the swaps made and nothing checked; later ones may concern what earlier ones made.

    Swaps of stages need an ``example`` to record the module with.  Raises ``RewriteError`` for a missing target.
    """
    module = private_copy(module, share_parameters=False)
    for group in _in_turn(swaps):
        traced = None if in_place(group) else trace(module, example, verify=False)
        original = Original(traced.module if traced else module, traced)
        module = copy.deepcopy(original.module, _replacements(original, group))
    return module


def build(original: Original, swap: Swap) -> dict[int, Any]:
    """By the ``id`` of what one swap replaces, its replacement.  Raises ``RewriteError`` where it cannot be built."""
    return rule_of(swap).replacements(original, swap, {})


def _replacements(original: Original, swaps: Sequence[Swap]) -> dict[int, Any]:
    """By the ``id`` of what is replaced, its replacement; a later rule builds on what an earlier one put there."""
    memo: dict[int, Any] = {}
    for swap in in_order(swaps):
        memo |= rule_of(swap).replacements(original, swap, memo)
    return memo


def in_place(swaps: Sequence[Swap]) -> bool:
    """Whether swaps need no recorded run, because they replace a module by what that module tells."""
    return all(rule_of(swap).in_place for swap in swaps)


def _in_turn(swaps: Sequence[Swap]) -> list[list[Swap]]:
    """Swaps in groups that can be made at once: of one rule, and none concerns what another makes or replaces."""
    groups: list[list[Swap]] = []
    touched: list[str] = []
    for swap in swaps:
        alike = groups and groups[-1][0].rule == swap.rule
        if not alike or any(overlap(one, other) for one in swap.touches for other in touched):
            groups.append([])
            touched = []
        groups[-1].append(swap)
        touched.extend(swap.touches)
    return groups


def _checked(module: nn.Module, traced: Traced, plan: Plan, before: Scan) -> Scan:
    """The scan of a result, which must run, go the way the original went, and cost what was planned.

    All that can be told without numbers, unless the network decides by them.  Where it seems not to be so, a run with
    numbers has the last word, for code may do other things on the meta device.
    """
    if not traced.doubts:
        with suppress(RewriteError, TraceError):
            return _judged(recorded_shapes(module, traced.example, like=traced), traced, plan, before)
    try:
        again = trace(module, traced.example, verify=False)
    except TraceError as problem:
        raise RewriteError(f"The rewritten network does not run: {problem}") from problem
    return _judged(again, traced, plan, before)


def _judged(again: Traced, original: Traced, plan: Plan, before: Scan) -> Scan:
    """The scan of a recorded result.  Raises ``RewriteError`` where it is not what was planned."""
    _require_same_shapes(again, original)
    if in_place(plan.swaps):
        _require_same_course(original, again, [swap.target for swap in plan.swaps])
    after = scan(again)
    verify(plan, before, after)
    return after


def _require_same_shapes(again: Traced, original: Traced) -> None:
    if again.output_shapes == original.output_shapes:
        return
    name = type(again.module).__name__
    if original.doubts:
        raise RewriteError(
            f"The rewritten {name} gives outputs of other shapes, because they depend on values "
            f"({original.doubts[0]}); rewrite the parts that do not: ghostify.convert_parts."
        )
    raise RewriteError(
        f"The rewritten {name} gives outputs of {again.output_shapes}, "
        f"the original of {original.output_shapes}; this is a defect of ghostify, please report the model."
    )


def _require_same_course(original: Traced, again: Traced, targets: Sequence[str]) -> None:
    """Refuse a rewrite after which anything but the swapped modules computes something else.

    Code may ask what its layers are, and go another way where one is of another class.
    """
    was, now = (_course(traced, targets) for traced in (original, again))
    if was == now:
        return
    index = next((i for i, (one, other) in enumerate(zip(was, now, strict=False)) if one != other), len(was))
    # where one course is the beginning of the other, what follows in the longer one tells the module
    longer = was if index < len(was) else now
    home = (longer[index] if index < len(longer) else was[-1])[0]
    raise RewriteError(
        f"{home or type(again.module).__name__} goes another way once layers are ghost modules, so the result would "
        "compute something else; exclude the layers it asks about."
    )


def _course(traced: Traced, targets: Sequence[str]) -> list[tuple[str, str]]:
    """The calls outside of ``targets``, in order: the module each is made in, and what is called."""
    calls = [
        (str(node.meta.get("module", "")), str(node.target))
        for node in traced.graph.nodes
        if node.op.startswith("call_")
    ]
    return [call for call in calls if not any(within(name, target) for name in call for target in targets)]


def verify(plan: Plan, before: Scan, after: Scan) -> None:
    """Refuse a result in which a swap, or the whole, costs anything but what was planned."""
    for swap in plan.swaps:
        found, promised = counted(swap, before, after), swap.after + _change_inside(swap, plan.swaps, before)
        if found != promised:
            raise RewriteError(
                f"{swap.target} was planned to cost {promised} and counts {found}; "
                "this is a defect of ghostify, please report the model."
            )
    if after.cost != plan.after:
        raise RewriteError(
            f"{after.network} was planned to cost {plan.after} and counts {after.cost}; "
            "this is a defect of ghostify, please report the model."
        )


def counted(swap: Swap, before: Scan, after: Scan) -> Cost:
    """What a swap's target costs after the rewrite, by count; of a stage, the first block as it was."""
    return rule_of(swap).counted(swap, before, after)


def _change_inside(swap: Swap, swaps: Sequence[Swap], before: Scan) -> Cost:
    """What later swaps change inside of what one made; nothing, where its rule closes what it makes."""
    rule = rule_of(swap)
    if not rule.opens:
        return Cost()
    inside = [other for other in swaps if other.rule != swap.rule and rule.holds(swap, before, other.target)]
    return sum((other.after - other.before for other in inside), Cost())
