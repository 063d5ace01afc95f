"""Borrowing a model for a device: it is never moved."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from ghostify.errors import GhostifyError

Device = str | torch.device


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
