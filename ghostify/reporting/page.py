"""The redundancy report as one HTML page: it needs no network and no other file, and opens from disk."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from ghostify.analysis.columns import layer_columns
from ghostify.analysis.findings import LayerRedundancy, StageRedundancy
from ghostify.analysis.pictures import Pictures
from ghostify.analysis.result import Analysis
from ghostify.reporting.charts import Chart, layer_charts, ratio_curve, stage_charts
from ghostify.reporting.formats import counted
from ghostify.reporting.galleries import Gallery, css_size, data_uri, layer_gallery, levels_of_grey, stage_gallery
from ghostify.reporting.templates import template
from ghostify.rules import rule_of
from ghostify.tables import quantity, ratio


def render_page(analysis: Analysis, pictures: Pictures | None = None) -> str:
    """The report as one self-contained HTML document."""
    layers, stages = _layers(analysis, pictures), _stages(analysis, pictures)
    costs = [layer.chosen.before for layer in analysis.layers if layer.chosen]
    sheets = [view.gallery.sheet for view in layers] + [view.gallery.sheet for view in stages]
    columns = [column for column in layer_columns(analysis.layers) if column.head]
    page = template("page.html").render(
        analysis=analysis,
        summary=_summary(analysis),
        layers=layers,
        stages=stages,
        levels=levels_of_grey(sum(sheet.pixels for sheet in sheets)),
        columns=columns,
        groups=[(name, len(list(same))) for name, same in groupby(columns, key=attrgetter("group"))],
        skipped=_by_reason(analysis.skipped),
        image=data_uri(pictures.image) if pictures else "",
        image_side=css_size(pictures.image.shape[:2], 168) if pictures else (0, 0),
        pictured=pictures is not None,
        widest=max((layer.share for layer in analysis.layers), default=0.0),
        dearest=max(costs, default=0.0),
        budget=analysis.budget.table() if analysis.budget else None,
    )
    return page.strip() + "\n"


# -- what the template is given ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LayerView:
    index: int
    layer: LayerRedundancy
    redundancy: float
    charts: tuple[Chart, ...]
    gallery: Gallery


@dataclass(frozen=True)
class _StageView:
    index: int
    stage: StageRedundancy
    charts: tuple[Chart, ...]
    spark: Chart
    gallery: Gallery

    @property
    def least(self) -> float:
        """The error with mix at the smallest ratio."""
        return min(self.stage.curve, key=lambda point: point.ratio).mix if self.stage.curve else math.nan


def _layers(analysis: Analysis, pictures: Pictures | None) -> list[_LayerView]:
    """Each layer with its charts and pictures, in the order of the network."""
    return [
        _LayerView(
            index=index,
            layer=layer,
            redundancy=layer.redundancy if layer.best else math.nan,
            charts=tuple(layer_charts(layer)),
            gallery=layer_gallery(layer.pairs, pictures.layers.get(layer.name) if pictures else None),
        )
        for index, layer in enumerate(analysis.layers)
    ]


def _stages(analysis: Analysis, pictures: Pictures | None) -> list[_StageView]:
    """Each stage with its charts and pictures, in the order of the network."""
    return [
        _StageView(
            index=index,
            stage=stage,
            charts=tuple(stage_charts(stage)),
            spark=ratio_curve(stage),
            gallery=stage_gallery(stage.pairs, pictures.stages.get(stage.name) if pictures else None),
        )
        for index, stage in enumerate(analysis.stages)
    ]


def _summary(analysis: Analysis) -> str:
    """What the advice comes to, in a sentence."""
    before, after = analysis.plan.before, analysis.plan.after
    if not analysis.plan.swaps:
        return "The advice is to leave every layer as it is."
    nouns = Counter(rule_of(swap).noun for swap in analysis.plan.swaps)
    what = " and ".join(counted(number, noun) for noun, number in nouns.items())
    return (
        f"With {what} made cheaply, {quantity(before.macs)} MACs become {quantity(after.macs)} "
        f"({ratio(before.macs, after.macs)} fewer), and {quantity(before.params)} parameters become "
        f"{quantity(after.params)} ({ratio(before.params, after.params)} fewer)."
    )


def _by_reason(skipped: dict[str, str]) -> list[tuple[str, list[str]]]:
    """The layers that were not looked at, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(reason, []).append(name)
    return list(reasons.items())
