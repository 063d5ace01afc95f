"""The optimiser, and its groups of parameters: what decays, and at which share of the learning rate each moves.

Weight decay spares norms and biases: decaying a norm's scale shrinks the maps that follow, and a bias has nothing to
overfit with.  Layers that were swapped in may move faster than those that were kept (``settings.kept_lr``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ghostify.errors import ModelError, RecipeError, did_you_mean
from ghostify.names import matches, within
from ghostify.recipe import TrainSettings
from ghostify.rewriting import Ghosted

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def make_optimizer(
    model: nn.Module, settings: TrainSettings, swapped: Collection[str] = ()
) -> torch.optim.SGD | torch.optim.AdamW:
    """The optimiser that the settings name, of all parameters that require a gradient.

    ``swapped`` names the modules that took others' places.  Raises ``ModelError`` when there is nothing to train.
    """
    groups = parameter_groups(model, settings, swapped)
    if not groups:
        raise ModelError(
            "The network has no parameter to train: none requires a gradient; call requires_grad_() on what is to be "
            "trained."
        )
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.peak)
    return torch.optim.SGD(groups, settings.peak, settings.momentum, nesterov=settings.momentum > 0)


def parameter_groups(model: nn.Module, settings: TrainSettings, swapped: Collection[str] = ()) -> list[dict[str, Any]]:
    """The parameters that require a gradient, each once, in up to four groups in a fixed order.

    A group has the ``weight_decay`` of its parameters, and ``scale``, the share of the learning rate that they move at.
    """
    spared = _without_decay(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter in spared or parameter.ndim <= 1 else settings.weight_decay
        is_new = any(within(name, module) for module in swapped)
        # without swaps nothing was kept beside them, and there is one rate
        scale = 1.0 if is_new or not swapped else settings.kept_lr
        groups.setdefault((scale, decay), []).append(parameter)
    order = sorted(groups, reverse=True)
    return [{"params": groups[key], "weight_decay": key[1], "scale": key[0]} for key in order]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let every group of an optimiser move at its share of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def swapped_in(ghosted: Ghosted) -> tuple[str, ...]:
    """The modules of a rewritten network that hold other parameters than they did, or that were not there."""
    before = ghosted.before.params
    return tuple(name for name, count in ghosted.after.params.items() if before.get(name) != count)


@contextmanager
def frozen(model: nn.Module, patterns: Collection[str]) -> Iterator[None]:
    """The modules that patterns of names mean require no gradient; afterwards their parameters are as they were.

    Raises ``RecipeError`` for a pattern that means nothing, with the nearest name, and where nothing is left to train.
    """
    changed = [parameter for parameter in _meant(model, patterns) if parameter.requires_grad]
    _require_rest(model, changed, patterns)
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


def _without_decay(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of norms, some of which are no vectors."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    return {parameter for norm in norms for parameter in norm.parameters(recurse=False)}


def _meant(model: nn.Module, patterns: Collection[str]) -> list[nn.Parameter]:
    """The parameters that patterns mean, by any of their names."""
    named = list(model.named_parameters(remove_duplicate=False))
    names = [name for name, _ in model.named_modules()] + [name for name, _ in named]
    for pattern in patterns:
        if not any(matches(name, pattern) for name, _ in named):
            raise RecipeError(f"freeze {pattern!r} means no parameter of the network.{did_you_mean(pattern, names)}")
    return [parameter for name, parameter in named if any(matches(name, pattern) for pattern in patterns)]


def _require_rest(model: nn.Module, frozen: Collection[nn.Parameter], patterns: Collection[str]) -> None:
    stay = {id(parameter) for parameter in frozen}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if patterns and all(id(parameter) in stay for parameter in trained):
        raise RecipeError(f"freeze {', '.join(patterns)} leaves no parameter to train; leave some out.")
