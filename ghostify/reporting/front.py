"""The picture of a sweep: what each network keeps over what it costs.  Every place in it is worked out here.

Further left is cheaper, further up is better; the planned networks are the thick line, and the families of what a
person would set by hand are the thin ones.  What falls far below the planned ones is drawn at the bottom, with its
value, because a single network that lost everything would press all others into one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ghostify.reporting.sweep import FAMILIES, Family, Point, Sweep

_WIDTH, _HEIGHT = 860, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 150, 34, 52
_TICKS = 8
"""Levels of the vertical axis, at most."""
_ABOVE, _BENEATH, _LINE = 11, 19, 16
"""How far above a mark, or beneath it, its label stands; and the height of a line."""
_STEPS = 3
"""Heights of the labels at the bottom."""
_ROOM = 0.06
"""Share of the heights that is left free above the original and below the lowest."""
_BY = {
    "latency": "time of one forward pass, of the original's",
    "macs": "multiply-adds, of the original's",
    "params": "parameters, of the original's",
    "activations": "activations, of the original's",
    "size": "size of the weights, of the original's",
}


@dataclass(frozen=True)
class Mark:
    """A network."""

    x: float
    y: float
    label: str
    title: str
    low: float
    high: float
    """Where on the horizontal axis its time may be; both ``x`` where it was not timed."""
    below: bool
    """Whether it belongs further down than there is room."""
    label_y: float = 0.0


@dataclass(frozen=True)
class Trail:
    """The networks of a family, from the cheapest to the original."""

    family: Family
    name: str
    marks: tuple[Mark, ...]
    path: str
    label_y: float = 0.0
    """Where its name stands, right of all."""


@dataclass(frozen=True)
class Front:
    """The whole picture."""

    trails: tuple[Trail, ...]
    original: tuple[float, float]
    original_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_axis: str
    y_axis: str

    width, height = _WIDTH, _HEIGHT
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Scales:
    """From what a network costs and keeps to where it is drawn."""

    cheapest: float
    low: float
    high: float

    def x(self, share: float) -> float:
        inside = (share - self.cheapest) / (1 - self.cheapest)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(1.02, max(0.0, inside))

    def y(self, value: float) -> float:
        inside = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(1.0, max(0.0, inside))


def front(sweep: Sweep) -> Front | None:
    """The picture; None where there are no networks, or nothing was measured that they keep."""
    whole = sweep.original.value
    if whole is None and any(point.kept.agreement is not None for point in sweep.points):
        whole = 1.0  # the original agrees with itself
    points = [point for point in sweep.points if point.kept.value is not None]
    if whole is None or not points:
        return None
    scales = _scales(sweep, points, whole)
    trails = [_trail(sweep, family, scales, whole) for family in FAMILIES if sweep.of_family(family)]
    return Front(
        trails=tuple(_apart([trail for trail in trails if trail.marks])),
        original=(scales.x(1.0), scales.y(whole)),
        original_label=f"original: {_shown(sweep, whole)}",
        x_ticks=tuple((scales.x(tenth / 10), f"{tenth / 10:g}x") for tenth in _tenths(scales.cheapest)),
        y_ticks=tuple((scales.y(value), _shown(sweep, value)) for value in _levels(scales.low, scales.high)),
        x_axis=_BY[sweep.by],
        y_axis=sweep.original.name,
    )


def _scales(sweep: Sweep, points: list[Point], whole: float) -> _Scales:
    cheapest = min(sweep.share(point) for point in points)
    cheapest = min(0.9, math.floor(cheapest * 20 - 0.6) / 20)  # with room for half a label
    values = [point.kept.value or 0.0 for point in points]
    planned = [point.kept.value or 0.0 for point in points if point.family == "plan"]
    lowest = min(planned, default=min(values))
    # As far below the planned ones as these are below the original: there is where others are worth comparing.
    low = max(min(values), lowest - max(whole - lowest, 0.02 * abs(whole)))
    room = _ROOM * max(whole - low, 1e-6)
    return _Scales(cheapest, low - room, max(whole, *values) + room)


def _trail(sweep: Sweep, family: Family, scales: _Scales, whole: float) -> Trail:
    points = [point for point in sweep.of_family(family) if point.kept.value is not None]
    marks = tuple(_mark(sweep, point, scales) for point in points)
    ends = [(mark.x, mark.y) for mark in marks] + [(scales.x(1.0), scales.y(whole))]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
    return Trail(family, FAMILIES[family], marks, path)


def _mark(sweep: Sweep, point: Point, scales: _Scales) -> Mark:
    share, value = sweep.share(point), point.kept.value or 0.0
    low = high = share
    if sweep.by == "latency" and point.latency is not None:
        low, high = 1 / point.latency.high, 1 / point.latency.low
    below = value < scales.low
    short = point.name.partition("=")[2]
    label = f"{short}: {_shown(sweep, value)}" if below or point.family == "plan" else short
    title = f"{point.name}: {share:.2f}x, {_shown(sweep, value)}"
    return Mark(scales.x(share), scales.y(value), label, title, scales.x(low), scales.x(high), below)


def _apart(trails: list[Trail]) -> list[Trail]:
    """The trails with their names in a list right of the picture, and the labels at the bottom in steps."""
    below = sorted((mark for trail in trails for mark in trail.marks if mark.below), key=lambda mark: mark.x)
    steps = {id(mark): place % _STEPS for place, mark in enumerate(below)}

    def labelled(family: Family, mark: Mark) -> Mark:
        above = family == "plan" or mark.below
        lift = _ABOVE + _LINE * steps.get(id(mark), 0) if above else -_BENEATH
        return replace(mark, label_y=mark.y - lift)

    found = []
    for place, trail in enumerate(trails):
        marks = tuple(labelled(trail.family, mark) for mark in trail.marks)
        found.append(replace(trail, marks=marks, label_y=_TOP + _LINE * (4 + 1.4 * place)))
    return found


def _tenths(cheapest: float) -> range:
    return range(math.ceil(cheapest * 10 - 1e-9), 11)


def _levels(low: float, high: float) -> list[float]:
    """Round values in between, some few."""
    step = 10.0 ** math.floor(math.log10(high - low))
    steps = (step * part for part in (0.1, 0.2, 0.5, 1, 2, 5))
    step = next(one for one in steps if (high - low) / one <= _TICKS)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _shown(sweep: Sweep, value: float) -> str:
    """A value as the picture has it: shares in per cent, a user's metric as a number."""
    return f"{value:.4g}" if sweep.original.score is not None else f"{100 * value:.4g}%"
