"""The nouns: how redundant the feature maps of each layer and stage are, and what that allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.planning import Plan
from ghostify.recipe import read_yaml, validated
from ghostify.tables import Table, quantity, ratio

FORMAT = 1
NAME = "analysis.json"
"""Of the file in a folder that holds an analysis."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FilterError(_Value):
    """How well the maps of a layer are made of one other map each by a d x d depthwise filter.

    The other map is the one that is best with a filter of the size asked for.  Of many maps, some stand for all.
    """

    d: int
    error: float
    """Mean squared error over variance, the mean over maps: 0 is exact, 1 no better than a constant."""
    mse: float
    """Mean squared error of the raw values, the mean over maps."""


class SplitError(_Value):
    """What C-Ghost with a ratio s could keep: n/s intrinsic maps, and each other map a filter of its own one."""

    s: int
    error: float
    """Mean squared error over variance, the mean over the maps made by filters."""
    spread: float
    """How far the error is from that on either half of the images: half of their difference."""
    intrinsic: tuple[int, ...]
    """The maps kept, in the order of the groups."""
    ghosts: tuple[tuple[int, ...], ...]
    """By intrinsic map, the maps made of it."""

    @property
    def lost(self) -> float:
        """Share of the variance of all the layer's maps that is lost, as ghosts are a part of them."""
        made = sum(map(len, self.ghosts))
        return self.error * made / (made + len(self.intrinsic))


class MapPair(_Value):
    """Two maps of a layer (or stage) of which the first makes the second."""

    source: int
    made: int
    correlation: float
    error: float
    """Of ``made`` as a d x d filter of ``source``, over its variance."""
    mse: dict[int, float]
    """By filter size d, the mean squared error of the raw values."""
    taps: tuple[tuple[float, ...], ...]
    """The d x d filter, of the size recommended for the layer."""


class Advice(_Value):
    """What to do with a layer or a stage, and why."""

    s: int | None = None
    """Ratio of a C-Ghost module; None leaves the layer alone."""
    d: int | None = None
    ratio: float | None = None
    """Ghost ratio λ of a stage; None leaves it alone."""
    reason: str
    error: float | None = None
    """That is expected of the maps made cheaply, over their variance, before any fitting or training."""
    before: Cost
    after: Cost

    @property
    def short(self) -> str:
        """In a cell of a table."""
        if self.s is not None:
            return f"s={self.s} d={self.d}"
        return f"λ={self.ratio:g}" if self.ratio is not None else "keep"


class LayerRedundancy(_Value):
    """A convolution."""

    name: str
    geometry: str
    maps: int
    """Output maps, n."""
    size: tuple[int, ...]
    """Of a map, (H, W)."""
    cost: Cost
    share: float
    """Of the network's MACs."""
    positions: int
    """Positions of maps that were compared, over all images."""
    images: int
    """That these are in: of large maps, some images are enough."""
    similarity: float
    """Mean over maps of the largest |correlation| with another map."""
    filters: tuple[FilterError, ...]
    splits: tuple[SplitError, ...]
    best: tuple[float, ...]
    """By map, its error as the best filter of one other map (d as in ``pairs``), over its variance."""
    pairs: tuple[MapPair, ...]
    """The most similar pairs, no map in two of them."""
    silent: int = 0
    """Maps that do not vary."""
    advice: Advice

    @property
    def redundancy(self) -> float:
        """How much of a map's variance one other map explains by a filter, the mean over maps: 0 to 1."""
        return 1 - sum(self.best) / len(self.best) if self.best else 0.0


class CurvePoint(_Value):
    """What a G-Ghost stage with a ghost ratio would have to make cheaply, and how well it could."""

    ratio: float
    cheap: float
    """Error of the ghost channels as a cheap operation of the first block's output, over their variance."""
    mix: float
    """The same with the mix operation, which adds a linear map of what the blocks' outputs are on average."""


class StageRedundancy(_Value):
    """A stage: what its last block gives, as made of what its first block gives."""

    name: str
    geometry: str
    blocks: tuple[str, ...]
    width: int
    cost: Cost
    share: float
    positions: int
    curve: tuple[CurvePoint, ...]
    channels: tuple[float, ...]
    """By channel of the output, its error with cheap operation and mix, over its variance."""
    cheap_channels: tuple[float, ...]
    """The same with the cheap operation alone."""
    pairs: tuple[MapPair, ...]
    """Maps of the first block's output and those of the last block's that are most like them."""
    advice: Advice


class Analysis(_Value):
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
    skipped: dict[str, str] = {}
    """Layers that were not looked at, and why."""
    plan: Plan
    """The advice as a plan."""
    seconds: float = 0.0
    complete: bool = True
    """False where it was interrupted: then the layers are those that were done."""
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """A line for each layer."""
        sizes = sorted({one.d for layer in self.layers for one in layer.filters})
        ratios = sorted({one.s for layer in self.layers for one in layer.splits})
        columns = ["layer", "geometry", "MACs", "similarity", *(f"d={d}" for d in sizes), *(f"s={s}" for s in ratios)]
        rows = [
            [
                layer.name,
                layer.geometry,
                f"{layer.share:.1%}",
                f"{layer.similarity:.2f}",
                *_cells({one.d: one.error for one in layer.filters}, sizes),
                *_cells({one.s: one.error for one in layer.splits}, ratios),
                layer.advice.short,
            ]
            for layer in self.layers
        ]
        title = (
            f"{self.network}: redundancy of {len(self.layers)} layers, {self.images} images; as advised MACs "
            f"{quantity(self.plan.before.macs)} → {quantity(self.plan.after.macs)} "
            f"({ratio(self.plan.before.macs, self.plan.after.macs)})"
        )
        note = (
            "Errors are mean squared errors over the variance: 0 is exact, 1 no better than a constant.\n"
            "d: of each map as the best d x d filter of one other map; s: of the ghosts, if n/s maps are kept."
        )
        return Table(
            title, [*columns, "advice"], rows, frozenset({"geometry", "advice"}), "\n".join([note, *self.warnings])
        )

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
