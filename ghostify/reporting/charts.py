"""The small charts of the page: every place in them is worked out here, and the template draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ghostify.analysis.columns import CARRIED
from ghostify.analysis.findings import LayerRedundancy, SplitError, StageRedundancy
from ghostify.budget_result import Chosen, Way, shown
from ghostify.reporting.formats import counted, decimal

_WIDTH, _HEIGHT = 300, 170
"""Size of a chart; the plot lies inside the margins."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 14, 18, 34
_HALF_LABEL = 14
"""Room beside the first and the last point."""
_BINS = 10
"""Bars of a histogram."""
_BARS = 96
"""Bars, at most, of a chart of all channels."""
Number = TypeVar("Number", int, float)
Scale = Callable[[float], float]
"""From a value to where it is on the horizontal axis."""


@dataclass(frozen=True)
class Point:
    """A point of a line, and how far its value may be off."""

    x: float
    y: float
    label: str
    title: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[Point, ...]

    @property
    def path(self) -> str:
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    label: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A small chart: all of its places are worked out, and the template draws it."""

    name: str
    axis: str
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    levels: tuple[tuple[float, str], ...] = ()
    marker: float | None = None
    """Where the advice is."""

    width, height = _WIDTH, _HEIGHT
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM


def layer_charts(layer: LayerRedundancy) -> Iterator[Chart]:
    """The rank curve, error over filter size, error over ratio, and how the maps are spread over errors."""
    advised = layer.advice
    if layer.carried:
        yield rank_chart(layer)
    if layer.chosen:
        yield choice_chart(layer.chosen)
    if layer.filters:
        values = [(one.d, one.error, 0.0) for one in sorted(layer.filters, key=lambda one: one.d)]
        yield _line_chart("Error of the best filter of one other map", "filter size d", values, advised.d)
    if layer.splits:
        values = [(one.s, one.error, one.spread) for one in sorted(layer.splits, key=lambda one: one.s)]
        yield _line_chart("Error of what a split makes cheaply", "ratio s", values, advised.s)
    best = [error for error in layer.best if math.isfinite(error)]
    if best:
        yield _histogram("Maps by the error of their best filter", best)


def stage_charts(stage: StageRedundancy) -> Iterator[Chart]:
    """Error over the ghost ratio, and the errors of all channels in order."""
    if stage.curve:
        yield ratio_curve(stage)
    if stage.channels:
        yield _ranked("Error of every channel, smallest first", stage.channels, stage.cheap_channels)


def rank_chart(layer: LayerRedundancy) -> Chart:
    """What is lost of a layer's maps where m of them make all: by combinations, and by filters of one map each."""
    n = len(layer.carried)
    scale = _scale((0, n))
    quarters = sorted({round(n * quarter / 4) for quarter in range(5)})
    lines = (
        Line("by filters", tuple(_split_point(scale, split) for split in layer.splits[::-1])),
        Line("by combinations", (*_rank_points(scale, layer),)),
    )
    return Chart(
        "Error of all maps, made of m maps",
        f"m of {n} maps",
        lines=lines,
        ticks=tuple((scale(m), str(m)) for m in quarters),
        levels=_levels(),
        marker=_marker(layer.advice.m, (0, n), scale),
    )


def choice_chart(chosen: Chosen) -> Chart:
    """What each way to have a layer was expected to harm, over what it costs; the band is the one that was taken."""
    ways = sorted(chosen.ways, key=lambda way: way.cost)
    dearest, most = max(chosen.before, ways[-1].cost), max(way.harm for way in ways) or 1.0
    scale = _scale((0.0, dearest))
    told = [ways[0], chosen.taken]  # labels of all would lie on each other
    points = tuple(_way_point(scale, chosen, way, most, way in told) for way in ways)
    ticks = tuple((scale(dearest * part), shown(chosen.quantity, dearest * part)) for part in (0, 0.5, 1))
    levels = tuple((_level(part), f"{most * part:.1g}") for part in (0, 0.5, 1))
    return Chart(
        "Harm of each way to have it",
        {"latency": "time", "macs": "multiply-adds"}.get(chosen.quantity, chosen.quantity),
        lines=(Line("", points),),
        ticks=ticks,
        levels=levels,
        marker=scale(chosen.taken.cost),
    )


def _way_point(scale: Scale, chosen: Chosen, way: Way, most: float, told: bool) -> Point:
    label = f"m={way.m}" if way.m and told else ""
    title = f"{way.form}: {shown(chosen.quantity, way.cost)}, harm {way.harm:.2g}"
    return Point(scale(way.cost), _level(way.harm / most), label, title)


def _rank_points(scale: Scale, layer: LayerRedundancy) -> Iterator[Point]:
    """The whole curve, with no maps at its beginning; where it passes what the table tells of, it says so."""
    told = {layer.needed(1 - share): f"{share:.0%}: {layer.needed(1 - share)}" for share in CARRIED}
    yield Point(scale(0), _level(1), "", "")
    for m in _thinned(range(1, layer.maps + 1), told):
        lost = 1 - layer.carried[m - 1]
        title = f"m = {m}: {decimal(lost, 3)} is lost" if m in told else ""
        yield Point(scale(m), _level(lost), told.get(m, ""), title)


def _split_point(scale: Scale, split: SplitError) -> Point:
    m, title = len(split.intrinsic), f"s = {split.s}: {decimal(split.lost, 3)} is lost"
    return Point(scale(m), _level(split.lost), "", title)


def _line_chart(name: str, axis: str, values: Sequence[tuple[int, float, float]], advised: int | None) -> Chart:
    """One line of errors (x, error, spread), with how far each may be off."""
    xs = [x for x, _, _ in values]
    scale = _scale(xs)
    points = tuple(_point(scale, axis, *value) for value in values if math.isfinite(value[1]))
    ticks = tuple((scale(x), str(x)) for x in xs)
    marker = None if advised not in xs or advised is None else scale(advised)
    return Chart(name, axis, lines=(Line("", points),), ticks=ticks, levels=_levels(), marker=marker)


def _point(scale: Scale, axis: str, x: int, error: float, spread: float) -> Point:
    title = f"{axis} = {x}: {decimal(error, 3)}"
    if not spread:
        return Point(scale(x), _level(error), decimal(error), title)
    title += f" ± {decimal(spread, 3)}"
    return Point(scale(x), _level(error), decimal(error), title, _level(error - spread), _level(error + spread))


def ratio_curve(stage: StageRedundancy) -> Chart:
    """Errors over the ghost ratio, without and with the mix operation."""
    curve = sorted(stage.curve, key=lambda point: point.ratio)
    ratios = [point.ratio for point in curve]
    scale = _scale(ratios)
    lines = (
        _ratio_line("cheap operation", scale, ratios, [point.cheap for point in curve]),
        _ratio_line("with mix", scale, ratios, [point.mix for point in curve]),
    )
    # nine labels are what a chart of this width has room for
    every = math.ceil(len(ratios) / 9) or 1
    ticks = tuple((scale(ratio), f"{ratio:g}") for ratio in ratios[::every])
    return Chart(
        "Error of the ghost channels over the ghost ratio",
        "ghost ratio λ",
        lines=lines,
        ticks=ticks,
        levels=_levels(),
        marker=_marker(stage.advice.ratio, ratios, scale),
    )


def _ratio_line(name: str, scale: Scale, ratios: Sequence[float], errors: Sequence[float]) -> Line:
    finite = [(ratio, error) for ratio, error in zip(ratios, errors, strict=True) if math.isfinite(error)]
    points = (
        Point(scale(ratio), _level(error), "", f"{name}, λ = {ratio:g}: {decimal(error, 3)}") for ratio, error in finite
    )
    return Line(name, tuple(points))


def _marker(advised: float | None, ratios: Sequence[float], scale: Scale) -> float | None:
    """Where the advice is, if that lies within what was tried."""
    if advised is None or not ratios or not ratios[0] <= advised <= ratios[-1]:
        return None
    return scale(advised)


def _histogram(name: str, errors: Sequence[float]) -> Chart:
    """How many maps have which error; what is above 1 counts in the last bar."""
    counts = [0] * _BINS
    for error in errors:
        counts[min(_BINS - 1, max(0, int(error * _BINS)))] += 1
    step = (_WIDTH - _LEFT - _RIGHT) / _BINS
    bars = tuple(_histogram_bar(index, number, max(counts), step) for index, number in enumerate(counts))
    ticks = tuple((_LEFT + index * step, f"{index / _BINS:g}") for index in range(0, _BINS + 1, 2))
    return Chart(name, "error", bars=bars, ticks=ticks)


def _histogram_bar(index: int, number: int, most: int, step: float) -> Bar:
    height = number / most * (_HEIGHT - _TOP - _BOTTOM)
    to = "up" if index == _BINS - 1 else f"to {(index + 1) / _BINS:g}"
    title = f"{counted(number, 'map')} from {index / _BINS:g} {to}"
    # y grows downwards, so a bar begins at its top; a pixel on each side keeps bars apart
    top = _HEIGHT - _BOTTOM - height
    return Bar(_LEFT + index * step + 1, top, step - 2, height, str(number) if number else "", title)


def _ranked(name: str, mix: Sequence[float], cheap: Sequence[float]) -> Chart:
    """Bars for the errors with mix and a line for those without, each in its own order."""
    ranked, others = _ascending(mix), _ascending(cheap)
    wide, floor = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM
    step = wide / max(1, len(ranked))
    bars = tuple(
        Bar(_LEFT + i * step, _level(error), max(0.6, step * 0.8), floor - _level(error), "", decimal(error, 3))
        for i, error in enumerate(ranked)
    )
    # there may be fewer of the others: they are spread over the same width, each in the middle of its bar
    spaced = wide / max(1, len(others))
    points = tuple(Point(_LEFT + (i + 0.4) * spaced, _level(error), "", "") for i, error in enumerate(others))
    axis = f"{len(mix)} channels, in order of their error"
    return Chart(name, axis, lines=(Line("cheap operation", points),), bars=bars, levels=_levels())


def _ascending(errors: Sequence[float]) -> list[float]:
    return _thinned(sorted(error for error in errors if math.isfinite(error)))


def _thinned(values: Sequence[Number], also: Collection[Number] = ()) -> list[Number]:
    """At most so many of the values as a chart has bars, evenly picked; and those ``also`` wanted, in their order."""
    if len(values) <= _BARS:
        return list(values)
    picked = {round(i * (len(values) - 1) / (_BARS - 1)) for i in range(_BARS)}
    return [value for i, value in enumerate(values) if i in picked or value in also]


def _scale(values: Sequence[float]) -> Scale:
    """Where on a horizontal axis over the values each of them is; a single one is in the middle."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    # labels are centred at their points, so both ends keep away from the margins by half a label
    inner = _WIDTH - _LEFT - _RIGHT - 2 * _HALF_LABEL
    if high <= low:
        return lambda value: _LEFT + _HALF_LABEL + inner / 2
    return lambda value: _LEFT + _HALF_LABEL + inner * (value - low) / (high - low)


def _level(error: float) -> float:
    """Where on the vertical axis an error is; 1 is the top, and what is above it is drawn there."""
    return _TOP + (1 - min(1.0, max(0.0, error))) * (_HEIGHT - _TOP - _BOTTOM)


def _levels() -> tuple[tuple[float, str], ...]:
    return tuple((_level(value), f"{value:g}") for value in (0, 0.25, 0.5, 0.75, 1))
