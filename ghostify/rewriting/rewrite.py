"""A network recorded in one run, rewritten by a plan.

A rewrite is a deep copy in which some modules are remembered as their replacements: ``copy.deepcopy``'s own memo then
puts the new module wherever the old one was referred to, under every parent that shares it, and leaves every other
name, weight, hook and mode as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from ghostify.costs import Cost
from ghostify.errors import RewriteError, TraceError
from ghostify.names import overlap, within
from ghostify.planning import Plan, check, scan_for
from ghostify.rewriting.result import Ghosted
from ghostify.rules import Choices, Original, Swap, by_rule, rule_of
from ghostify.scanning import Scan, scan_result
from ghostify.tracing import Traced, private_copy, recorded_shapes, trace


def rewrite_run(traced: Traced, plan: Plan, choices: Choices | None = None) -> Ghosted:
    """A copy of the traced module with the plan's swaps made, checked against what the plan promised.

    The copy shares no memory with the original and is in its train/eval mode.  Raises ``PlanError`` when the plan does
    not fit or changes nothing, ``RewriteError`` when the result is not what was planned.
    """
    before = scan_for(traced, plan)
    plan = check(plan, before).require_changes()
    original = Original(traced.module, traced, before, choices or Choices())
    # deepcopy looks into its memo before it copies: what is found there is put in place under every name
    module = copy.deepcopy(traced.module, _replacements(original, plan.swaps))
    run = _checked(module, traced, plan, before)
    return Ghosted(module, plan, before, scan_result(run), run=run)


def replaced(module: nn.Module, swaps: Sequence[Swap], example: Any = None) -> nn.Module:
    """A copy of ``module`` with the swaps made and nothing checked; later ones may concern what earlier ones made.

    Swaps of stages need an ``example`` to record the module with.  Raises ``RewriteError`` for a missing target.
    """
    module = private_copy(module, share_parameters=False)
    for group in _in_turn(swaps):
        # Recorded anew for each group, since stages are found in a graph, and the last group changed it.
        traced = None if in_place(group) else trace(module, example, verify=False)
        original = Original(traced.module if traced else module, traced)
        module = copy.deepcopy(original.module, _replacements(original, group))
    return module


def build(original: Original, swap: Swap) -> dict[int, Any]:
    """By the ``id`` of what one swap replaces, its replacement.  Raises ``RewriteError`` where it cannot be built."""
    return rule_of(swap).replacements(original, [swap], {})


def _replacements(original: Original, swaps: Sequence[Swap]) -> dict[int, Any]:
    """By the ``id`` of what is replaced, its replacement; a later rule builds on what an earlier one put there."""
    memo: dict[int, Any] = {}
    for rule, own in by_rule(swaps):
        memo |= rule.replacements(original, own, memo)
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


def _checked(module: nn.Module, traced: Traced, plan: Plan, before: Scan) -> Traced:
    """The run of a result, which must go the way the original went, and cost what was planned.

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


def _judged(again: Traced, original: Traced, plan: Plan, before: Scan) -> Traced:
    """A recorded result as it is.  Raises ``RewriteError`` where it is not what was planned."""
    _require_same_shapes(again, original)
    if in_place(plan.swaps):
        _require_same_course(original, again, [swap.target for swap in plan.swaps])
    verify(plan, before, scan_result(again))
    return again


def _require_same_shapes(again: Traced, original: Traced) -> None:
    if again.output_shapes == original.output_shapes:
        return
    name = type(again.module).__name__
    if original.doubts:
        raise RewriteError(
            f"The rewritten {name} gives outputs of other shapes, because they depend on values "
            f"({original.doubts[0]}); rewrite the parts that do not: ghostify.convert(model, example)."
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
        found = counted(swap, before, after)
        if found not in (None, swap.after):
            raise RewriteError(
                f"{swap.target} was planned to cost {swap.after} and counts {found}; "
                "this is a defect of ghostify, please report the model."
            )
    if after.cost != plan.after:
        raise RewriteError(
            f"{after.network} was planned to cost {plan.after} and counts {after.cost}; "
            "this is a defect of ghostify, please report the model."
        )


def counted(swap: Swap, before: Scan, after: Scan) -> Cost | None:
    """What a swap's target costs after the rewrite, by count; of a stage, the first block as it was.

    None where only the swaps of its rule together can be counted.
    """
    return rule_of(swap).counted(swap, before, after)
