"""How often a classifier is right, and how often two classifiers give the same answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ghostify.arguments import batches, network, takes
from ghostify.batches import Batch, call, count, move
from ghostify.errors import DataError, GhostifyError, ModelError
from ghostify.measuring.borrowing import Device, device_for, on_device
from ghostify.running import as_called, evaluating, undisturbed


class Accuracy(BaseModel):
    """Top-1 accuracy (0 to 1) and mean cross entropy (nats per image) over ``total`` images."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    top1: float
    correct: int
    total: int
    loss: float
    by_class: tuple[tuple[int, int], ...] = ()
    """How many images of each class there are, and how many of them were right, in the order of the classes; without
    those at the end that no image is of.
    """

    @property
    def name(self) -> str:
        """As a table has it."""
        return "accuracy"

    @property
    def shown(self) -> str:
        """The value as a table has it."""
        return f"{100 * self.top1:.2f}%"

    def __str__(self) -> str:
        return f"{100 * self.top1:.2f}% ({self.correct} of {self.total}), loss {self.loss:.4f}"


@takes(model=network, loader=batches)
@undisturbed()
@as_called()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: Device | None = None,
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Accuracy of ``model`` over a loader of ``(images (N, C, H, W), labels (N,))`` batches, in eval mode; of a network
    with several inputs, a tuple or a dict of tensors stands for the images.

    ``device`` None means where the model is; elsewhere, a copy of the model is measured.  ``progress`` is called after
    each batch with the number of images seen so far.

    Raises ``DataError`` for an empty loader, or labels that are no classes of the network; ``ModelError`` when the
    output is not ``(N, classes)``; ``GhostifyError`` when it is not finite.
    """
    here = device_for(model, device)
    borrowed = on_device(model, here)
    correct, total, loss = 0, 0, 0.0
    seen, right = Counter[int](), Counter[int]()
    with evaluating(borrowed), torch.no_grad():
        for batch in loader:
            images, labels = images_and_labels(batch)
            outputs = _finite_scores(borrowed, move(images, here))
            labels = checked_labels(labels, outputs).to(here)
            correct += count_correct(outputs, labels)
            seen.update(labels.tolist())
            right.update(labels[outputs.argmax(1) == labels].tolist())
            loss += float(cross_entropy(outputs, labels, reduction="sum"))
            total += len(labels)
            if progress:
                progress(total)
    _require_images(total)
    by_class = tuple((seen[label], right[label]) for label in range(1 + max(seen)))
    return Accuracy(top1=correct / total, correct=correct, total=total, loss=loss / total, by_class=by_class)


@takes(model=network, reference=network, loader=batches)
@undisturbed()
@as_called()
def agreement(model: nn.Module, reference: nn.Module, loader: Iterable[Any], *, device: Device | None = None) -> float:
    """Share (0 to 1) of images that both networks put in the same class.

    The loader gives ``images (N, C, H, W)`` or tuples that begin with them; labels are not looked at.  ``device`` None
    means where ``model`` is.  Raises as ``evaluate`` does, and ``ModelError`` when the networks' classes differ.
    """
    here = device_for(model, device)
    ours, theirs = on_device(model, here), on_device(reference, here)
    equal, total = 0, 0
    with evaluating(ours, theirs), torch.no_grad():
        for batch in loader:
            images = move(_images(batch), here)
            mine, other = _finite_scores(ours, images), _finite_scores(theirs, images)
            require_same_classes(mine, other)
            equal += count_correct(mine, other.argmax(1))
            total += len(mine)
    _require_images(total)
    return equal / total


def class_scores(output: Any) -> Tensor:
    """The ``(N, classes)`` scores, in float32, within what a network returned.

    That is the output itself, its ``"logits"`` or ``"out"`` entry, or the first part of a tuple (the others are
    auxiliary heads).  Raises ``ModelError`` when there is no such tensor.
    """
    found = _main_output(output)
    if not isinstance(found, Tensor):
        raise ModelError(f"The network returns a {type(output).__name__} in which no class scores were found.")
    if found.ndim != 2:
        raise ModelError(f"The network returns shape {tuple(found.shape)}, not class scores of shape (N, classes).")
    return found.float()


def images_and_labels(batch: Any) -> tuple[Batch, Any]:
    """A loader's batch as its two parts.  Raises ``DataError`` when it is anything else."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(map(_holds_tensors, batch)):
        return batch[0], batch[1]
    raise DataError(f"The data gives batches of type {type(batch).__name__}, not pairs of images and labels (tensors).")


def samples_in(images: Batch, labels: Any) -> int:
    """How many samples a batch holds: of a list, its length."""
    if isinstance(images, list):
        return len(images)
    return count(images) or (len(labels) if isinstance(labels, Sized) else 1)


def checked_labels(labels: Any, outputs: Tensor) -> Tensor:
    """``labels (N,)`` as int64, once each is known to be a class of ``outputs (N, classes)``.

    To be called before labels are moved: on a GPU a label out of range takes the whole process down.
    Raises ``DataError`` naming the first label that is not.
    """
    kind = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != outputs.shape[:1]:
        raise DataError(
            f"Labels must be one whole number per image, not {kind}; measure what they are by a --metric of your own."
        )
    classes = outputs.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(
            f"The network has {classes} outputs (labels 0 to {classes - 1}), but the data holds label {int(wrong[0])}."
        )
    return labels.long()


def count_correct(outputs: Tensor, labels: Tensor) -> int:
    """How many of ``labels (N,)`` are the largest of their row in ``outputs (N, classes)``."""
    return int((outputs.argmax(1) == labels).sum())


def require_same_classes(outputs: Tensor, others: Tensor) -> None:
    """Raises ``ModelError`` unless both networks' scores have one shape."""
    if outputs.shape != others.shape:
        raise ModelError(f"The networks have {outputs.shape[1]} and {others.shape[1]} outputs, so they cannot agree.")


def _main_output(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("logits", output.get("out"))
    if isinstance(output, tuple | list):
        return output[0] if output else None
    return output


def _finite_scores(model: nn.Module, images: Batch) -> Tensor:
    scores = class_scores(call(model, images))
    if not (scores.isfinite() | (scores == float("-inf"))).all():  # -inf rules a class out, as a mask does
        raise GhostifyError("The network gives NaN or infinite scores: its weights or its inputs are damaged.")
    return scores


def _holds_tensors(part: Any) -> bool:
    """Whether part of a batch may be inputs, or labels: tensors, or tuples, lists or dicts (of boxes, say)."""
    return isinstance(part, Tensor | tuple | list | dict)


def _images(batch: Any) -> Batch:
    images = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not _holds_tensors(images):
        raise DataError(f"The data gives batches of type {type(batch).__name__}, which do not begin with images.")
    return images


def _require_images(total: int) -> None:
    if not total:
        raise DataError("The data holds no images to evaluate on.")
