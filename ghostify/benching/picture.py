"""Networks timed side by side as a picture: a line for each, with its speed-up and the interval around it (SVG)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from ghostify.benching.result import Bench, Result

_WIDTH, _ROW, _TOP = 860, 26, 58
_LEFT, _RIGHT = 300, 200
"""Room for names on the left and for what is said of each on the right."""
_MARGIN = 1.06
"""The scale goes on by this factor beyond what is drawn."""
_INK, _FAINT = "#222222", "#bbbbbb"
_COLOURS = {"faster": "#33638d", "slower": "#b8562f", "no difference": "#888888", "baseline": _INK}
_LONGEST = 40
"""Letters of a name that have room."""


def drawn(bench: Bench) -> str:
    """The picture as the text of an SVG file: speed-ups over the baseline, on a logarithmic scale."""
    groups = _groups(bench)
    height = _TOP + _ROW * (len(groups) + len(bench.results)) + 20
    picture = Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {height}")
    picture.set("font-family", "sans-serif")
    SubElement(picture, "rect", width=str(_WIDTH), height=str(height), fill="white")
    _write(picture, 16, 24, f"Speed-up over {_short(bench.networks[0].name)}", size=15)
    _write(picture, 16, 42, "a dot for the measured one, a line for where it lies with a confidence of 95 %", size=11)
    scale = _Scale(bench.results)
    y = float(_TOP)
    for place, results in groups.items():
        _write(picture, 16, y + 17, place, weight="bold")
        y += _ROW
        _baseline(picture, scale, y, _ROW * len(results))
        for one in results:
            _line(picture, scale, y + _ROW / 2, one)
            y += _ROW
    return tostring(picture, encoding="unicode") + "\n"


class _Scale:
    """Where a speed-up is on the horizontal axis; the baseline's, 1, is always on it."""

    def __init__(self, results: Sequence[Result]) -> None:
        low = min(1.0, *(one.low for one in results)) / _MARGIN
        high = max(1.0, *(one.high for one in results)) * _MARGIN
        self.low, self.span = math.log(low), math.log(high) - math.log(low)

    def __call__(self, speedup: float) -> float:
        share = (math.log(speedup) - self.low) / self.span
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _groups(bench: Bench) -> dict[str, list[Result]]:
    """The results of each place, in their order."""
    found: dict[str, list[Result]] = {}
    for one in bench.results:
        found.setdefault(f"{one.place}, batch {one.place.batch}", []).append(one)
    return found


def _baseline(picture: Element, scale: _Scale, top: float, height: float) -> None:
    x = f"{scale(1):.1f}"
    SubElement(picture, "line", x1=x, x2=x, y1=f"{top:.1f}", y2=f"{top + height:.1f}", stroke=_FAINT)


def _line(picture: Element, scale: _Scale, y: float, one: Result) -> None:
    """A network: its name, its interval, its dot, and what is said of it."""
    colour, at = _COLOURS[one.verdict], f"{y:.1f}"
    _write(picture, 32, y + 4, _short(one.network))
    ends = {"x1": f"{scale(one.low):.1f}", "x2": f"{scale(one.high):.1f}", "y1": at, "y2": at}
    SubElement(picture, "line", {**ends, "stroke": colour, "stroke-width": "3"})
    SubElement(picture, "circle", cx=f"{scale(one.speedup):.1f}", cy=at, r="5", fill=colour)
    _write(picture, _WIDTH - _RIGHT + 12, y + 4, ", ".join(_said(one)), colour=colour)


def _said(one: Result) -> Iterator[str]:
    """What stands behind a line: ``3.20 ms, 1.85x, faster``."""
    yield f"{one.latency.median_ms:.2f} ms"
    if one.verdict != "baseline":
        yield f"{one.speedup:.2f}x"
    yield one.verdict


def _write(
    picture: Element, x: float, y: float, text: str, *, size: int = 12, colour: str = _INK, weight: str = "normal"
) -> None:
    style = {"font-size": str(size), "fill": colour, "font-weight": weight}
    SubElement(picture, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **style}).text = text


def _short(name: str) -> str:
    """A name that has room; of a long one, its end tells more than its beginning."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
