"""The private copy that is recorded."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ghostify.errors import TraceError
from ghostify.running import one_line

_CONTAINERS = (dict, OrderedDict, set, list)


def private_copy(module: nn.Module, share_parameters: bool) -> nn.Module:
    """A deep copy; parameters may be shared, and cached non-leaf tensors (which refuse to be copied) are detached."""
    shared = module.parameters() if share_parameters else ()
    return copied(module, {id(parameter): parameter for parameter in shared})


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy with what the ``memo`` has in the places of what it names.  Raises ``TraceError``."""
    for part in module.modules():
        for value in vars(part).values():
            if type(value) in _CONTAINERS and not value:
                memo[id(value)] = type(value)()  # most of what a layer holds, and slow to copy in the usual way
            elif isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as problem:
        raise TraceError(f"{type(module).__name__} cannot be copied: {one_line(problem)}") from problem
