"""What the CLI puts on the screen: tables and results on stdout, everything else (what happens, how long) on stderr."""

from __future__ import annotations

import json as to_json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from ghostify.cli import streams
from ghostify.tables import Table

if TYPE_CHECKING:
    from ghostify.job import Outcome


class _Screen(Console):
    """A console whose reader may go away: who prints decides what that means."""

    def on_broken_pipe(self) -> None:
        raise


out = _Screen(soft_wrap=True, highlight=False)
err = _Screen(stderr=True, soft_wrap=True, highlight=False)


def line(text: str) -> None:
    """A line of a verb's answer."""
    with streams.stdout.answering():
        print(text)


def json(value: Any) -> None:
    """A verb's whole answer as JSON, which has no NaN and no infinity: null stands for them."""
    with streams.stdout.answering():
        print(to_json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(value: Table) -> None:
    """A table: drawn on a terminal, plain and uncut when piped."""
    if not out.is_terminal:
        line(f"{value}\n")
        return
    drawn = RichTable(title=escape(value.title), title_justify="left", title_style="bold", caption_justify="left")
    drawn.caption = escape("\n".join(filter(None, (value.note, value.words)))) or None
    for index, column in enumerate(value.columns):
        drawn.add_column(escape(column), justify="left" if value.aligns_left(index) else "right", overflow="fold")
    for row in value.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    with streams.stdout.answering():
        _Screen(highlight=False).print(drawn)


def say(text: str) -> None:
    """A line on what happens.  Work goes on when nobody reads it."""
    _tell(text, "")


def error(text: str) -> None:
    """The one line of an error."""
    _tell(" ".join(text.split()), "Error: ")


def _tell(text: str, label: str) -> None:
    with _if_read():
        if err.is_terminal:
            err.print(f"[bold red]{label}[/]{escape(text)}")
        else:  # rich would print a line again that Ctrl-C interrupted
            print(f"{label}{text}", file=sys.stderr, flush=True)


@contextmanager
def _if_read() -> Iterator[None]:
    try:
        yield
    except OSError:
        streams.silence(streams.STDERR)


class Watcher:
    """Shows an experiment: a bar with the time left on a terminal, plain lines when piped, nothing when ``quiet``."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def training(self) -> TrainingProgress:
        return TrainingProgress(self._quiet)

    @contextmanager
    def counting(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A function to be told how many of ``total`` are done."""
        steps = Steps(title, total, self._quiet)
        try:
            yield steps.at
        finally:
            steps.stop()


class TrainingProgress:
    """Shows one training run: its steps, and a line per epoch."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._steps: Steps | None = None
        self._done = self._samples = 0
        self._seconds = 0.0

    def say(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def start(self, total_steps: int, title: str) -> None:
        self._steps = Steps(title, total_steps, self._quiet)

    def step(self, step: Any) -> None:
        self._done += 1
        self._samples, self._seconds = self._samples + step.samples, self._seconds + step.seconds
        if self._steps:
            self._steps.at(self._done, f"loss {step.loss:.3f}, {_throughput(self._samples / max(self._seconds, 1e-9))}")

    def epoch(self, epoch: Any, history: Any) -> None:
        if not self._quiet:
            left = "" if err.is_interactive or self._steps is None else self._steps.time_left()
            fast = f", {_throughput(epoch.throughput)}" if epoch.throughput else ""
            say(f"  {epoch}{history.compared}{fast}{left}")

    def done(self) -> None:
        if self._steps:
            self._steps.stop()


def _throughput(value: float) -> str:
    return f"{value:,.0f} samples/s" if value >= 10 else f"{value:.2g} samples/s"


class Steps:
    """Counts up to ``total``: a bar that vanishes when done on a terminal; when piped, a line every half a minute."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self, title: str, total: int, quiet: bool) -> None:
        self._title, self._total, self._quiet = title, total, quiet
        self._done = 0
        self._began = self._told = time.monotonic()
        self._bar = None if quiet or not err.is_interactive else _bar()
        self._task = self._bar.add_task(escape(title), total=total, note="") if self._bar else None

    def at(self, done: int, note: str = "") -> None:
        """``done`` of the total are done."""
        self._done = done
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif not self._quiet and time.monotonic() - self._told > self.SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            say(f"  {self._title}: {done} of {self._total}{', ' * bool(note)}{note}{self.time_left()}")

    def time_left(self) -> str:
        """``, 12 s left``, or nothing where it cannot be said or nothing is left."""
        left = self._total - self._done
        if not left or not self._done:
            return ""
        seconds = (time.monotonic() - self._began) / self._done * left
        return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, console=err, transient=True)
    bar.start()
    return bar


def trainings(folder: Path) -> dict[str, Any]:
    """What the trainings of a run went through, for its JSON; nothing where there were none."""
    from ghostify.finetuning import read_histories

    found = {name: history.model_dump(mode="json") for name, history in read_histories(folder).items()}
    return {"training": found} if found else {}


def outcome(found: Outcome, as_json: bool) -> None:
    """What an experiment gave: its report, and where it is."""
    if as_json:
        json({"folder": str(found.folder), **found.report.model_dump(mode="json"), **trainings(found.folder)})
        return
    for one in (found.report.summary(), *found.report.forms()):
        table(one)
    folder = shlex.quote(str(found.folder))
    say(f"Saved in {found.folder}; see each layer with: ghostify report {folder} --layers")
