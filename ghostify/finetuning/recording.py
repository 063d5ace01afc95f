"""A training run written down as it goes: numbers for machines, curves for people, and TensorBoard's files if asked.

``NAME-history.json``, ``NAME-epochs.csv``, ``NAME-steps.csv`` and ``NAME-curves.svg`` in the run's folder ``training``
are written anew after each epoch.  They are told by the history that checkpoints hold, so that a run that was stopped
and goes on has the numbers from before, too.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ghostify.errors import RecipeError, RunError
from ghostify.files import replacing
from ghostify.finetuning.curves import curves
from ghostify.finetuning.history import Epoch, History, Step
from ghostify.finetuning.loop import Progress

FOLDER = "training"
"""Where in a run folder it is written down."""
HISTORY, EPOCHS, STEPS, CURVES = "{}-history.json", "{}-epochs.csv", "{}-steps.csv", "{}-curves.svg"
TITLES = {"pretrain": "Training the original", "finetune": "Fine-tuning"}
"""What the trainings of a run are called."""
EVENTS = "tensorboard"
"""The folder of TensorBoard's files, beside those."""


class Recorder:
    """Writes down what a watcher is told, and passes it on."""

    def __init__(
        self,
        shown: Progress,
        folder: Path,
        name: str,
        original: float | None = None,
        tensorboard: bool = False,
        slowed: Callable[[], str] = str,
    ) -> None:
        """``original`` is what the measure gives of the original network, where that is known; ``slowed`` gives the
        line to be told, once, where something holds training up, else an empty one.  ``folder`` is that of the run.
        """
        self._shown, self._folder, self._name, self._original = shown, folder, name, original
        self._tensorboard = tensorboard
        self._events: Any = None
        self._slowed, self._warned = slowed, False

    def say(self, text: str) -> None:
        self._shown.say(text)

    def start(self, total_steps: int, title: str) -> None:
        # only here, because of several processes the first alone is told
        if self._tensorboard:
            self._events = _events(self._folder / FOLDER / EVENTS / self._name)
        self._shown.start(total_steps, title)

    def step(self, step: Step) -> None:
        if self._events is not None:
            for name, value in (("loss", step.loss), ("lr", step.lr), ("samples per second", step.throughput)):
                self._events.add_scalar(f"step/{name}", value, step.step)
        self._shown.step(step)

    def epoch(self, epoch: Epoch, history: History) -> None:
        history = history.model_copy(update={"original": self._original})
        write_history(self._folder, self._name, history)
        if self._events is not None:
            for name, value in (("held out", epoch.held), ("train", epoch.train_top1), ("loss", epoch.loss)):
                if value is not None:
                    self._events.add_scalar(f"epoch/{name}", value, epoch.epoch)
            self._events.flush()
        self._shown.epoch(epoch, history)
        if not self._warned and (line := self._slowed()):
            self._warned = True
            self._shown.say(line)

    def done(self) -> None:
        if self._events is not None:
            self._events.close()
        self._shown.done()


def write_history(folder: Path, name: str, history: History) -> None:
    """Write a history into a run folder, in place of the one that is there.  Raises ``RunError``."""
    folder = folder / FOLDER
    texts = {
        HISTORY: history.model_dump_json(indent=1),
        EPOCHS: _as_csv(Epoch, history.epochs),
        STEPS: _as_csv(Step, history.steps, ["throughput"]),
        CURVES: curves(history),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with replacing(folder / file.format(name)) as new:
                new.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise RunError(f"The history of training cannot be written to {str(folder)!r}: {problem.strerror}.") from None


def read_histories(folder: Path) -> dict[str, History]:
    """The histories of a run's trainings, by name, as far as there are any.  Raises ``RunError`` for a damaged one."""
    found = {}
    for name in TITLES:
        path = folder / FOLDER / HISTORY.format(name)
        if path.is_file():
            try:
                found[name] = History.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                raise RunError(f"The history {str(path)!r} cannot be read; delete it to see the rest.") from None
    return found


def curves_in(folder: Path, name: str) -> Path:
    """Where in a run folder the curves of a training are."""
    return folder / FOLDER / CURVES.format(name)


def _as_csv(kind: type[BaseModel], rows: Sequence[BaseModel], more: Sequence[str] = ()) -> str:
    """A row for each, under the names of its fields."""
    text = io.StringIO()
    columns = [*kind.model_fields, *more]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([getattr(row, column) for column in columns])
    return text.getvalue()


def require_tensorboard() -> None:
    """Raises ``RecipeError`` where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError("--tensorboard needs TensorBoard: pip install 'ghostify[tensorboard]'.")


def _events(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
