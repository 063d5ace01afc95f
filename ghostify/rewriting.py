"""Plan → Ghosted.  The only place that edits a model, and it edits a copy.

A rewrite is a deep copy in which some modules are remembered as their replacements: ``copy.deepcopy``'s own memo then
puts the new module wherever the old one was referred to, under every parent that shares it, and leaves every other
name, weight, hook and mode as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ghostify.errors import RewriteError
from ghostify.planning import Plan, check
from ghostify.rules import RULES, Swap
from ghostify.scanning import Scan, scan
from ghostify.tracing import Traced, trace


@dataclass
class Ghosted:
    """A rewritten module, the plan that made it, and the scans of the network before and after."""

    module: nn.Module
    plan: Plan
    before: Scan
    after: Scan

    def __str__(self) -> str:
        return self.plan.table().title


def rewrite(traced: Traced, plan: Plan) -> Ghosted:
    """A copy of the traced module with the plan's swaps made, checked against what the plan promised.

    The copy shares no memory with the original and is in its train/eval mode.  Raises ``PlanError`` when the plan does
    not fit or changes nothing, ``RewriteError`` when the result is not what was planned.
    """
    before = scan(traced)
    plan = check(plan, before).require_changes()
    module = replaced(traced.module, plan.swaps)
    after = scan(_traced_again(module, traced))
    _verify(plan, after)
    return Ghosted(module, plan, before, after)


def replaced(module: nn.Module, swaps: Sequence[Swap]) -> nn.Module:
    """A copy of ``module`` with the swaps made and nothing checked.  Raises ``RewriteError`` for a missing target."""
    memo: dict[int, Any] = {}
    for swap in swaps:
        try:
            old = module.get_submodule(swap.target)
        except AttributeError:
            raise RewriteError(f"{type(module).__name__} has no module {swap.target!r} to be replaced.") from None
        memo[id(old)] = RULES[swap.rule].build(old, swap)
    return copy.deepcopy(module, memo)


def _traced_again(module: nn.Module, original: Traced) -> Traced:
    example = {**original.kwargs} if original.kwargs and not original.args else original.args
    again = trace(module, example, verify=False)
    if again.output_shapes != original.output_shapes:
        raise RewriteError(
            f"The rewritten {type(module).__name__} gives outputs of {again.output_shapes}, "
            f"the original of {original.output_shapes}; this is a defect of ghostify, please report the model."
        )
    return again


def _verify(plan: Plan, after: Scan) -> None:
    for swap in plan.swaps:
        counted = after.within(swap.target)
        if counted != swap.after:
            raise RewriteError(
                f"{swap.target} was planned to cost {swap.after} and counts {counted}; "
                "this is a defect of ghostify, please report the model."
            )
    if after.cost != plan.after:
        raise RewriteError(
            f"{after.network} was planned to cost {plan.after} and counts {after.cost}; "
            "this is a defect of ghostify, please report the model."
        )
