"""What training lowers: the loss of some samples, by their labels and by a teacher, in the precision asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.batches import Batch, call, move
from ghostify.errors import DataError, RecipeError
from ghostify.finetuning.distilling import Teacher
from ghostify.finetuning.losses import OwnLoss, outputs_missed, training_loss
from ghostify.finetuning.mixing import Mix
from ghostify.measuring.accuracy import checked_labels, class_scores, count_correct, require_same_classes, samples_in
from ghostify.recipe import TrainSettings
from ghostify.running import evaluating, training

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Objective:
    """The loss of a network on some samples."""

    model: nn.Module
    settings: TrainSettings
    device: torch.device
    teacher: Teacher | None = None
    own: OwnLoss | None = None
    """A loss of the user's in place of the cross entropy."""

    def __call__(self, inputs: Batch, labels: Any, mix: Mix | None = None) -> tuple[Tensor, int]:
        """The mean loss of some samples, with its graph, and how many of them were right (0 by a loss of the user's).

        Of ``inputs`` and ``labels`` anywhere; both are mixed as ``mix`` says.
        """
        inputs = self._placed(inputs)
        if mix is not None:
            inputs = mix.images(inputs)
        if self.own is not None:
            return self._by_own(self.own, inputs, move(labels, self.device, non_blocking=True)), 0
        with self.precision(), self._watched() as maps:
            outputs = class_scores(self._run(inputs))
        known = move(checked_labels(labels, outputs), self.device, non_blocking=True)
        wanted = known if mix is None else mix.labels(known, outputs.shape[1])
        loss = self._taught(inputs, outputs, wanted, maps)
        return loss, count_correct(outputs, known)

    @contextmanager
    def training(self) -> Iterator[None]:
        """The model in train mode (but for what is frozen), the teacher in eval mode; then both in those they had."""
        teachers = () if self.teacher is None else (self.teacher.module,)
        with training(self.model), evaluating(*teachers):
            yield

    def precision(self) -> torch.autocast:
        """Mixed precision, where it is asked for."""
        kind = PRECISIONS.get(self.settings.amp)
        return torch.autocast(self.device.type, kind, enabled=kind is not None)

    @cached_property
    def forward(self) -> Callable[..., Any]:
        """The network, compiled where that is asked for."""
        return torch.compile(self.model) if self.settings.compile else self.model

    def _placed(self, inputs: Batch) -> Batch:
        inputs = move(inputs, self.device, non_blocking=True)
        if self.settings.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _taught(self, inputs: Batch, outputs: Tensor, labels: Tensor, maps: dict[str, Tensor]) -> Tensor:
        """The loss by the labels, and by the teacher where there is one."""
        if self.teacher is None:
            return training_loss(outputs, labels, None, self.settings)
        with self.precision():
            answer, theirs = self.teacher.taught(inputs)
        taught = class_scores(answer)
        require_same_classes(outputs, taught)
        loss = training_loss(outputs, labels, taught, self.settings)
        if self.teacher.places:
            loss = loss + self.settings.features * self.teacher.missed(maps, theirs)
        return loss

    def _by_own(self, own: OwnLoss, inputs: Batch, labels: Any) -> Tensor:
        if own.whole:
            with self.precision():
                return own.require_gradient(own(self.forward, inputs, labels))
        with self.precision():
            outputs = self._run(inputs)
        # A loss may not know half precision, and need not: the outputs are few.
        loss = own.require_gradient(own(move(outputs, self.device, torch.float32), labels))
        if self.teacher is None:
            return loss
        with self.precision():
            taught, _ = self.teacher.taught(inputs)
        a = self.settings.distill
        return (1 - a) * loss + a * outputs_missed(outputs, taught)

    def _watched(self) -> Any:
        return nullcontext({}) if self.teacher is None else self.teacher.watching(self.model)

    def _run(self, images: Batch) -> Any:
        try:
            return call(self.forward, images)  # type: ignore[arg-type]
        except ValueError as problem:
            if "Expected more than 1 value per channel" not in str(problem):
                raise
            raise DataError(
                f"Batch norms cannot be trained on a batch of {samples_in(images, ())}, which has no variance; give "
                "batch_size 2 or more, and more than one training image."
            ) from None


def require_compilable(settings: TrainSettings) -> None:
    """Refuse to compile a network whose modules are watched.  Raises ``RecipeError``."""
    if settings.compile and settings.distill and settings.features:
        raise RecipeError(
            f"features = {settings.features:g} watches modules of the network, which compile makes one piece of; set "
            "features to 0 or compile to no."
        )
