"""What training went through, epoch by epoch, and which epoch's weights it delivers."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from ghostify.recipe import TrainSettings
from ghostify.tables import Table

TOP1 = "top-1"
"""The name of the measure that is told in per cent."""
KNOWN = 0.0075
"""How much top-1, as a share, the network as it was may lead by, and a trained one is still taken for better, where it
may have learned the images held out: it then knows these better than any other image, and forgets some of that.
"""
MOST_STEPS = 400
"""So many steps of a run are written down, evenly spread: enough for a curve, and little to keep."""


class Step(BaseModel):
    """One step of training, counted from 1 over all epochs.

    ``epochs`` tells how many epochs are over with it, ``loss`` is its batch's mean, ``lr`` its learning rate,
    ``samples`` are those of the batch, and ``seconds`` the time from asking for them until the weights have moved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    step: int
    epochs: float
    loss: float
    lr: float
    samples: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds if self.seconds else 0.0


class Epoch(BaseModel):
    """One finished epoch, counted from 1.

    ``lr`` is the learning rate of its last step, ``loss`` the mean training loss per image, ``train_top1`` the share
    (0 to 1) of augmented training images that were right while it trained (None by a loss of the user's), ``held`` what
    the ``measure`` then gave for the images held out (None where none are; top-1 is a share, too), ``seconds`` the time
    of both, ``throughput`` the samples per second while it trained, and ``skipped`` the steps that were left out
    because they overflowed in float16.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    epoch: int
    lr: float
    loss: float
    train_top1: float | None
    held: float | None = None
    seconds: float
    measure: str = TOP1
    skipped: int = 0
    throughput: float | None = None

    def __str__(self) -> str:
        told = f"epoch {self.epoch}: loss {self.loss:.4f}"
        return told if self.held is None else f"{told}, held out {_shown(self.held, self.measure)}"


class History(BaseModel):
    """The finished epochs of a run, in order, and what the measure gave before them (for epoch 0).

    ``steps`` are some of its steps, and ``original`` is what the measure gives of the original network, if known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    before: float | None = None
    handicap: float = 0.0
    """By how much more than that of an epoch it must be, so that the network as it was is kept."""
    rate: float | None = None
    """The peak learning rate, where a test found it."""
    epochs: tuple[Epoch, ...] = ()
    steps: tuple[Step, ...] = ()
    original: float | None = None

    def plus(self, epoch: Epoch) -> History:
        """This history with one more epoch."""
        return self.model_copy(update={"epochs": (*self.epochs, epoch)})

    def noted(self, step: Step, total: int) -> History:
        """This history with one more step of ``total``, where that is one to write down."""
        if step.step % math.ceil(total / MOST_STEPS) and step.step != total:
            return self
        return self.model_copy(update={"steps": (*self.steps, step)})

    @property
    def compared(self) -> str:
        """What the original has, to be told behind an epoch, as in ``, original 92.60%``; empty where nobody knows."""
        return "" if self.original is None else f", original {_shown(self.original, self.epochs[-1].measure)}"

    @property
    def kept(self) -> int:
        """The epoch whose weights are delivered: the first of the best by the images held out; 0 is before training,
        which has a ``handicap``.

        Without such images it is the last.
        """
        best, value = 0, None if self.before is None else self.before - self.handicap
        for epoch in self.epochs:
            if value is None or epoch.held is None or epoch.held > value:
                best, value = epoch.epoch, epoch.held
        return best

    def table(self, title: str = "Training") -> Table:
        """One row per epoch, beginning with the network as it was, and a note on which is kept."""
        columns = ["epoch", "lr", "loss", "train", "held out", "seconds"]
        return Table(title, columns, [*self._first_row(), *map(_row, self.epochs)], note=self._note())

    def verdict(self, name: str, settings: TrainSettings, chosen_by: str = "", why_not: str = "") -> str:
        """In a sentence, which epoch was kept and why; empty without epochs.

        ``name`` is what the training is called, ``chosen_by`` the images it was chosen by, or ``why_not`` why there
        were none.
        """
        if not self.epochs:
            return ""
        if self.rate is not None:
            name = f"{name} at the rate of {self.rate:.2g} that a test found"
        if self.before is None:
            return (
                f"{name}: the last epoch is kept without being compared, because {why_not or 'no image is held out'}."
            )
        measure = self.epochs[0].measure
        best = max(epoch.held for epoch in self.epochs if epoch.held is not None)
        if not self.kept:
            return (
                f"{name} made the network no better: on {chosen_by} it had {_shown(self.before, measure)} before and "
                f"{_shown(best, measure)} after its best epoch, so the weights from before are kept. "
                f"{self._hint(settings)}"
            )
        return (
            f"{name}: epoch {self.kept} of {len(self.epochs)} is kept, the best on {chosen_by} "
            f"({_shown(best, measure)}; before training {_shown(self.before, measure)}).{self._excuse(best)}"
        )

    def _excuse(self, best: float) -> str:
        """A sentence on why a trained network is kept that has less than the one before."""
        if self.before is None or best > self.before:
            return ""
        return (
            f" The one before does not count as better, up to {100 * self.handicap:g} points, because it may have "
            "learned these very images; images of your own in a folder val tell it exactly."
        )

    def _hint(self, settings: TrainSettings) -> str:
        """What to try where training did no good."""
        rate = settings.peak if self.rate is None else self.rate
        hints = [f"a lower lr (now {rate:.3g})", f"more epochs (now {settings.epochs})"]
        if not settings.distill:
            hints.append("distill 0.7")
        return f"Try {', '.join(hints[:-1])} or {hints[-1]}."

    def _first_row(self) -> list[list[str]]:
        if self.before is None or not self.epochs:
            return []
        return [["0", "", "", "", _shown(self.before, self.epochs[0].measure), ""]]

    def _note(self) -> str:
        return f"Epoch {self.kept} is kept.{self._original_has}" if self.epochs else ""

    @property
    def _original_has(self) -> str:
        """A sentence on what the original has on the same images, where that is known."""
        if self.original is None:
            return ""
        return f" The original has {_shown(self.original, self.epochs[-1].measure)} on the images held out."

    def __str__(self) -> str:
        return str(self.table())


def _shown(value: float, measure: str) -> str:
    return f"{100 * value:.2f}%" if measure == TOP1 else f"{value:.4g}"


def _row(epoch: Epoch) -> list[str]:
    held = "" if epoch.held is None else _shown(epoch.held, epoch.measure)
    shares = ["" if epoch.train_top1 is None else f"{100 * epoch.train_top1:.2f}%", held]
    return [str(epoch.epoch), f"{epoch.lr:.2g}", f"{epoch.loss:.4f}", *shares, f"{epoch.seconds:.1f}"]
