"""What turns a batch into an update of the weights, on one device; and the random states that all of it begins with.

``Engine`` is what a distributed engine would replace; the loop above it stays.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.batches import Batch, call, move
from ghostify.errors import DataError
from ghostify.finetuning.losses import RULED_OUT, OwnLoss, outputs_missed, training_loss
from ghostify.finetuning.optimizers import make_optimizer, set_rate
from ghostify.measuring.accuracy import checked_labels, class_scores, count_correct, require_same_classes, samples_in
from ghostify.recipe import TrainSettings
from ghostify.running import evaluating, training


@dataclass(frozen=True)
class Engine:
    """What turns a batch into an update of the weights, on one device."""

    model: nn.Module
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    settings: TrainSettings
    device: torch.device
    finite: frozenset[str]
    """The tensors of the network that hold finite numbers only, and so must stay."""
    own: OwnLoss | None = None
    """A loss of the user's in place of the cross entropy."""

    @staticmethod
    def of(
        model: nn.Module,
        teacher: nn.Module | None,
        settings: TrainSettings,
        device: torch.device,
        own: OwnLoss | None = None,
    ) -> Engine:
        """An engine with a fresh optimiser, for networks that are at ``device``."""
        finite = frozenset(name for name, tensor in _numbers(model) if bool(tensor.isfinite().all()))
        return Engine(model, teacher, make_optimizer(model, settings), settings, device, finite, own)

    @contextmanager
    def training(self) -> Iterator[None]:
        """The model in train mode (but for what is frozen), the teacher in eval mode; then both in those they had."""
        teachers = () if self.teacher is None else (self.teacher,)
        with training(self.model), evaluating(*teachers):
            yield

    def loss(self, images: Batch, labels: Any) -> tuple[Tensor, int]:
        """A batch's mean loss, with its graph, and how many of its images were right (0 by a loss of the user's)."""
        images = move(images, self.device, non_blocking=True)
        if self.own is not None:
            return self._own_loss(self.own, images, move(labels, self.device, non_blocking=True)), 0
        with self._precision():
            outputs = class_scores(self._run(images))
        labels = move(checked_labels(labels, outputs), self.device, non_blocking=True)
        taught = self._taught(images)
        if taught is not None:
            require_same_classes(outputs, taught)
        return training_loss(outputs, labels, taught, self.settings), count_correct(outputs, labels)

    def _own_loss(self, own: OwnLoss, inputs: Batch, labels: Any) -> Tensor:
        if own.whole:
            with self._precision():
                return own.require_gradient(own(self.model, inputs, labels))
        with self._precision():
            outputs = self._run(inputs)
        # A loss may not know half precision, and need not: the outputs are few.
        loss = own.require_gradient(own(move(outputs, self.device, torch.float32), labels))
        if self.teacher is None:
            return loss
        with torch.no_grad(), self._precision():
            taught = call(self.teacher, inputs)
        a = self.settings.distill
        return (1 - a) * loss + a * outputs_missed(outputs, taught)

    def update(self, loss: Tensor, lr: float) -> None:
        """One step down the gradient of ``loss``."""
        self.optimizer.zero_grad()
        loss.backward()
        # the norm of all gradients together, so that clipping keeps the direction of the step
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        set_rate(self.optimizer, lr)
        self.optimizer.step()

    def damaged(self) -> str:
        """The name of a tensor of the network that is no longer finite, or nothing."""
        names = (name for name, tensor in _numbers(self.model) if not bool(tensor.isfinite().all()))
        return next((name for name in names if name in self.finite), "")

    @torch.no_grad()
    def blame(self, images: Batch, labels: Any) -> str:
        """What made the loss of a batch infinite or NaN, as a clause; nothing where it was the training itself."""
        images = move(images, self.device)
        floats = (leaf for leaf in tree_leaves(images) if isinstance(leaf, Tensor) and leaf.is_floating_point())
        if not all(bool(leaf.isfinite().all()) for leaf in floats):
            return "its images hold NaN or infinite numbers"
        if self.own is not None:
            return ""
        taught = self._taught(images)
        if taught is not None and not bool((taught.isfinite() | (taught == RULED_OUT)).all()):
            return "the teacher gives NaN or infinite scores for its images"
        outputs = class_scores(self._run(images))
        # cross entropy of a class with a score of -inf is infinite whatever else the network says
        own = outputs.gather(1, labels.to(self.device).long()[:, None])
        return "the network rules out (with a score of -inf) a class that it holds" if RULED_OUT in own else ""

    def _run(self, images: Batch) -> Any:
        try:
            return call(self.model, images)
        except ValueError as problem:
            if "Expected more than 1 value per channel" not in str(problem):
                raise
            raise DataError(
                f"Batch norms cannot be trained on a batch of {samples_in(images, ())}, which has no variance; give "
                "batch_size 2 or more, and more than one training image."
            ) from None

    def _taught(self, images: Batch) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), self._precision():
            return class_scores(call(self.teacher, images))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp != "no")


def seed_epoch(seed: int, epoch: int, device: torch.device) -> None:
    """Start all random states anew from (seed, epoch), far apart for neighbouring pairs.

    Not by ``torch.manual_seed``: it seeds all devices, also those whose state nobody here puts back.
    """
    # by a hash of the text: seed + epoch would give epoch 1 of seed 0 the numbers of epoch 0 of seed 1
    number = random.Random(f"{seed} {epoch}").getrandbits(63)
    random.seed(number)
    numpy.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


def _numbers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The network's floating tensors by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in named if tensor.is_floating_point()]
