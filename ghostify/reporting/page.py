"""The redundancy report as one HTML page: it needs no network and no other file, and opens from disk."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from ghostify.analysis.pictures import Grey, LayerPictures, Pictures, Replaced
from ghostify.analysis.result import Analysis, LayerRedundancy, MapPair, StageRedundancy
from ghostify.rules import rule_of
from ghostify.tables import quantity, ratio

_COLUMNS = 16
"""Pictures beside each other in a sheet."""
_GREYS = (64, 32, 16)
"""Levels of grey that may be stored, the first of them that fits: at the size of a feature map nobody sees more."""
_BYTES = 9_000_000
"""That all pictures together should not be larger than."""
_SIDE = 60
"""About how many CSS pixels a map is wide."""
_WIDTH, _HEIGHT = 300, 170
"""Size of a chart; the plot lies inside the margins."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 14, 18, 34
_BINS = 10
"""Bars of a histogram."""
_BARS = 96
"""Bars, at most, of a chart of all channels."""


def render_page(analysis: Analysis, pictures: Pictures | None = None) -> str:
    """The report as one self-contained HTML document."""
    text = resources.files("ghostify.reporting").joinpath("page.html").read_text(encoding="utf-8")
    layers, stages = _layers(analysis, pictures), _stages(analysis, pictures)
    sheets = [view.gallery.sheet for view in layers] + [view.gallery.sheet for view in stages]
    template = _environment().from_string(text)
    page = template.render(
        analysis=analysis,
        summary=_summary(analysis),
        layers=layers,
        stages=stages,
        levels=_levels_of_grey(sum(sheet.pixels for sheet in sheets)),
        ds=sorted({one.d for layer in analysis.layers for one in layer.filters}),
        ss=sorted({one.s for layer in analysis.layers for one in layer.splits}),
        skipped=_by_reason(analysis.skipped),
        image=_data_uri(pictures.image) if pictures else "",
        image_side=_shown(pictures.image.shape[:2], 168) if pictures else (0, 0),
        pictured=pictures is not None,
        widest=max((layer.share for layer in analysis.layers), default=0.0),
    )
    return page.strip() + "\n"


# -- what the template is given ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    """A picture of a sheet, by its place there."""

    x: int
    y: int
    map: int
    pair: int = 0
    """Number of the pair that the map is in, from 1; 0 for none."""


@dataclass
class _Sheet:
    """Greyscale pictures of one size, which become one PNG."""

    pictures: list[Grey] = field(default_factory=list)
    known: dict[tuple[tuple[int, ...], bytes], int] = field(default_factory=dict)
    """The index of each picture, by its shape and pixels."""

    def add(self, picture: Grey, number: int, pair: int = 0) -> _Cell:
        """The place of a picture, which is the old one where it was added before."""
        index = self.known.setdefault((picture.shape, picture.tobytes()), len(self.pictures))
        if index == len(self.pictures):
            self.pictures.append(picture)
        row, column = divmod(index, _COLUMNS)
        return _Cell(x=column, y=row, map=number, pair=pair)

    @property
    def size(self) -> tuple[int, int]:
        """Of the largest picture, (h, w)."""
        shapes = [picture.shape for picture in self.pictures]
        return (max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)) if shapes else (1, 1)

    @property
    def shown(self) -> tuple[int, int]:
        """Size of a picture in CSS pixels, (h, w)."""
        return _shown(self.size, _SIDE)

    @property
    def rows(self) -> int:
        return -(-len(self.pictures) // _COLUMNS)

    @property
    def pixels(self) -> int:
        """Of all pictures."""
        return len(self.pictures) * math.prod(self.size)

    def uri(self, levels: int) -> str:
        """All pictures side by side in so many greys, as a data URI."""
        height, width = self.size
        sheet = np.zeros((self.rows * height, self.columns * width), dtype=np.uint8)
        for index, picture in enumerate(self.pictures):
            y, x = (index // _COLUMNS) * height, (index % _COLUMNS) * width
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        return _data_uri((sheet // (256 // levels) * (255 / (levels - 1))).round().astype(np.uint8))

    @property
    def columns(self) -> int:
        """How many pictures are beside each other."""
        return max(1, min(_COLUMNS, len(self.pictures)))


@dataclass(frozen=True)
class _PairView:
    """Two similar maps, the filter between them, and their pictures as far as there are any."""

    number: int
    source: int
    made: int
    pair: MapPair | None
    taps: tuple[tuple[float, ...], ...] = ()
    """The filter over its largest tap: -1 to 1."""
    cells: tuple[tuple[str, _Cell], ...] = ()


@dataclass(frozen=True)
class _Gallery:
    """The pictures of a layer or stage."""

    sheet: _Sheet
    grid: tuple[_Cell, ...] = ()
    pairs: tuple[_PairView, ...] = ()
    beside: tuple[tuple[_Cell, ...], ...] = ()
    """By map: what is shown side by side."""
    captions: tuple[str, ...] = ()
    """Of what is shown side by side."""


@dataclass(frozen=True)
class _Point:
    """A point of a line, and how far its value may be off."""

    x: float
    y: float
    label: str
    title: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Line:
    name: str
    points: tuple[_Point, ...]

    @property
    def path(self) -> str:
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    label: str
    title: str


@dataclass(frozen=True)
class _Chart:
    """A small chart: all of its places are worked out, and the template draws it."""

    name: str
    axis: str
    lines: tuple[_Line, ...] = ()
    bars: tuple[_Bar, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    levels: tuple[tuple[float, str], ...] = ()
    marker: float | None = None
    """Where the advice is."""

    width, height = _WIDTH, _HEIGHT
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _LayerView:
    index: int
    layer: LayerRedundancy
    redundancy: float
    charts: tuple[_Chart, ...]
    gallery: _Gallery
    errors: dict[int, float]
    splits: dict[int, tuple[float, float]]
    """By s: error and spread."""

    @property
    def advice(self) -> str:
        """In a word or two."""
        settings = self.layer.advice
        if settings.s is None:
            return "keep"
        return f"s = {settings.s}" + (f", d = {settings.d}" if settings.d is not None else "")


@dataclass(frozen=True)
class _StageView:
    index: int
    stage: StageRedundancy
    charts: tuple[_Chart, ...]
    spark: _Chart
    gallery: _Gallery

    @property
    def advice(self) -> str:
        """In a word or two."""
        return "keep" if self.stage.advice.ratio is None else f"λ = {self.stage.advice.ratio:g}"

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
            charts=tuple(_layer_charts(layer)),
            gallery=_layer_gallery(layer.pairs, pictures.layers.get(layer.name) if pictures else None),
            errors={one.d: one.error for one in layer.filters},
            splits={one.s: (one.error, one.spread) for one in layer.splits},
        )
        for index, layer in enumerate(analysis.layers)
    ]


def _stages(analysis: Analysis, pictures: Pictures | None) -> list[_StageView]:
    """Each stage with its charts and pictures, in the order of the network."""
    return [
        _StageView(
            index=index,
            stage=stage,
            charts=tuple(_stage_charts(stage)),
            spark=_curve(stage),
            gallery=_stage_gallery(stage.pairs, pictures.stages.get(stage.name) if pictures else None),
        )
        for index, stage in enumerate(analysis.stages)
    ]


def _summary(analysis: Analysis) -> str:
    """What the advice comes to, in a sentence."""
    before, after = analysis.plan.before, analysis.plan.after
    if not analysis.plan.swaps:
        return "The advice is to leave every layer as it is."
    nouns = Counter(rule_of(swap).noun for swap in analysis.plan.swaps)
    what = " and ".join(_counted(number, noun) for noun, number in nouns.items())
    return (
        f"With {what} made cheaply, {quantity(before.macs)} MACs become {quantity(after.macs)} "
        f"({ratio(before.macs, after.macs)} fewer), and {quantity(before.params)} parameters become "
        f"{quantity(after.params)} ({ratio(before.params, after.params)} fewer)."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _by_reason(skipped: dict[str, str]) -> list[tuple[str, list[str]]]:
    """The layers that were not looked at, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(reason, []).append(name)
    return list(reasons.items())


# -- pictures ----------------------------------------------------------------------------------------------------


def _layer_gallery(pairs: Sequence[MapPair], shown: LayerPictures | None) -> _Gallery:
    """The grid of maps with the pairs marked, the replaced maps, and the converted ones beside the originals."""
    sheet = _Sheet()
    if shown is None:
        return _Gallery(sheet, pairs=tuple(_pair_views(pairs, {}, ())))
    numbers = {one: number for number, pair in enumerate(pairs, 1) for one in (pair.source, pair.made)}
    grid = tuple(_place(sheet, shown.maps, shown.pixels, numbers))
    replaced = {(one.source, one.made): _strip(sheet, one) for one in shown.replaced}
    beside: tuple[tuple[_Cell, ...], ...] = ()
    if shown.converted is not None:
        beside = tuple(zip(grid, _place(sheet, shown.maps, shown.converted, {}), strict=True))
    return _Gallery(sheet, grid, tuple(_pair_views(pairs, replaced, replaced)), beside, ("original", "ghost net"))


def _stage_gallery(pairs: Sequence[MapPair], shown: LayerPictures | None) -> _Gallery:
    """The maps of the last block beside those of the first, and the pairs across."""
    sheet = _Sheet()
    if shown is None:
        return _Gallery(sheet, pairs=tuple(_pair_views(pairs, {}, ())))
    named = [
        ("first block", shown.first),
        ("last block", shown.pixels),
        ("ghost net", shown.converted),
    ]
    placed = [(name, list(_place(sheet, shown.maps, maps, {}))) for name, maps in named if maps is not None]
    first = dict(zip(shown.maps, placed[0][1], strict=True)) if shown.first is not None else {}
    last = dict(zip(shown.maps, dict(placed)["last block"], strict=True))
    strips = {(one.source, one.made): _strip(sheet, one) for one in shown.replaced}
    for pair in pairs:
        if pair.source in first and pair.made in last:
            cells = (("first block", first[pair.source]), ("last block", last[pair.made]))
            strips.setdefault((pair.source, pair.made), cells)
    extra = [(one.source, one.made) for one in shown.replaced]
    beside = tuple(zip(*(cells for _, cells in placed), strict=True))
    return _Gallery(sheet, (), tuple(_pair_views(pairs, strips, extra)), beside, tuple(name for name, _ in placed))


def _place(sheet: _Sheet, maps: Sequence[int], pixels: Grey, pairs: dict[int, int]) -> Iterator[_Cell]:
    """The places of the maps in the sheet."""
    for number, picture in zip(maps, pixels, strict=True):
        yield sheet.add(picture, number, pairs.get(number, 0))


def _strip(sheet: _Sheet, one: Replaced) -> tuple[tuple[str, _Cell], ...]:
    """The four pictures of a map that is replaced, by caption."""
    return (
        ("made of", sheet.add(one.origin, one.source)),
        ("original", sheet.add(one.original, one.made)),
        ("ghost", sheet.add(one.ghost, one.made)),
        ("difference", sheet.add(one.difference, one.made)),
    )


def _pair_views(
    pairs: Sequence[MapPair],
    strips: dict[tuple[int, int], tuple[tuple[str, _Cell], ...]],
    also: Iterable[tuple[int, int]],
) -> Iterator[_PairView]:
    """Each pair with its filter and pictures, and after them the replaced maps that are in no pair."""
    for number, pair in enumerate(pairs, 1):
        key = pair.source, pair.made
        yield _PairView(number, *key, pair, _scaled(pair.taps), strips.get(key, ()))
    known = {(pair.source, pair.made) for pair in pairs}
    for source, made in also:
        if (source, made) not in known:
            yield _PairView(0, source, made, None, (), strips[source, made])


def _scaled(taps: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """The filter over its largest tap; nothing for a single tap, which is no picture."""
    if len(taps) < 2:
        return ()
    largest = max((abs(tap) for row in taps for tap in row if math.isfinite(tap)), default=0.0) or 1.0
    return tuple(tuple(tap / largest if math.isfinite(tap) else 0.0 for tap in row) for row in taps)


def _shown(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """Size in CSS pixels, a whole multiple (or part) of the pixels, with about ``side`` for the longer side."""
    height, width = size
    longer = max(height, width)
    if longer <= 1.6 * side:
        times = max(1, round(side / longer))
        return height * times, width * times
    parts = round(longer / side)
    return max(1, height // parts), max(1, width // parts)


def _levels_of_grey(pixels: int) -> int:
    """The most of ``_GREYS`` with which so many pixels, of pictures that are hard to compress, stay in ``_BYTES``."""
    fitting = (levels for levels in _GREYS if 0.09 * math.log2(levels) * pixels <= _BYTES)
    return next(fitting, _GREYS[-1])


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """A greyscale (H, W) or coloured (H, W, 3) picture as the data URI of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# -- charts ------------------------------------------------------------------------------------------------------


def _layer_charts(layer: LayerRedundancy) -> Iterator[_Chart]:
    """Error over filter size, error over ratio, and how the maps are spread over errors."""
    advised = layer.advice
    if layer.filters:
        values = [(one.d, one.error, 0.0) for one in sorted(layer.filters, key=lambda one: one.d)]
        yield _line_chart("Error of the best filter of one other map", "filter size d", values, advised.d)
    if layer.splits:
        values = [(one.s, one.error, one.spread) for one in sorted(layer.splits, key=lambda one: one.s)]
        yield _line_chart("Error of what a split makes cheaply", "ratio s", values, advised.s)
    best = [error for error in layer.best if math.isfinite(error)]
    if best:
        yield _histogram("Maps by the error of their best filter", best)


def _stage_charts(stage: StageRedundancy) -> Iterator[_Chart]:
    """Error over the ghost ratio, and the errors of all channels in order."""
    if stage.curve:
        yield _curve(stage)
    if stage.channels:
        yield _ranked("Error of every channel, smallest first", stage.channels, stage.cheap_channels)


def _line_chart(name: str, axis: str, values: Sequence[tuple[int, float, float]], advised: int | None) -> _Chart:
    """One line of errors, with how far each may be off."""
    place = _places([x for x, _, _ in values])
    points = tuple(
        _Point(
            x=place(x),
            y=_level(error),
            label=_decimal(error),
            title=f"{axis} = {x}: {_decimal(error, 3)}" + (f" ± {_decimal(spread, 3)}" if spread else ""),
            low=_level(error - spread) if spread else None,
            high=_level(error + spread) if spread else None,
        )
        for x, error, spread in values
        if math.isfinite(error)
    )
    ticks = tuple((place(x), str(x)) for x, _, _ in values)
    marker = place(advised) if advised in [x for x, _, _ in values] and advised is not None else None
    return _Chart(name, axis, lines=(_Line("", points),), ticks=ticks, levels=_levels(), marker=marker)


def _curve(stage: StageRedundancy) -> _Chart:
    """Errors over the ghost ratio, without and with the mix operation."""
    curve = sorted(stage.curve, key=lambda point: point.ratio)
    place = _places([point.ratio for point in curve])
    lines = tuple(
        _Line(
            name,
            tuple(
                _Point(place(point.ratio), _level(error), "", f"{name}, λ = {point.ratio:g}: {_decimal(error, 3)}")
                for point in curve
                if math.isfinite(error := point.mix if mix else point.cheap)
            ),
        )
        for name, mix in (("cheap operation", False), ("with mix", True))
    )
    ratios = [point.ratio for point in curve]
    every = -(-len(ratios) // 9) or 1
    ticks = tuple((place(one), f"{one:g}") for one in ratios[::every])
    inside = bool(ratios) and stage.advice.ratio is not None and ratios[0] <= stage.advice.ratio <= ratios[-1]
    marker = place(stage.advice.ratio) if inside and stage.advice.ratio is not None else None
    name = "Error of the ghost channels over the ghost ratio"
    return _Chart(name, "ghost ratio λ", lines=lines, ticks=ticks, levels=_levels(), marker=marker)


def _histogram(name: str, errors: Sequence[float]) -> _Chart:
    """How many maps have which error; what is above 1 counts in the last bar."""
    counts = [0] * _BINS
    for error in errors:
        counts[min(_BINS - 1, max(0, int(error * _BINS)))] += 1
    most, step = max(counts), (_WIDTH - _LEFT - _RIGHT) / _BINS
    bars = []
    for index, number in enumerate(counts):
        height = number / most * (_HEIGHT - _TOP - _BOTTOM)
        last = index == _BINS - 1
        title = f"{_counted(number, 'map')} from {index / _BINS:g} {'up' if last else f'to {(index + 1) / _BINS:g}'}"
        x = _LEFT + index * step + 1
        bars.append(_Bar(x, _HEIGHT - _BOTTOM - height, step - 2, height, str(number) if number else "", title))
    ticks = tuple((_LEFT + i * 2 * step, f"{i * 2 / _BINS:g}") for i in range(_BINS // 2 + 1))
    return _Chart(name, "error", bars=tuple(bars), ticks=ticks)


def _ranked(name: str, mix: Sequence[float], cheap: Sequence[float]) -> _Chart:
    """Bars for the errors with mix and a line for those without, each in its own order."""
    ranked = _thinned(sorted(error for error in mix if math.isfinite(error)))
    other = _thinned(sorted(error for error in cheap if math.isfinite(error)))
    wide, floor = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM
    step = wide / max(1, len(ranked))
    bars = tuple(
        _Bar(_LEFT + i * step, _level(error), max(0.6, step * 0.8), floor - _level(error), "", _decimal(error, 3))
        for i, error in enumerate(ranked)
    )
    spaced = wide / max(1, len(other))
    line = _Line(
        "cheap operation",
        tuple(_Point(_LEFT + (i + 0.4) * spaced, _level(error), "", "") for i, error in enumerate(other)),
    )
    axis = f"{len(mix)} channels, in order of their error"
    return _Chart(name, axis, lines=(line,), bars=bars, levels=_levels())


def _thinned(values: Sequence[float]) -> list[float]:
    """At most so many of the values as a chart has bars, evenly picked."""
    if len(values) <= _BARS:
        return list(values)
    return [values[round(i * (len(values) - 1) / (_BARS - 1))] for i in range(_BARS)]


def _places(values: Sequence[float]) -> Callable[[float], float]:
    """Where on a horizontal axis over the values each of them is."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    inner = _WIDTH - _LEFT - _RIGHT - 28
    return lambda value: _LEFT + 14 + (inner * (value - low) / (high - low) if high > low else inner / 2)


def _level(error: float) -> float:
    """Where on the vertical axis an error is; 1 is the top, and what is above it is drawn there."""
    return _TOP + (1 - min(1.0, max(0.0, error))) * (_HEIGHT - _TOP - _BOTTOM)


def _levels() -> tuple[tuple[float, str], ...]:
    return tuple((_level(value), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1))


# -- the template's filters --------------------------------------------------------------------------------------


def _environment() -> Environment:
    """An environment that escapes everything it is given."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "quantity": quantity,
        "decimal": _decimal,
        "percent": _percent,
        "extent": lambda size: "×".join(map(str, size)),
        "area": math.prod,
        "part": _part,
        "sortable": lambda value: f"{value:.6g}" if math.isfinite(value) else "",
        "counted": _counted,
        "digest": _digest,
        "duration": _duration,
    }
    environment.globals["ratio"] = ratio
    return environment


def _decimal(value: float | None, digits: int = 2) -> str:
    """A number to two places, or a dash for what is not one."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def _percent(value: float) -> str:
    """A share in percent, with a place where it is small."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.1f}%"


def _part(value: float) -> str:
    """A share as a CSS percentage from 0 to 100, of what may be no number."""
    return f"{100 * min(1.0, max(0.0, value)):.1f}%" if math.isfinite(value) else "0%"


def _duration(seconds: float) -> str:
    """A time in seconds or minutes."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _digest(script: str) -> str:
    """The digest by which the page's security policy lets its own script run, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
