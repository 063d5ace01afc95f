"""The private copy, and the quiet that it runs in."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.errors import TraceError
from ghostify.tracing.wording import one_line

_CONTAINERS = (dict, OrderedDict, set, list)


def private_copy(module: nn.Module, share_parameters: bool) -> nn.Module:
    """A deep copy; parameters may be shared, and cached non-leaf tensors (which refuse to be copied) are detached."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if type(value) in _CONTAINERS and not value:
                memo[id(value)] = type(value)()  # most of what a layer holds, and slow to copy in the usual way
            elif isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
        for parameter in part._parameters.values():
            if parameter is not None and share_parameters:
                memo[id(parameter)] = parameter
    try:
        return copy.deepcopy(module, memo)
    except Exception as problem:
        raise TraceError(f"{type(module).__name__} cannot be copied: {one_line(problem)}") from problem


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients and with a local random state; every module's own mode comes back after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=_gpus()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for part, training in modes:
            part.training = training


def seed() -> None:
    """Start randomness anew, so that a run and its replay draw the same.

    Not by ``torch.manual_seed``, which also seeds GPUs that were not yet used, whose state nobody puts back.
    """
    torch.default_generator.manual_seed(0)
    if _gpus():
        torch.cuda.manual_seed_all(0)


def _gpus() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
