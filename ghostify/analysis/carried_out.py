"""What a run's plan made of each layer, and under a budget what it chose among, beside what was found of the layer."""

from __future__ import annotations

from ghostify.analysis.findings import LayerRedundancy
from ghostify.analysis.result import Analysis
from ghostify.budget_result import Budgeted, Chosen
from ghostify.names import within
from ghostify.planning import Plan


def with_plan(analysis: Analysis, plan: Plan, budget: Budgeted | None) -> Analysis:
    """The analysis of the network that a run began with, with the plan that the run carried out."""
    choices = {one.target: one for one in budget.choices} if budget else {}
    layers = tuple(_with_form(layer, plan, choices.get(layer.name)) for layer in analysis.layers)
    return analysis.model_copy(update={"layers": layers, "carried_out": True, "budget": budget})


def _with_form(layer: LayerRedundancy, plan: Plan, chosen: Chosen | None) -> LayerRedundancy:
    # A layer may be a ghost in a block that became thinner: both are said, the larger thing first.
    swaps = sorted((swap for swap in plan.swaps if within(layer.name, swap.target)), key=lambda swap: len(swap.target))
    form = ", ".join(swap.settings for swap in swaps)
    return layer.model_copy(update={"form": form, "chosen": chosen})
