"""The noun: how redundant the feature maps of each layer and stage of a network are, and what that allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghostify.analysis.columns import layer_columns
from ghostify.analysis.findings import LayerRedundancy, StageRedundancy, Value
from ghostify.budget_result import Budgeted
from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.planning import Plan
from ghostify.recipe import read_yaml, validated
from ghostify.tables import Table, quantity, ratio

FORMAT = 1
NAME = "analysis.json"
"""Of the file in a folder that holds an analysis."""


class Analysis(Value):
    """The redundancy report of one network."""

    format: int = FORMAT
    network: str
    source: str = ""
    inputs: tuple[tuple[int, ...], ...]
    trained: bool | None = None
    """Whether its weights are trained; None where nobody knows."""
    images: int
    data: str = ""
    cost: Cost
    layers: tuple[LayerRedundancy, ...]
    stages: tuple[StageRedundancy, ...] = ()
    skipped: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """Layers that were not looked at, and why."""
    plan: Plan
    """The advice as a plan."""
    carried_out: bool = False
    """Whether this is the network that a run began with, and the layers say what its plan made of them."""
    budget: Budgeted | None = None
    """What was asked of that plan, and what came of it."""
    seconds: float = 0.0
    complete: bool = True
    """False where it was interrupted: then the layers are those that were done."""
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """A line for each layer."""
        columns = [column for column in layer_columns(self.layers) if column.printed]
        rows = [[column.shown(layer) for column in columns] for layer in self.layers]
        title = (
            f"{self.network}: redundancy of {len(self.layers)} layers, {self.images} images; as advised MACs "
            f"{quantity(self.plan.before.macs)} → {quantity(self.plan.after.macs)} "
            f"({ratio(self.plan.before.macs, self.plan.after.macs)})"
        )
        note = (
            "Errors are mean squared errors over the variance: 0 is exact, 1 no better than a constant.\n"
            "d: of each map as the best d x d filter of one other map; s: of the ghosts, if n/s maps are kept."
        )
        heads, left = [column.head for column in columns], frozenset(column.head for column in columns if column.left)
        return Table(title, heads, rows, left, "\n".join([note, *self.warnings]))

    def stage_table(self) -> Table:
        """A line for each stage."""
        ratios = sorted({point.ratio for stage in self.stages for point in stage.curve})
        rows = [
            [
                stage.name,
                stage.geometry,
                f"{stage.share:.1%}",
                *_cells({point.ratio: point.mix for point in stage.curve}, ratios),
                stage.advice.short,
            ]
            for stage in self.stages
        ]
        columns = ["stage", "blocks", "MACs", *(f"λ={value:g}" for value in ratios), "advice"]
        note = (
            "Errors of the λ-share of the last block's channels that the first block's output predicts best, by a 1x1 "
            "convolution and the mix operation."
        )
        return Table("Stages", columns, rows, frozenset({"blocks", "advice"}), note)

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing any of it."""
        found = []
        if self.trained is False:
            found.append("THE WEIGHTS ARE RANDOM: this says nothing about a trained network.")
        if not self.complete:
            found.append("It was interrupted: only the layers that were done are here.")
        return [*found, *self.notes]


def read_analysis(path: str | Path) -> Analysis:
    """The analysis in a JSON file, or in a folder that ``analyze`` wrote.  Raises ``PlanError``."""
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    read = validated(Analysis, read_yaml(path, PlanError, "Analysis"), f"Analysis {str(path)!r}", PlanError)
    if read.format != FORMAT:
        raise PlanError(f"Analysis {str(path)!r} has format {read.format}; this version reads format {FORMAT}.")
    return read


def _cells(errors: Mapping[Any, float], keys: Sequence[Any]) -> list[str]:
    return [f"{errors[key]:.2f}" if key in errors else "" for key in keys]
