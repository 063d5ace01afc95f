"""The training loop: SGD with Nesterov momentum, linear warm-up, cosine to zero, and the original network as teacher.

After each epoch the network is measured on images held out, and the weights of the best epoch are delivered; epoch 0 is
the network as it was, so training never makes it worse by that measure.  The images a report quotes are not looked at:
what is chosen by them would be told too well of.

All randomness comes from (seed, epoch), so a run that was stopped and goes on at an epoch boundary gives, on a CPU, the
very bits of one that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from ghostify.arguments import network, or_none, takes
from ghostify.errors import DataError, GhostifyError, ModelError, RecipeError, RunError
from ghostify.finetuning.checkpoint import RunState, has_checkpoint, load_checkpoint, restore, save_checkpoint
from ghostify.finetuning.engine import Engine, seed_epoch
from ghostify.finetuning.history import TOP1, Epoch, History
from ghostify.finetuning.losses import MinusLoss, OwnLoss
from ghostify.finetuning.schedules import learning_rate
from ghostify.inference import Optimized
from ghostify.measuring import evaluate
from ghostify.measuring.accuracy import images_and_labels, samples_in
from ghostify.measuring.borrowing import Device, device_for, on_device
from ghostify.recipe import TrainSettings, make_settings
from ghostify.rewriting import Ghosted
from ghostify.running import as_called, evaluating, random_states_kept, undisturbed

Measure = Callable[[nn.Module, Iterable[Any]], float]
"""How good a network in eval mode is on the batches of a loader: a number, larger is better."""


class TrainingData(Protocol):
    """Images to train on and to choose an epoch by.  Loaders give ``(images (N, C, H, W), labels (N,))``.

    The training loader of an epoch depends on its arguments alone, and has as many batches in every epoch.
    """

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        """Shuffled, augmented batches of one epoch, counted from 0."""

    def held_loader(self, batch_size: int, workers: int) -> DataLoader[Any] | None:
        """Images that are not trained on, the same in every epoch, each once; None where there are none."""


class Progress(Protocol):
    """Somebody who watches a run."""

    def say(self, text: str) -> None:
        """A line that a person must know."""

    def start(self, total_steps: int, title: str) -> None:
        """Training begins, with ``total_steps`` left to do."""

    def step(self, loss: float) -> None:
        """One step was done; ``loss`` is its batch's mean."""

    def epoch(self, epoch: Epoch) -> None:
        """One epoch was done, measured, and saved."""

    def done(self) -> None:
        """Training is over: finished, failed or interrupted."""


def top1(model: nn.Module, loader: Iterable[Any]) -> float:
    """The share (0 to 1) of images that a classifier puts where their labels do."""
    return evaluate(model, loader).top1


@takes(teacher=or_none(network))
@undisturbed()
@as_called()
def finetune(
    model: nn.Module | Ghosted,
    data: TrainingData,
    settings: TrainSettings | Mapping[str, Any],
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: Device | None = None,
    batch_size: int = 128,
    workers: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    measure: Measure | None = None,
    loss: Callable[..., Any] | None = None,
) -> History:
    """Train ``model`` in place, and leave it with the weights of the best epoch (``History.kept``).

    Best is what the ``measure`` (top-1) says of the images held out: after each epoch, and before the first, so that a
    run that does no good leaves the network as it was.  Where ``data.held_loader`` gives None the last epoch stays.
    Of a ``Ghosted`` network its module is trained, by default at a rate for one that was fitted, if it was.

    ``loss`` (outputs, labels) → scalar stands in place of the cross entropy, so that networks of any outputs can be
    trained; one of three arguments, (model, inputs, labels), runs the network itself, which may tell its own losses.
    Epochs are then compared by ``measure`` (a ``measuring.Metric``, say), else by the loss where it has two arguments.

    ``device`` None means where the model is; otherwise the model is moved there (a teacher elsewhere is copied).
    ``teacher`` gives the soft labels, and is used only when ``settings.distill`` > 0.  With a ``checkpoint`` folder,
    each finished epoch is put on the disk, and a run that finds one there goes on from it.  What the user froze stays:
    parameters that require no gradient, the statistics of parts that hold only such, and, in a model in train mode,
    submodules in eval mode.  Afterwards, even after an error, all submodules of both networks are in the train or
    eval modes they had, and the random states of torch, NumPy and Python are what they were.

    Raises ``RecipeError`` when distilling without a teacher; ``RunError`` for an inference form, and for checkpoints
    that are all damaged, or of other settings, or of another network; ``DataError`` and ``ModelError`` when the
    batches or the outputs are not those of a classifier; ``GhostifyError`` when the loss is no longer finite (the model
    then has the weights of the best epoch before).
    """
    _require_trainable(model)
    module, fitted = (model.module, model.fit is not None) if isinstance(model, Ghosted) else (network(model), False)
    _require_protocol(data)
    settings = make_settings(TrainSettings, settings, {}).resolved(fitted)
    here = device_for(module, device)
    own = loss if isinstance(loss, OwnLoss) or loss is None else OwnLoss.of(loss)
    engine = Engine.of(module.to(here), _teacher_at(here, teacher, settings, own), settings, here, own)
    state = RunState(settings=settings, seed=seed, batch_size=batch_size)
    run = _Training(engine, data, state, measure or _usual(own), workers, checkpoint, progress or _Silent())
    with engine.training(), random_states_kept(here):
        try:
            return run.carried_out()
        finally:
            run.watcher.done()


@dataclass
class _Training:
    """One training run: where it stands, and the weights of the epoch that is kept so far."""

    engine: Engine
    data: TrainingData
    state: RunState
    measure: Measure | None
    workers: int
    checkpoint: Path | None
    watcher: Progress
    best: Mapping[str, Any] = field(default_factory=dict)

    def carried_out(self) -> History:
        """Train to the end; even after an error the network has the weights of the epoch that is kept so far."""
        if not self.state.settings.epochs:
            return History()
        self._begin()
        try:
            self._train()
        finally:
            self.engine.model.load_state_dict(self.best)
        return self.state.history

    def _begin(self) -> None:
        """Go on from the checkpoint, if there is one; else measure the network as it is."""
        if self.checkpoint is not None and has_checkpoint(self.checkpoint):
            self._resume(self.checkpoint)
        else:
            self._remember()
            # epoch 0: what any training must beat
            self.state = self.state.model_copy(update={"history": History(before=self._measured())})

    def _resume(self, folder: Path) -> None:
        saved = load_checkpoint(folder)
        _require_same_run(folder, _settings_of(saved.run), _settings_of(self.state))
        restore(saved, self.engine.model, self.engine.optimizer)
        if saved.problem:
            self.watcher.say(saved.problem)
        self.state, self.best = saved.run, saved.best

    def _train(self) -> None:
        first, last = len(self.state.history.epochs), self.state.settings.epochs
        for index in range(first, last):
            # anew in every epoch, so that a resumed run draws what an uninterrupted one would have drawn
            seed_epoch(self.state.seed, index, self.engine.device)
            loader = self.data.train_loader(self.state.batch_size, self.state.seed, index, self.workers)
            if index == first:
                self.watcher.start(_batches_in(loader) * (last - first), f"Training, {last - first} epochs")
            self._finish(self._one_epoch(index, loader))

    def _finish(self, epoch: Epoch) -> None:
        """Write a finished epoch down, on the disk too, and keep its weights if it is the best."""
        self.state = self.state.model_copy(update={"history": self.state.history.plus(epoch)})
        # remembered before it is written, because the checkpoint holds the best weights, too
        if self.state.history.kept == epoch.epoch:
            self._remember()
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, self.state, self.engine.model, self.engine.optimizer, self.best)
        self.watcher.epoch(epoch)

    def _one_epoch(self, index: int, loader: DataLoader[Any]) -> Epoch:
        began, batches = time.perf_counter(), _batches_in(loader)
        correct, total, losses, lr = 0, 0, 0.0, 0.0
        for number, batch in enumerate(loader):
            images, labels = images_and_labels(batch)
            lr = learning_rate(index * batches + number, batches * self.state.settings.epochs, self.state.settings)
            loss, right = self.engine.loss(images, labels)
            value = loss.item()
            if not math.isfinite(value):
                # before the update, so that the weights are still those of the last good step
                raise self._diverged(index, f"step {number + 1} of {batches}: the loss is {value}", images, labels)
            self.engine.update(loss, lr)
            size = samples_in(images, labels)
            correct, total, losses = correct + right, total + size, losses + value * size
            self.watcher.step(value)
        # a loss can stay finite while the statistics of a norm, or a weight that nobody reads, overflow
        if name := self.engine.damaged():
            raise self._diverged(index, f"at its last step: {name!r} holds NaN or infinite numbers")
        return Epoch(
            epoch=index + 1,
            lr=lr,
            loss=losses / total,
            train_top1=correct / total if self.engine.own is None else None,
            held=self._measured_after(index),
            seconds=time.perf_counter() - began,
            measure=_name(self.measure),
        )

    def _measured(self) -> float | None:
        """What the measure says of the images held out; None where there are none."""
        loader = self.data.held_loader(self.state.batch_size, self.workers)
        if loader is None or self.measure is None:
            return None
        with evaluating(self.engine.model), torch.no_grad():
            value = float(self.measure(self.engine.model, loader))
        if not math.isfinite(value):
            raise GhostifyError(
                f"The measure {_name(self.measure)} gives {value} for the images held out, by which no epoch can be "
                "compared with another; it must give a finite number."
            )
        return value

    def _measured_after(self, index: int) -> float | None:
        try:
            return self._measured()
        except (DataError, ModelError):
            raise
        except GhostifyError as problem:
            raise self._diverged(index, f"measured at its end: {str(problem).removesuffix('.')}") from None

    def _remember(self) -> None:
        """Keep a copy of the weights as they are."""
        self.best = copy.deepcopy(self.engine.model.state_dict())

    def _diverged(self, index: int, what: str, *batch: Any) -> GhostifyError:
        """Why training cannot go on in an epoch: where, why, what to do, and what is left of it."""
        settings = self.state.settings
        cause = self.engine.blame(*batch) if batch else ""
        clip = "set clip" if settings.clip is None else f"clip (now {settings.clip:g})"
        advice = f", because {cause}." if cause else f". Lower lr (now {settings.peak:g}) or {clip}."
        kept = self.state.history.kept
        left = f"of epoch {kept}" if kept else "from before training"
        where = f" in {str(self.checkpoint)!r}" if self.checkpoint is not None and kept else ""
        return GhostifyError(
            f"Training stopped in epoch {index + 1}, {what}{advice} The weights {left} are kept{where}."
        )


def _require_trainable(model: nn.Module | Ghosted) -> None:
    """Refuse an inference form: its norms are folded, so that training would start from another function's scale."""
    if isinstance(model, Optimized):
        raise RunError(
            f"{type(model.module).__name__} is in its inference form, which is not trained; train the network that it "
            "was made from, and optimize the result."
        )


def _require_protocol(data: Any) -> None:
    for name in ("train_loader", "held_loader"):
        if not callable(getattr(data, name, None)):
            raise DataError(
                f"finetune takes training data with a method {name!r} (see ghostify.finetuning.TrainingData), which "
                f"{type(data).__name__} does not have; ghostify.sources.load_data gives such data."
            )


def _usual(own: OwnLoss | None) -> Measure | None:
    """What epochs are compared by where nobody says; nothing by a loss that runs the network itself, in train mode."""
    if own is None:
        return top1
    return None if own.whole else MinusLoss(own)


def _name(measure: Measure | None) -> str:
    if measure is top1 or measure is None:
        return TOP1
    return getattr(measure, "label", "") or getattr(measure, "__name__", type(measure).__name__)


def _batches_in(loader: DataLoader[Any]) -> int:
    try:
        batches = len(loader)
    except TypeError:
        raise DataError("The training data does not say how many batches it holds; it needs a length.") from None
    if not batches:
        raise DataError("The training data gives no batch: there are no images, or fewer than batch_size.")
    return batches


def _teacher_at(
    device: torch.device, teacher: nn.Module | None, settings: TrainSettings, own: OwnLoss | None
) -> nn.Module | None:
    if not settings.distill:
        return None
    if teacher is None:
        raise RecipeError(f"distill = {settings.distill:g} needs the original network as teacher; set distill = 0.")
    if own is not None:
        own.require_outputs(settings.distill)
    return on_device(teacher, device)


def _require_same_run(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    for key in then:
        if then[key] != now[key]:
            raise RunError(
                f"Checkpoint {str(folder)!r} was made with {key} = {then[key]}, not {now[key]}: "
                f"use another folder, or the settings it was made with."
            )


def _settings_of(run: RunState) -> dict[str, Any]:
    return {**run.settings.model_dump(), "seed": run.seed, "batch_size": run.batch_size}


class _Silent:
    def say(self, text: str) -> None: ...

    def start(self, total_steps: int, title: str) -> None: ...

    def step(self, loss: float) -> None: ...

    def epoch(self, epoch: Epoch) -> None: ...

    def done(self) -> None: ...
