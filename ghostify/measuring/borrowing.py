"""Borrowing a model: it is never moved, and every submodule is afterwards in the train or eval mode it had."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from ghostify.errors import GhostifyError

Device = str | torch.device


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


def on_device(model: nn.Module, place: torch.device) -> nn.Module:
    """``model`` itself when all of it is at ``place``, else a copy there."""
    if all(tensor.device == place for tensor in chain(model.parameters(), model.buffers())):
        return model
    return copy.deepcopy(model).to(place)


def place_for(model: nn.Module, device: Device | None) -> torch.device:
    """``device`` with its index, or where ``model`` is when None.  Raises ``GhostifyError`` when it is not there."""
    if device is None:
        first = next(chain(model.parameters(), model.buffers()), None)
        return torch.device("cpu") if first is None else first.device
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as problem:
        raise GhostifyError(f"Device {str(device)!r} cannot be used: {_first_line(problem)}") from problem


def _first_line(problem: BaseException) -> str:
    return str(problem).strip().partition("\n")[0] or type(problem).__name__
