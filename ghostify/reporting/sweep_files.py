"""Sweep → a folder: JSON for machines, a page for people, its picture apart."""

from __future__ import annotations

from pathlib import Path

from ghostify.errors import RunError
from ghostify.files import replacing
from ghostify.reporting.front import front
from ghostify.reporting.sweep import SWEEP, Sweep
from ghostify.reporting.templates import template

PAGE, PICTURE = "sweep.html", "sweep.svg"


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write a sweep into a folder that is there, in place of what it held of one.  Raises ``RunError``."""
    texts = {SWEEP: sweep.model_dump_json(indent=1), PAGE: render_sweep(sweep)}
    if (picture := render_front(sweep)) is not None:
        texts[PICTURE] = picture
    try:
        for name, text in texts.items():
            with replacing(folder / name) as new:
                new.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise RunError(f"The sweep cannot be written to {str(folder)!r}: {problem.strerror}.") from None


def render_sweep(sweep: Sweep) -> str:
    """The sweep as one page, which needs no network and no other file."""
    values = {"sweep": sweep, "front": front(sweep), "table": sweep.table(), "points": sweep.of_family("plan")}
    return template("sweep.html").render(values).strip() + "\n"


def render_front(sweep: Sweep) -> str | None:
    """The picture as a file of its own; None where there is none."""
    drawn = front(sweep)
    return None if drawn is None else template("front.svg").render(front=drawn).strip() + "\n"
