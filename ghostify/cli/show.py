"""What the CLI puts on the screen: tables and results on stdout, everything else (what happens, how long) on stderr."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from ghostify.tables import Table

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def table(value: Table) -> None:
    """A table: drawn on a terminal, plain and uncut when piped."""
    if not out.is_terminal:
        print(f"{value}\n")
        return
    drawn = RichTable(title=escape(value.title), title_justify="left", title_style="bold", caption_justify="left")
    drawn.caption = escape(value.note) or None
    for index, column in enumerate(value.columns):
        drawn.add_column(escape(column), justify="left" if value.aligns_left(index) else "right", overflow="fold")
    for row in value.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    Console(highlight=False).print(drawn)


def say(text: str) -> None:
    """A line on what happens."""
    err.print(escape(text))


def error(text: str) -> None:
    """The one line of an error."""
    if err.is_terminal:
        err.print(f"[bold red]Error:[/] {escape(text)}")
    else:
        print(f"Error: {' '.join(text.split())}", file=err.file)


class Watcher:
    """Shows an experiment: a bar with the time left on a terminal, a line per epoch when piped."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def training(self) -> TrainingProgress:
        return TrainingProgress(self._quiet)


class TrainingProgress:
    """Shows one training run."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._steps = self._total = 0
        self._began = 0.0

    def start(self, total_steps: int, title: str) -> None:
        self._total, self._began = total_steps, time.monotonic()
        if self._quiet or not err.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self._bar = Progress(*columns, console=err, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(escape(title), total=total_steps, loss="")

    def step(self, loss: float) -> None:
        self._steps += 1
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=1, loss=f"loss {loss:.3f}")

    def epoch(self, epoch: Any) -> None:
        if not self._quiet:
            say(f"  {epoch}{self._time_left()}")

    def done(self) -> None:
        if self._bar:
            self._bar.stop()

    def _time_left(self) -> str:
        left = self._total - self._steps
        if not left or not self._steps or err.is_terminal:
            return ""
        return f", {(time.monotonic() - self._began) / self._steps * left:.0f} s left"
