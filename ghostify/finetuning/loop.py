"""The training loop: SGD with Nesterov momentum, linear warm-up, cosine to zero, and the original network as teacher.

The loss is ``(1 - a) * CE(z, y) + a * T^2 * KL(softmax(t / T) || softmax(z / T))`` for scores z, teacher scores t,
labels y, weight a (``distill``) and temperature T (Hinton et al., 2015; T^2 keeps the gradient's size as T varies).

All randomness comes from (seed, epoch), so a run that was stopped and goes on at an epoch boundary gives, on a CPU, the
very bits of one that was not.  ``Engine`` is what a distributed engine would replace; the loop above it stays.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.data import DataLoader

from ghostify.errors import DataError, GhostifyError, ModelError, RecipeError, RunError
from ghostify.finetuning.checkpoint import (
    Epoch,
    History,
    RunState,
    has_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from ghostify.measuring.accuracy import (
    checked_labels,
    class_scores,
    count_correct,
    evaluate,
    images_and_labels,
    require_same_classes,
)
from ghostify.measuring.borrowing import Device, on_device, place_for
from ghostify.recipe import TrainSettings
from ghostify.running import evaluating, modes_kept


class TrainingData(Protocol):
    """Images to train and to test on.  Loaders give ``(images (N, C, H, W), labels (N,))``.

    The training loader of an epoch depends on its arguments alone, and has as many batches in every epoch.
    """

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        """Shuffled, augmented batches of one epoch, counted from 0."""

    def test_loader(self, batch_size: int, workers: int) -> DataLoader[Any]:
        """The test images, each once."""


class Progress(Protocol):
    """Somebody who watches a run."""

    def start(self, total_steps: int, title: str) -> None:
        """Training begins, with ``total_steps`` left to do."""

    def step(self, loss: float) -> None:
        """One step was done; ``loss`` is its batch's mean."""

    def epoch(self, epoch: Epoch) -> None:
        """One epoch was done, tested, and saved."""

    def done(self) -> None:
        """Training is over: finished, failed or interrupted."""


def finetune(
    model: nn.Module,
    data: TrainingData,
    settings: TrainSettings,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: Device | None = None,
    batch_size: int = 128,
    workers: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> History:
    """Train ``model`` in place, testing it after each epoch.

    ``device`` None means where the model is; otherwise the model is moved there (a teacher elsewhere is copied).
    ``teacher`` gives the soft labels, and is used only when ``settings.distill`` > 0.  With a ``checkpoint`` folder,
    each finished epoch is put on the disk, and a run that finds one there goes on from it.  Afterwards, even after an
    error, all submodules of both networks are in the train or eval modes they had, and the random states of torch,
    NumPy and Python are what they were.

    Raises ``RecipeError`` when distilling without a teacher; ``RunError`` for a checkpoint that is damaged, or of
    other settings, or of another network; ``DataError`` and ``ModelError`` when the batches or the outputs are not
    those of a classifier; ``GhostifyError`` when the loss is no longer finite (the last good epoch stays on the disk).
    """
    place = place_for(model, device)
    engine = Engine.of(model.to(place), _teacher_at(place, teacher, settings), settings, place)
    run = _resumed(checkpoint, RunState(settings=settings, seed=seed, batch_size=batch_size), engine)
    watcher = progress or _Silent()
    with engine.training(), random_states_kept(place):
        try:
            return _epochs(engine, data, run, workers, checkpoint, watcher)
        finally:
            watcher.done()


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Rate of ``step`` (from 0) out of ``total``: up to ``settings.lr`` in a line, then a half cosine down to zero.

    The peak is at step ``settings.warmup * total``, rounded; zero is at step ``total``, one after the last.
    """
    warm = round(settings.warmup * total)
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    passed = (step - warm) / max(1, total - warm)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * passed))


def training_loss(outputs: Tensor, labels: Tensor, taught: Tensor | None, settings: TrainSettings) -> Tensor:
    """The loss at the head of this file, a scalar: mean over ``outputs (N, classes)`` and ``labels (N,)``.

    ``taught (N, classes)`` are the teacher's scores; None leaves the labels alone to teach.
    """
    hard = cross_entropy(outputs, labels, label_smoothing=settings.label_smoothing)
    if taught is None:
        return hard
    t = settings.temperature
    soft = kl_div(log_softmax(outputs / t, 1), log_softmax(taught / t, 1), reduction="batchmean", log_target=True)
    return (1 - settings.distill) * hard + settings.distill * t**2 * soft


@dataclass(frozen=True)
class Engine:
    """What turns a batch into an update of the weights, on one device."""

    model: nn.Module
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    settings: TrainSettings
    place: torch.device

    @staticmethod
    def of(model: nn.Module, teacher: nn.Module | None, settings: TrainSettings, place: torch.device) -> Engine:
        """An engine with a fresh optimiser, for networks that are at ``place``."""
        return Engine(model, teacher, make_optimizer(model, settings), settings, place)

    @contextmanager
    def training(self) -> Iterator[None]:
        """The model in train mode and the teacher in eval mode; afterwards both in those they had."""
        teachers = () if self.teacher is None else (self.teacher,)
        with modes_kept(self.model), evaluating(*teachers):
            self.model.train()
            yield

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """A batch's mean loss, with its graph, and how many of its images were right."""
        images = images.to(self.place, non_blocking=True)
        with self._precision():
            outputs = class_scores(self.model(images))
        taught = self._taught(images, outputs)
        labels = checked_labels(labels, outputs).to(self.place, non_blocking=True)
        return training_loss(outputs, labels, taught, self.settings), count_correct(outputs, labels)

    def update(self, loss: Tensor, lr: float) -> None:
        """One step down the gradient of ``loss``."""
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def _taught(self, images: Tensor, outputs: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), self._precision():
            taught = class_scores(self.teacher(images))
        require_same_classes(outputs, taught)
        return taught

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.place.type, torch.bfloat16, enabled=self.settings.amp)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    """SGD with Nesterov momentum, and weight decay on all but the vectors, which are the norms' weights and biases.

    Raises ``ModelError`` when no parameter requires a gradient.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("The network has no parameter to train: none requires a gradient.")
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.momentum > 0)


@contextmanager
def random_states_kept(place: torch.device) -> Iterator[None]:
    """The random states of torch (the CPU's, and that of ``place``), NumPy and Python are afterwards as they were."""
    python, numbers = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


def seed_epoch(seed: int, epoch: int, place: torch.device) -> None:
    """Start all random states anew from (seed, epoch), far apart for neighbouring pairs.

    Not by ``torch.manual_seed``: it seeds all devices, also those whose state nobody here puts back.
    """
    number = random.Random(f"{seed} {epoch}").getrandbits(63)
    random.seed(number)
    numpy.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    if place.type == "cuda":
        with torch.cuda.device(place):
            torch.cuda.manual_seed(number)


def _epochs(
    engine: Engine, data: TrainingData, run: RunState, workers: int, checkpoint: Path | None, watcher: Progress
) -> History:
    first, last = len(run.history.epochs), run.settings.epochs
    for index in range(first, last):
        seed_epoch(run.seed, index, engine.place)
        loader = data.train_loader(run.batch_size, run.seed, index, workers)
        if index == first:
            watcher.start(_batches_in(loader) * (last - first), f"Training, {last - first} epochs")
        tests = data.test_loader(run.batch_size, workers)
        finished = _one_epoch(engine, index, loader, tests, watcher)
        run = run.model_copy(update={"history": run.history.plus(finished)})
        if checkpoint is not None:
            save_checkpoint(checkpoint, run, engine.model, engine.optimizer)
        watcher.epoch(finished)
    return run.history


def _one_epoch(engine: Engine, index: int, loader: DataLoader[Any], tests: DataLoader[Any], watcher: Progress) -> Epoch:
    began, batches = time.perf_counter(), _batches_in(loader)
    correct, total, losses, lr = 0, 0, 0.0, 0.0
    for step, batch in enumerate(loader, start=index * batches):
        images, labels = images_and_labels(batch)
        lr = learning_rate(step, batches * engine.settings.epochs, engine.settings)
        loss, right = engine.loss(images, labels)
        value = _finite(loss, index, engine.settings)
        engine.update(loss, lr)
        correct, total, losses = correct + right, total + len(labels), losses + value * len(labels)
        watcher.step(value)
    return Epoch(
        epoch=index + 1,
        lr=lr,
        loss=losses / total,
        train_top1=correct / total,
        test_top1=evaluate(engine.model, tests, device=engine.place).top1,
        seconds=time.perf_counter() - began,
    )


def _finite(loss: Tensor, index: int, settings: TrainSettings) -> float:
    value = loss.item()
    if not math.isfinite(value):
        clip = "set clip" if settings.clip is None else f"clip (now {settings.clip:g})"
        raise GhostifyError(
            f"Training stopped in epoch {index + 1}: the loss is {value}. Lower lr (now {settings.lr:g}) or {clip}."
        )
    return value


def _batches_in(loader: DataLoader[Any]) -> int:
    try:
        batches = len(loader)
    except TypeError:
        raise DataError("The training data does not say how many batches it holds; it needs a length.") from None
    if not batches:
        raise DataError("The training data gives no batch: there are no images, or fewer than batch_size.")
    return batches


def _teacher_at(place: torch.device, teacher: nn.Module | None, settings: TrainSettings) -> nn.Module | None:
    if not settings.distill:
        return None
    if teacher is None:
        raise RecipeError(f"distill = {settings.distill:g} needs the original network as teacher; set distill = 0.")
    return on_device(teacher, place)


def _resumed(folder: Path | None, run: RunState, engine: Engine) -> RunState:
    """``run``, or what the checkpoint in ``folder`` says of it, with the engine put where the checkpoint is."""
    if folder is None or not has_checkpoint(folder):
        return run
    saved = load_checkpoint(folder)
    _require_same_run(folder, _settings_of(saved.run), _settings_of(run))
    restore(saved, engine.model, engine.optimizer)
    return saved.run


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
    def start(self, total_steps: int, title: str) -> None: ...

    def step(self, loss: float) -> None: ...

    def epoch(self, epoch: Epoch) -> None: ...

    def done(self) -> None: ...
