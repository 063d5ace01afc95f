"""Figures of a redundancy report, as PNG for a slide and SVG for a paper."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ghostify.analysis.pictures import LayerPictures, Pictures
from ghostify.analysis.result import Analysis
from ghostify.errors import RunError
from ghostify.files import Made, replacing

_COLUMNS = 8
_GRIDS = 8
"""Layers whose maps are drawn: those of most MACs."""


def draw_analysis(analysis: Analysis, pictures: Pictures | None, folder: Path, made: Made) -> list[Path]:
    """Draw all figures into a folder; the files written, noted in ``made``.  Raises ``RunError`` without matplotlib."""
    require_figures()
    if not folder.is_dir():
        made.folder(folder)
    written = []
    for name, (width, height), draw in _figures(analysis, pictures):
        written += _drawn(folder / name, (width, height), draw, made)
    return written


def require_figures() -> None:
    """Raise ``RunError`` where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RunError("Figures need matplotlib: pip install 'ghostify[figures]', or leave out --figures.")


def _figures(
    analysis: Analysis, pictures: Pictures | None
) -> Iterator[tuple[str, tuple[float, float], Callable[[Any], None]]]:
    layers = analysis.layers
    if layers:
        yield "layers", (8, 0.22 * len(layers) + 1.2), lambda axes: _bars(axes, analysis)
        yield "filters", (5, 3.6), lambda axes: _by_size(axes, analysis)
    if analysis.stages:
        yield "stages", (5, 3.6), lambda axes: _curves(axes, analysis)
    largest = sorted(layers, key=lambda layer: -layer.cost.macs)[:_GRIDS]
    for layer in largest if pictures else ():
        taken = pictures.layers.get(layer.name) if pictures else None
        if taken is not None:
            yield f"maps-{layer.name}", (6, 6), lambda axes, taken=taken, name=layer.name: _grid(axes, taken, name)  # type: ignore[misc]


def _drawn(path: Path, size: tuple[float, float], draw: Callable[[Any], None], made: Made) -> list[Path]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.add_subplot())
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for file in written:
        with replacing(file) as new:
            figure.savefig(new, dpi=150, format=file.suffix[1:])
        made.file(file)
    return written


def _bars(axes: Any, analysis: Analysis) -> None:
    names = [f"{layer.name}  ({layer.advice.short})" for layer in analysis.layers]
    axes.barh(names, [layer.redundancy for layer in analysis.layers], color="#33638d")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("share of a map's variance that one other map explains by a filter")
    axes.set_title(f"{analysis.network}, {analysis.images} images" + _warned(analysis))


def _by_size(axes: Any, analysis: Analysis) -> None:
    for layer in analysis.layers:
        axes.plot([one.d for one in layer.filters], [one.error for one in layer.filters], color="#33638d", alpha=0.3)
    sizes = sorted({one.d for layer in analysis.layers for one in layer.filters})
    means = [_mean([one.error for layer in analysis.layers for one in layer.filters if one.d == d]) for d in sizes]
    axes.plot(sizes, means, color="#b8562f", linewidth=2.5, marker="o", label="mean over layers")
    axes.set(xlabel="filter size d", ylabel="error / variance", ylim=(0, 1), xticks=sizes)
    axes.set_title("Maps as filters of one other map" + _warned(analysis))
    axes.legend()


def _curves(axes: Any, analysis: Analysis) -> None:
    for index, stage in enumerate(analysis.stages):
        ratios = [point.ratio for point in stage.curve]
        axes.plot(ratios, [point.cheap for point in stage.curve], color=f"C{index}", linestyle="--")
        axes.plot(ratios, [point.mix for point in stage.curve], color=f"C{index}", label=stage.name)
    axes.set(xlabel="ghost ratio λ", ylabel="error / variance", ylim=(0, 1))
    axes.set_title("Ghosts by the cheap operation (dashed) and with mix" + _warned(analysis))
    axes.legend()


def _grid(axes: Any, taken: LayerPictures, name: str) -> None:
    import numpy as np

    count, height, width = taken.pixels.shape
    rows = -(-count // _COLUMNS)
    sheet = np.full((rows * (height + 1), _COLUMNS * (width + 1)), 255, dtype=np.uint8)
    for index, pixels in enumerate(taken.pixels):
        top, left = index // _COLUMNS * (height + 1), index % _COLUMNS * (width + 1)
        sheet[top : top + height, left : left + width] = pixels
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{name}: {count} maps")


def _warned(analysis: Analysis) -> str:
    return "\nrandom weights" if analysis.trained is False else ""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
