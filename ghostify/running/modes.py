"""Modes, borrowed for a run and given back: train and eval, gradients, random states, warnings."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in eval mode; afterwards, even after an error, every submodule has the mode it had."""
    with modes_kept(*models):
        for model in models:
            model.eval()
        yield


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Whatever happens inside, every submodule is in its own train or eval mode afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    roots = [(model, model.training) for model in models]
    try:
        yield
    finally:
        for model, mode in roots:
            model.train(mode)  # a network may do more here than set flags, such as split fused weights again
        for module, mode in modes:
            module.training = mode


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """A model in train mode, but for what its user froze; afterwards, every submodule has the mode it had.

    Where the model was in train mode already, submodules in eval mode are there on purpose and stay.  And what holds
    frozen parameters only runs as in evaluation, so that its statistics stay as well.
    """
    with modes_kept(model):
        if not model.training:
            model.train()
        for part in frozen_parts(model):
            part.eval()
        yield


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """The outermost submodules whose parameters were all frozen (they require no gradient).

    None where the whole model is frozen: so are models that are loaded to be run, and nothing in them was singled out.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return []
    found: list[nn.Module] = []
    for part in model.children():
        frozen = [not parameter.requires_grad for parameter in part.parameters()]
        if frozen and all(frozen):
            found.append(part)
        else:
            found += frozen_parts(part)
    return found


@contextmanager
def quiet(*models: nn.Module) -> Iterator[None]:
    """The models in eval mode, without gradients or warnings, and with random states that are put back after."""
    with evaluating(*models), torch.no_grad(), torch.random.fork_rng(devices=_gpus()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def seed() -> None:
    """Start randomness anew, so that a run and its replay draw the same.

    Not by ``torch.manual_seed``, which also seeds GPUs that were not yet used, whose state nobody puts back.
    """
    torch.default_generator.manual_seed(0)
    if _gpus():
        torch.cuda.manual_seed_all(0)


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


def _gpus() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
