"""Analysis → a folder: JSON for machines, CSV for spreadsheets, a page for people, figures on request."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghostify.analysis.columns import layer_columns
from ghostify.analysis.pictures import Pictures
from ghostify.analysis.result import NAME, Analysis
from ghostify.errors import RunError
from ghostify.files import replacing, undone_on_failure
from ghostify.reporting.figures import draw_analysis
from ghostify.reporting.page import render_page

PAGE = "report.html"


def write_analysis(folder: Path, analysis: Analysis, pictures: Pictures | None, figures: bool = False) -> list[Path]:
    """Write an analysis into a folder that is there; the files written, or none of them.  Raises ``RunError``."""
    texts = {
        NAME: analysis.model_dump_json(indent=1),
        "layers.csv": layers_csv(analysis),
        "stages.csv": stages_csv(analysis),
        PAGE: render_page(analysis, pictures),
    }
    try:
        with undone_on_failure() as made:
            for name, text in texts.items():
                with replacing(folder / name) as new:
                    new.write_text(text, encoding="utf-8")
                made.file(folder / name)
            drawn = draw_analysis(analysis, pictures, folder / "figures", made) if figures else []
    except OSError as problem:
        raise RunError(f"The analysis cannot be written to {str(folder)!r}: {problem.strerror}.") from None
    return [*(folder / name for name in texts), *drawn]


def layers_csv(analysis: Analysis) -> str:
    """A row for each layer, with a header."""
    columns = [column for column in layer_columns(analysis.layers) if column.key]
    rows = [[column.value(layer) for column in columns] for layer in analysis.layers]
    return _csv([[column.key for column in columns], *rows])


def stages_csv(analysis: Analysis) -> str:
    """A row for each stage and ghost ratio, with a header."""
    rows: list[list[Any]] = [
        ["stage", "geometry", "macs", "share", "ratio", "error_cheap", "error_mix", "advised_ratio"]
    ]
    for stage in analysis.stages:
        for point in stage.curve:
            row: list[Any] = [stage.name, stage.geometry, stage.cost.macs, stage.share]
            rows.append([*row, point.ratio, point.cheap, point.mix, stage.advice.ratio or ""])
    return _csv(rows)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
