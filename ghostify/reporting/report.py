"""The Report noun.  Theory (Eq. 4, 5, 13 and 14), count and clock are three numbers, always side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from ghostify.arguments import instance, or_none, takes
from ghostify.budget_result import Budgeted
from ghostify.cheap import Cheap
from ghostify.clock import Measured
from ghostify.costs import Cost
from ghostify.errors import DataError, GhostifyError
from ghostify.fit_result import Fit
from ghostify.inference import Optimized
from ghostify.measuring import Accuracy, Comparison, Score
from ghostify.measuring.span import Outside
from ghostify.recipe import Stream
from ghostify.reporting.by_class import class_table
from ghostify.reporting.clocked import columns_of, times_of, whole_row, why
from ghostify.reporting.forms import InferenceReport, inference_report
from ghostify.rewriting import Ghosted, rewritten
from ghostify.rules import CGhostSwap, GGhostSwap, ThinSwap, by_rule
from ghostify.rules.rows import BlockReport, LayerReport, Ratios, Rows, StageReport
from ghostify.tables import Table, quantity, ratio

STAGES = {"original": "original", "converted": "right after conversion", "finetuned": "after fine-tuning"}
"""The moments at which accuracy is measured, in order."""


class Report(BaseModel):
    """What a rewrite did to a network.  ``theory`` of the whole leaves the untouched layers as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[LayerReport, ...]
    stages: tuple[StageReport, ...] = ()
    blocks: tuple[BlockReport, ...] = ()
    width: float | None = None
    """The share that was kept of every layer, where the network was narrowed as a whole."""
    stream: Stream = "scaled"
    """Whether channels that are added to each other were scaled, too, or all kept."""
    before: Cost
    after: Cost
    theory: Ratios
    latency: Comparison | None = None
    accuracy: dict[str, Accuracy] = {}
    """By stage: original, converted, finetuned."""
    classes: tuple[str, ...] = ()
    """What the classes are called, where accuracy was measured."""
    scores: dict[str, Score] = {}
    """The same by a metric of the user's, in place of accuracy."""
    fit: Fit | None = None
    """How the weights were fitted, where they were."""
    budget: Budgeted | None = None
    """What was asked of a budget, what its plan promised and what came of it, where there was one."""
    agreement: float | None = None
    """Share of test images that the network, right after conversion, put where the original does."""
    outside: Outside | None = None
    """How many test inputs lead the network beyond what it was fitted to."""
    inference: InferenceReport | None = None
    """What the inference form is, where the network is in it."""
    clock: Measured | None = None
    """What the swaps give on the clock, where that decided which are made."""
    notes: tuple[str, ...] = ()

    def summary(self) -> Table:
        """The whole network in a few rows."""
        rows = [
            _cost_row("params", self.before.params, self.after.params, self.theory.r_c, self.theory.approx_r_c),
            _cost_row("MACs", self.before.macs, self.after.macs, self.theory.r_s, self.theory.approx_r_s),
            _cost_row("activations", self.before.acts, self.after.acts),
        ]
        if self.latency:
            rows.append(_latency_row(self.latency, self.theory))
        if self.clock:
            rows.append(whole_row(self.clock, self.theory))
        measured: list[tuple[str, Accuracy | Score]] = [*self.accuracy.items(), *self.scores.items()]
        rows += [
            [f"{found.name} {STAGES[stage]}", *_in_column(stage, found.shown), "", "", ""] for stage, found in measured
        ]
        if self.agreement is not None:
            rows.append(["agreement right after conversion", "", f"{100 * self.agreement:.2f}%", "", "", ""])
        if self.outside is not None:
            seen = f"{self.outside.outside:,} of {self.outside.total:,}"
            rows.append(["test inputs outside calibration", "", seen, "", "", ""])
        inputs = " and ".join("x".join(map(str, shape)) for shape in self.inputs)
        title = f"{self.network} on {inputs}: {self._became}"
        return Table(
            title,
            ["", "original", "ghosted", "ratio", "theory", "approx."],
            rows,
            note="\n".join([*self.notes, *why(self.clock)]),
        )

    @property
    def _became(self) -> str:
        layers = f"{len(self.layers)} layers became C-Ghost modules" if self.layers else ""
        stages = f"{len(self.stages)} stages became G-Ghost stages" if self.stages else ""
        widths = sorted({block.width for block in self.blocks})
        blocks = f"{len(self.blocks)} blocks were thinned inside to {_listed(widths)}" if self.blocks else ""
        scaled = "every layer was scaled" if self.stream == "scaled" else "every block was thinned inside"
        scaled = f"{scaled} to {self.width:g}" if self.width else ""
        return ", ".join(filter(None, (blocks, stages, layers, scaled))) or "no layer was replaced"

    def forms(self) -> list[Table]:
        """What was asked of a budget beside what came of it, and the form that trains beside the one that runs."""
        return [*self._budget(), *self._inference()]

    def _budget(self) -> list[Table]:
        return [self.budget.table()] if self.budget else []

    def _inference(self) -> list[Table]:
        return [self.inference.table(self.network, self.before, self.after)] if self.inference else []

    def by_stage(self) -> Table:
        """Each swapped stage in a row."""
        rows = [
            [
                stage.target,
                stage.geometry,
                stage.form,
                quantity(stage.after.params),
                ratio(stage.before.params, stage.after.params),
                f"{stage.theory.r_p:.2f}x",
                quantity(stage.after.macs),
                ratio(stage.before.macs, stage.after.macs),
                f"{stage.theory.r_f:.2f}x",
                f"{stage.theory.approx_r_f:.2f}x",
                ratio(stage.before.acts, stage.after.acts),
                *times_of(self.clock, GGhostSwap, stage.target),
            ]
            for stage in self.stages
        ]
        columns = ["stage", "geometry", "form", "params", "r_p", "theory", "MACs", "r_f", "theory", "Eq. 13", "acts"]
        columns += columns_of(self.clock)
        title = "Stage by stage (after; counted ratio; theory)"
        return Table(title, columns, rows, left=frozenset({"geometry", "form"}))

    def by_block(self) -> Table:
        """Each block that became narrower inside in a row."""
        rows = [
            [
                block.target,
                block.geometry,
                block.form,
                quantity(block.after.params),
                ratio(block.before.params, block.after.params),
                quantity(block.after.macs),
                ratio(block.before.macs, block.after.macs),
                f"{block.theory.r_s:.2f}x",
                *times_of(self.clock, ThinSwap, block.target),
            ]
            for block in self.blocks
        ]
        columns = ["block", "geometry", "form", "params", "ratio", "MACs", "ratio", "theory", *columns_of(self.clock)]
        title = "Block by block (after, without the ghosts inside; counted ratio; theory)"
        return Table(title, columns, rows, left=frozenset({"geometry", "form"}))

    def by_layer(self) -> Table:
        """Each swapped layer in a row."""
        rows = [
            [
                layer.target,
                layer.geometry,
                layer.form or f"s={layer.s} {Cheap.read(layer.cheap).short}",
                quantity(layer.after.params),
                ratio(layer.before.params, layer.after.params),
                quantity(layer.after.macs),
                ratio(layer.before.macs, layer.after.macs),
                f"{layer.theory.r_s:.2f}x",
                f"{layer.theory.approx_r_s:.2f}x",
                *times_of(self.clock, CGhostSwap, layer.target),
            ]
            for layer in self.layers
        ]
        columns = ["layer", "geometry", "ghost", "params", "r_c", "MACs", "r_s", "theory", "approx."]
        columns += columns_of(self.clock)
        title = "Layer by layer (after; counted ratio; theory)"
        return Table(title, columns, rows, left=frozenset({"geometry", "ghost"}))

    def __str__(self) -> str:
        return "\n\n".join(map(str, (*self.details(), self.summary(), *self.forms())))

    def details(self) -> list[Table]:
        """The tables below the summary: blocks, stages, layers, and what each was fitted to."""
        tables = [self.by_block()] * bool(self.blocks)
        tables += [self.by_stage()] * bool(self.stages)
        tables += [self.by_layer()] * bool(self.layers)
        by_class = class_table(self.accuracy, self.classes, STAGES)
        return tables + ([self.fit.table()] if self.fit else []) + ([by_class] if by_class else [])


@takes(
    ghosted=rewritten,
    latency=or_none(
        instance(Comparison, maker="ghostify.measuring.compare(before, after, example)", error=GhostifyError)
    ),
    accuracy=or_none(
        instance(Mapping, maker="{'original': ghostify.measuring.evaluate(model, batches)}", error=DataError)
    ),
)
def compare(
    ghosted: Ghosted,
    latency: Comparison | None = None,
    accuracy: Mapping[str, Accuracy | Score] | None = None,
    notes: Sequence[str] = (),
    agreement: float | None = None,
    clock: Measured | None = None,
    classes: Sequence[str] = (),
) -> Report:
    """The report on a rewrite: its counts beside theory, with whatever was measured (``accuracy``, or the score of a
    metric, by stage); ``classes`` are what the classes are called.
    """
    before, after = ghosted.before, ghosted.after
    measured = {stage: accuracy[stage] for stage in STAGES if accuracy and stage in accuracy}
    rows = Rows()
    seen = before
    for rule, swaps in by_rule(ghosted.plan.swaps):
        rule.report(rows, swaps, seen, after)
        seen = rule.after(seen, swaps)
    return Report(
        network=before.network,
        inputs=before.inputs,
        layers=tuple(rows.layers),
        stages=tuple(rows.stages),
        blocks=tuple(rows.blocks),
        width=rows.width,
        stream=rows.stream,
        before=before.cost,
        after=after.cost,
        theory=rows.theory(before.cost),
        latency=latency,
        accuracy={stage: value for stage, value in measured.items() if isinstance(value, Accuracy)},
        scores={stage: value for stage, value in measured.items() if isinstance(value, Score)},
        fit=ghosted.fit,
        budget=ghosted.budget,
        agreement=agreement,
        inference=inference_report(ghosted) if isinstance(ghosted, Optimized) else None,
        clock=clock,
        classes=tuple(classes),
        notes=(*_observations(ghosted, latency), *_on_the_fit(ghosted.fit), *ghosted.notes, *notes),
    )


def _observations(ghosted: Ghosted, latency: Comparison | None) -> Iterator[str]:
    """What a reader of the numbers must not miss."""
    if ghosted.plan.partly:
        yield ghosted.plan.partly
    if ghosted.before.uncounted:
        yield ghosted.before.uncounted
    if latency and ghosted.plan.parts:
        yield (
            "The clock is that of the whole, whose work may depend on what it finds in the example (more boxes or "
            "fewer); compare it with theory where both find as much."
        )
    elif latency and latency.high < 1:
        yield (
            "The clock disagrees with theory: the ghosted network is slower here. On small maps and few channels, "
            "starting operations and moving memory outweigh the MACs saved (docs/counting.md)."
        )


def _on_the_fit(fit: Fit | None) -> Iterator[str]:
    """How the weights came about, and what was odd about it."""
    if fit is None:
        return
    yield fit.summary
    yield from fit.notes


def _listed(widths: Sequence[float]) -> str:
    return " and ".join(f"{width:g}" for width in widths)


def _cost_row(
    name: str, before: int, after: int, theory: float | None = None, approximate: float | None = None
) -> list[str]:
    promised = [f"{value:.2f}x" if value else "" for value in (theory, approximate)]
    return [name, quantity(before), quantity(after), ratio(before, after), *promised]


def _latency_row(latency: Comparison, theory: Ratios) -> list[str]:
    times = [f"{part.median_ms:.2f} ms" for part in (latency.before, latency.after)]
    return [
        f"latency ({latency.before.place})",
        *times,
        f"{latency.speedup:.2f}x",
        f"{theory.r_s:.2f}x",
        f"{theory.approx_r_s:.2f}x",
    ]


def _in_column(stage: str, text: str) -> list[str]:
    return [text, ""] if stage == "original" else ["", text]
