"""Borrowing a model for a device: it is never moved."""

from __future__ import annotations

import copy
import re
from itertools import chain
from typing import Any

import torch
from torch import nn

from ghostify.errors import GhostifyError, did_you_mean

Device = str | torch.device

_KINDS = ("cpu", "cuda", "mps", "xpu", "hpu", "xla", "meta")


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` itself when all of it is at ``device``, else a copy there."""
    if all(tensor.device == device for tensor in chain(model.parameters(), model.buffers())):
        return model
    return copy.deepcopy(model).to(device)


def device_for(model: nn.Module, device: Device | None) -> torch.device:
    """``device`` with its index, or where ``model`` is when None.  Raises ``GhostifyError`` when it is not there."""
    if device is None:
        first = next(chain(model.parameters(), model.buffers()), None)
        return torch.device("cpu") if first is None else first.device
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as problem:
        raise GhostifyError(f"Device {str(device)!r} cannot be used: {_why(device, problem)}") from problem


def pick_device(name: str) -> torch.device:
    """The device of that name to compute on; ``auto`` is the first GPU, else the CPU.  Raises ``GhostifyError``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = device_for(nn.Identity(), name)
    if device.type == "meta":
        raise GhostifyError(f"Device {name!r} cannot be used: it holds shapes only, no numbers; give cpu or cuda.")
    return device


def _why(device: Any, problem: BaseException) -> str:
    """torch's own words, but for a kind of device that it does not know, where they are a list of all it does."""
    kind = str(device).partition(":")[0]
    if isinstance(problem, TypeError) or re.search("Expected one of|Invalid device string", str(problem)):
        near = " Did you mean 'cuda'?" if kind.lower() == "gpu" else did_you_mean(kind, _KINDS)
        return f"there is no such kind; give cpu, cuda, cuda:1 or mps.{near}"
    return str(problem).strip().partition("\n")[0] or type(problem).__name__
