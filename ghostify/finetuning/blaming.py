"""Why a loss, or a gradient, is no longer a number: the images, the teacher, or the first layer that gives none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.batches import Batch, call, move
from ghostify.finetuning.losses import RULED_OUT
from ghostify.finetuning.objective import Objective
from ghostify.measuring.accuracy import class_scores


@torch.no_grad()
def blame(objective: Objective, images: Batch, labels: Any) -> str:
    """What made the loss of a batch infinite or NaN, as a clause; nothing where it was the training itself."""
    images = move(images, objective.device)
    if not _finite(images):
        return "its images hold NaN or infinite numbers"
    if objective.own is not None:
        return ""
    if objective.teacher is not None:
        with objective.precision():
            taught = class_scores(objective.teacher.taught(images)[0])
        if not _finite(taught):
            return "the teacher gives NaN or infinite scores for its images"
    with objective.precision():
        outputs = class_scores(call(objective.model, images))
    # cross entropy of a class with a score of -inf is infinite whatever else the network says
    own = outputs.gather(1, labels.to(objective.device).long()[:, None])
    return "the network rules out (with a score of -inf) a class that it holds" if RULED_OUT in own else ""


@torch.no_grad()
def where_it_fails(objective: Objective, images: Batch) -> str:
    """The weight or the layer of a network at which numbers first are none, in parentheses; or nothing."""
    if name := first_damaged(objective.model):
        return f" ({name!r} holds NaN or infinite numbers)"
    if objective.own is not None and objective.own.whole:
        return ""
    with objective.precision(), first_to_fail(objective.model) as failed:
        call(objective.model, move(images, objective.device))
    return f" (layer {failed[0]!r} is the first to give NaN or infinite numbers)" if failed else ""


def first_damaged(model: nn.Module, among: frozenset[str] | None = None) -> str:
    """The name of a tensor of a network that is not finite (``among`` some, or all), or nothing."""
    for name, tensor in numbers_of(model):
        if (among is None or name in among) and not bool(tensor.isfinite().all()):
            return name
    return ""


def numbers_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """A network's floating tensors by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in named if tensor.is_floating_point()]


@contextmanager
def first_to_fail(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that give numbers that are none while the network runs inside, the first one first.

    Modules within others come before those, because they give first.
    """
    failed: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not _finite(output):
                failed.append(name)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield failed
    finally:
        for hook in hooks:
            hook.remove()


def _finite(value: Any) -> bool:
    """Whether all floating tensors in a value are finite; a score of -inf rules a class out, and may be."""
    floats = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool((leaf.isfinite() | (leaf == RULED_OUT)).all()) for leaf in floats)
