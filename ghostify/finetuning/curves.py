"""The curves of a training run as one picture: loss, what epochs are compared by, and the learning rate.

Every place in it is worked out here, and the template draws it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ghostify.finetuning.history import TOP1, History
from ghostify.reporting.templates import template

_WIDTH, _HEIGHT, _GAP = 280, 220, 66
"""Size of a panel's plot, and what lies between two."""
_LEFT, _TOP = 58, 40
_TICKS = 5
"""Levels of an axis, about."""

Pairs = Sequence[tuple[float, float]]
"""(epochs, value): where on the horizontal axis, and how high."""


@dataclass(frozen=True)
class Trace:
    """A line of a panel."""

    name: str
    kind: str
    """Its class in the picture's style: raw, train, or held."""
    path: str


@dataclass(frozen=True)
class Panel:
    """One quantity over the epochs."""

    title: str
    left: float
    traces: tuple[Trace, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    level: float | None = None
    """Where the original's value is drawn, if it is known."""

    top, width, height = _TOP, _WIDTH, _HEIGHT

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


def curves(history: History) -> str:
    """The picture, as SVG that needs no other file."""
    panels = [panel for panel in _panels(history) if panel is not None]
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    return template("curves.svg").render(panels=panels, width=width, height=_TOP + _HEIGHT + 52).strip() + "\n"


def _panels(history: History) -> list[Panel | None]:
    """Those for which there is anything to draw are not None."""
    measure = history.epochs[0].measure if history.epochs else TOP1
    held = [(0.0, history.before)] if history.before is not None else []
    held += [(float(epoch.epoch), epoch.held) for epoch in history.epochs if epoch.held is not None]
    train = [(epoch.epoch - 0.5, epoch.train_top1) for epoch in history.epochs if epoch.train_top1 is not None]
    losses = {
        "raw": [(step.epochs, step.loss) for step in history.steps],
        "train": [(epoch.epoch - 0.5, epoch.loss) for epoch in history.epochs],
    }
    scores = {"train": train if measure == TOP1 else [], "held": held}
    last = max(1.0, float(len(history.epochs)))
    share = measure == TOP1
    return [
        _panel("loss of training", 0, losses, last),
        _panel("top-1" if share else measure, 1, scores, last, history.original, share),
        _panel("learning rate", 2, {"raw": [(step.epochs, step.lr) for step in history.steps]}, last),
    ]


@dataclass(frozen=True)
class _Scales:
    """From (epochs, value) to where it is drawn in the panel that begins at ``left``."""

    left: float
    last: float
    levels: list[float]

    def x(self, epochs: float) -> float:
        return self.left + _WIDTH * epochs / self.last

    def y(self, value: float) -> float:
        low, high = self.levels[0], self.levels[-1]
        return _TOP + _HEIGHT * (high - value) / (high - low)

    def path(self, pairs: Pairs) -> str:
        return " ".join(f"{self.x(at):.1f},{self.y(value):.1f}" for at, value in pairs)


def _panel(
    title: str,
    number: int,
    series: Mapping[str, Pairs],
    last: float,
    level: float | None = None,
    share: bool = False,
) -> Panel | None:
    """A panel of some series; None where they hold nothing that can be drawn."""
    finite = {kind: [pair for pair in pairs if math.isfinite(pair[1])] for kind, pairs in series.items()}
    values = [value for pairs in finite.values() for _, value in pairs]
    if not values:
        return None
    values += [] if level is None else [level]
    scales = _Scales(_LEFT + number * (_WIDTH + _GAP), last, _levels(min(values), max(values)))
    whole = (epoch for epoch in _levels(0, last) if epoch <= last and epoch == int(epoch))
    return Panel(
        title,
        scales.left,
        tuple(Trace(_NAMES[kind], kind, scales.path(pairs)) for kind, pairs in finite.items() if pairs),
        tuple((scales.x(epoch), f"{epoch:g}") for epoch in whole),
        tuple((scales.y(value), f"{100 * value:.4g}%" if share else f"{value:.4g}") for value in scales.levels),
        None if level is None else scales.y(level),
    )


_NAMES = {"raw": "", "train": "training", "held": "held out"}


def _levels(low: float, high: float) -> list[float]:
    """Round values that hold ``low`` and ``high`` between them, about as many as an axis has room for."""
    if high <= low:
        low, high = low - abs(low) / 10 - 1e-9, high + abs(high) / 10 + 1e-9
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, count = math.floor(low / step), math.ceil(high / step) - math.floor(low / step)
    return [round((first + index) * step, 12) for index in range(count + 1)]
