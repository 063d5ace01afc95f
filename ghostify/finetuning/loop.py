"""The training loop: one step after another, from any step on.

After each epoch the network is measured on images held out, and the weights of the best epoch are delivered; epoch 0 is
the network as it was, so training never makes it worse by that measure.  The images a report quotes are not looked at:
what is chosen by them would be told too well of.

A place in a run is (epoch, step).  All that is random, and the learning rate, are functions of it and of the seed; so
a run that was stopped, however it was, and goes on from a checkpoint at the end of any step gives, on a CPU, the very
bits of one that was not.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ghostify.errors import DataError, GhostifyError, ModelError, RunError, Stopped
from ghostify.finetuning.blaming import blame, where_it_fails
from ghostify.finetuning.checkpoint import Begun, RunState, has_checkpoint, load_checkpoint, restore, save_checkpoint
from ghostify.finetuning.engine import Engine, Totals
from ghostify.finetuning.feeding import Feed, Pair
from ghostify.finetuning.history import KNOWN, TOP1, Epoch, History, Step
from ghostify.finetuning.interrupting import Interruption, noted_signals
from ghostify.finetuning.measures import Measure, measure_name, measured, renewed
from ghostify.finetuning.pace import Pace
from ghostify.finetuning.rate import find_rate
from ghostify.finetuning.schedules import learning_rate
from ghostify.processes import Processes
from ghostify.recipe import AUTO, TrainSettings

MOST_SKIPPED = 100
"""So many steps in a row may overflow in float16 while its scale is found; more are a run that diverged."""


class Progress(Protocol):
    """Somebody who watches a run."""

    def say(self, text: str) -> None:
        """A line that a person must know."""

    def start(self, total_steps: int, title: str) -> None:
        """Training begins, with ``total_steps`` left to do."""

    def step(self, step: Step) -> None:
        """One step was done."""

    def epoch(self, epoch: Epoch, history: History) -> None:
        """One epoch was done, measured, and saved; ``history`` has all of the run until then."""

    def done(self) -> None:
        """Training is over: finished, failed or interrupted."""


@dataclass
class Training:
    """One training run: where it stands, and the weights of the epoch that is kept so far."""

    engine: Engine
    feed: Feed
    state: RunState
    measure: Measure | None
    checkpoint: Path | None
    watcher: Progress
    known: bool = False
    """Whether the network may have learned the images held out before."""
    best: Mapping[str, Any] = field(default_factory=dict)
    noted: Interruption = field(default_factory=Interruption)
    pace: Pace = field(init=False)
    skipped: int = 0
    """Steps in a row that overflowed in float16."""
    asked: float = 0.0
    """When the present batch was asked for."""

    def __post_init__(self) -> None:
        self.pace = Pace(self.settings.save_every)

    @property
    def settings(self) -> TrainSettings:
        """How it is trained."""
        return self.state.settings

    def carried_out(self) -> History:
        """Train to the end; even after an error the network has the weights of the epoch that is kept so far."""
        if not self.settings.epochs:
            return History()
        with noted_signals() as self.noted:
            self._begin()
            try:
                self._train()
            finally:
                self.engine.model.load_state_dict(self.best)
        return self.state.history

    def _begin(self) -> None:
        """Go on from the checkpoint, if there is one; else measure the network as it is."""
        if not self._resumed():
            self._remember()
            rate = self._found_rate()
            # epoch 0: what any training must beat
            with self.noted.at_once():
                before = self._measured()
            handicap = KNOWN if self.known and measure_name(self.measure) == TOP1 else 0.0
            history = History(rate=rate, before=before, handicap=handicap)
            self.state = self.state.model_copy(update={"history": history})

    def _found_rate(self) -> float | None:
        """The learning rate that a test finds, where that is asked for; training goes on at it."""
        if self.settings.lr != AUTO:
            return None
        with self.noted.at_once():
            found = find_rate(self.engine, self.feed)
        self.watcher.say(str(found))
        self.state = self.state.model_copy(update={"settings": self.settings.at_rate(found.rate)})
        return found.rate

    def _resumed(self) -> bool:
        """Whether there was a checkpoint, which the first process reads for all."""
        folder = self.checkpoint
        found = folder is not None and has_checkpoint(folder)
        saved = self.processes.same(load_checkpoint(folder) if found and folder is not None else None)
        if saved is None:
            return False
        if self.settings.lr == AUTO:  # it was found before the first step
            self.state = self.state.model_copy(update={"settings": self.settings.at_rate(saved.run.settings.peak)})
        require_same_run(str(folder), saved.run, self.state)
        restore(saved, self.engine)
        for line in filter(None, (saved.problem, _other_world(saved.run.world, self.processes.world))):
            self.watcher.say(line)
        present = {"settings": self.settings, "world": self.processes.world}
        self.state, self.best = saved.run.model_copy(update=present), saved.best
        return True

    def _train(self) -> None:
        first = len(self.state.history.epochs)
        for epoch in range(first, self.settings.epochs):
            total, batches = self.feed.epoch(epoch, self.state.begun.steps)
            if not total:
                raise DataError("The training data gives no batch: there are no images, or fewer than batch_size.")
            if epoch == first:
                left = total * (self.settings.epochs - epoch) - self.state.begun.steps
                self.watcher.start(left, f"Training, {self.settings.epochs - epoch} epochs")
            for pair in self._fetched(batches):
                self._step(epoch, total, pair)
                self._saved_or_stopped()
            self._finish(epoch, total)

    def _fetched(self, batches: Iterator[Pair | None]) -> Iterator[Pair | None]:
        """The batches, until a signal comes: what it did to loader processes is then no matter."""
        while True:
            self.asked = time.perf_counter()
            try:
                pair = next(batches)
            except StopIteration:
                return
            except Exception:
                if self.noted.signal and self.processes.world == 1:
                    self._stop(self.noted.signal)
                raise
            yield pair

    def _step(self, epoch: int, total: int, pair: Pair | None) -> None:
        """Train on one batch."""
        step, micro = self.state.begun.steps, self.engine.micro
        found = self.engine.gradients(pair, self.state.seed, epoch, step)
        if self.engine.micro != micro:
            self.watcher.say(_smaller(self.engine.micro, self.state.batch_size))
        rate = learning_rate(epoch * total + step, total * self.settings.epochs, self.settings)
        taken = self.engine.update(rate) if math.isfinite(found.loss) else self._overflowed(epoch, total, found, pair)
        self._require_progress(taken, epoch, total)
        seconds = time.perf_counter() - self.asked
        self._count(found, taken, seconds)
        self._note(epoch * total + step + 1, total, found, rate, seconds)

    def _overflowed(self, epoch: int, total: int, found: Totals, pair: Pair | None) -> bool:
        """Leave a step out whose loss is no number, where that may be float16's doing; elsewhere training ends."""
        if not self.engine.scaler.is_enabled():
            # before the update, so that the weights are still those of the last good step
            where = f"step {self.state.begun.steps + 1} of {total}: the loss is {found.mean}"
            raise self._diverged(epoch, where, pair)
        self.engine.skip()
        return False

    def _require_progress(self, taken: bool, epoch: int, total: int) -> None:
        self.skipped = 0 if taken else self.skipped + 1
        if self.skipped > MOST_SKIPPED:
            where = f"step {self.state.begun.steps + 1} of {total}: {MOST_SKIPPED} steps in a row overflowed in float16"
            raise self._diverged(epoch, where)

    def _count(self, found: Totals, taken: bool, seconds: float) -> None:
        """Write a finished step down."""
        counted = found if math.isfinite(found.loss) else Totals()
        begun = self.state.begun
        begun = Begun(
            steps=begun.steps + 1,
            loss=begun.loss + counted.loss,
            correct=begun.correct + counted.correct,
            samples=begun.samples + counted.samples,
            skipped=begun.skipped + (not taken),
            seconds=begun.seconds + seconds,
        )
        self.state = self.state.model_copy(update={"begun": begun})

    def _note(self, done: int, total: int, found: Totals, rate: float, seconds: float) -> None:
        """Tell of a finished step, the ``done``-th of all, and keep it in the history where that is to have it."""
        step = Step(step=done, epochs=done / total, loss=found.mean, lr=rate, samples=found.samples, seconds=seconds)
        history = self.state.history.noted(step, total * self.settings.epochs)
        if history is not self.state.history:
            self.state = self.state.model_copy(update={"history": history})
        self.watcher.step(step)

    def _saved_or_stopped(self) -> None:
        """After a step: save where that is due, and end where a signal asks for it; all processes after the same."""
        due = self.checkpoint is not None and self.pace.due()
        stops, dues = self.processes.total([self.noted.signal != 0, due])
        if stops:
            self._stop(self.noted.signal or signal.SIGTERM)
        if dues:
            self._save()

    def _stop(self, number: int) -> None:
        self._save()
        raise Stopped(number)

    def _save(self) -> None:
        """Put the present state on the disk, unless it is damaged: what lies there is then better."""
        if self.checkpoint is not None and not self.engine.damaged():
            with self.pace.saving():
                save_checkpoint(self.checkpoint, self.state, self.engine, self.best)

    def _finish(self, epoch: int, total: int) -> None:
        """Measure after the last step of an epoch, write that down, and keep the weights if they are the best."""
        began = time.perf_counter()
        # a loss can stay finite while the statistics of a norm, or a weight that nobody reads, overflow
        if name := self.engine.damaged():
            raise self._diverged(epoch, f"at its last step: {name!r} holds NaN or infinite numbers")
        held = self._measured_after(epoch)
        told = self._told(epoch, total, held, time.perf_counter() - began)
        self.state = self.state.model_copy(update={"history": self.state.history.plus(told), "begun": Begun()})
        # remembered before it is written, because the checkpoint holds the best weights, too
        if self.state.history.kept == told.epoch:
            self._remember()
        self._save()
        self.watcher.epoch(told, self.state.history)
        if self.processes.total([self.noted.signal != 0])[0]:
            raise Stopped(self.noted.signal or signal.SIGTERM)

    def _told(self, epoch: int, total: int, held: float | None, seconds: float) -> Epoch:
        begun = self.state.begun
        samples = max(1, begun.samples)
        return Epoch(
            epoch=epoch + 1,
            lr=learning_rate(epoch * total + total - 1, total * self.settings.epochs, self.settings),
            loss=begun.loss / samples,
            train_top1=begun.correct / samples if self.engine.objective.own is None else None,
            held=held,
            seconds=begun.seconds + seconds,
            skipped=begun.skipped,
            measure=measure_name(self.measure),
            throughput=begun.samples / begun.seconds if begun.seconds else None,
        )

    def _measured_after(self, epoch: int) -> float | None:
        """What the measure says after an epoch's last step; a signal meanwhile ends it at once, to be done again."""
        try:
            with self.noted.at_once():
                self._renew(epoch)
                return self._measured()
        except Stopped:
            self._save()
            raise
        except (DataError, ModelError, RunError):
            raise
        except GhostifyError as problem:
            raise self._diverged(epoch, f"measured at its end: {str(problem).removesuffix('.')}") from None

    def _measured(self) -> float | None:
        """What the measure says of the images held out; None where there are none."""
        if self.measure is None:
            return None
        value = measured(self.engine.delivered, self.feed, self.measure)
        if value is not None and not math.isfinite(value):
            raise GhostifyError(
                f"The measure {measure_name(self.measure)} gives {value} for the images held out, by which no epoch "
                "can be compared with another; it must give a finite number."
            )
        return value

    def _renew(self, epoch: int) -> None:
        if self.settings.renew_norms:
            renewed(self.engine.delivered, self.feed, epoch, self.settings.renew_norms)

    def _remember(self) -> None:
        """Keep a copy of the weights as they are."""
        self.best = copy.deepcopy(self.engine.delivered.state_dict())

    def _diverged(self, epoch: int, what: str, pair: Pair | None = None) -> GhostifyError:
        """Why training cannot go on in an epoch: where, why, what to do, and what is left of it."""
        cause = blame(self.engine.objective, *pair) if pair else ""
        place = where_it_fails(self.engine.objective, pair[0]) if pair and not cause else ""
        clip = "set clip" if self.settings.clip is None else f"clip (now {self.settings.clip:g})"
        advice = f", because {cause}." if cause else f"{place}. Lower lr (now {self.settings.peak:g}) or {clip}."
        kept = self.state.history.kept
        left = f"of epoch {kept}" if kept else "from before training"
        where = f" in {str(self.checkpoint)!r}" if self.checkpoint is not None and kept else ""
        return GhostifyError(
            f"Training stopped in epoch {epoch + 1}, {what}{advice} The weights {left} are kept{where}."
        )

    @property
    def processes(self) -> Processes:
        """The processes that train it."""
        return self.feed.processes


def require_same_run(folder: str, then: RunState, now: RunState) -> None:
    """Refuse to go on with other settings than a run was begun with.  Raises ``RunError``.

    How often it is saved is no matter.
    """
    before, after = _settings_of(then), _settings_of(now)
    for key in before:
        if before[key] != after[key]:
            raise RunError(
                f"Checkpoint {folder!r} was made with {key} = {before[key]}, not {after[key]}: "
                f"use another folder, or the settings it was made with."
            )


def _settings_of(run: RunState) -> dict[str, Any]:
    return {**run.settings.model_dump(exclude={"save_every"}), "seed": run.seed, "batch_size": run.batch_size}


def _other_world(then: int, now: int) -> str:
    if then == now:
        return ""
    return (
        f"Training was begun by {then} {'process' if then == 1 else 'processes'} and goes on with {now}: each batch "
        "holds the same images, and results differ by rounding, by what is drawn at random, and by batch norms."
    )


def _smaller(micro: int | None, batch_size: int) -> str:
    return (
        f"The memory of the device is too small for the batch: {micro} images are run at once from now on, and the "
        f"weights move after {batch_size}, as before."
    )
