"""What calls of torch functions do, by their names: read values or sizes into Python, let foreign tensors in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.running import function_name

ENTRANCES = frozenset({"from_numpy", "frombuffer", "from_dlpack"})
"""Functions that make a tensor of what is none."""
_READING_NAMES = """
__array__ __bool__ __complex__ __contains__ __float__ __index__ __int__ _local_scalar_dense allclose equal is_nonzero
item numpy tolist
"""
_READS_DATA = frozenset(_READING_NAMES.split())
_SIZED_BY_DATA = frozenset({"argwhere", "bincount", "masked_select", "nms", "nonzero", "unique", "unique_consecutive"})

_SIZE_NAMES = """
__iter__ __len__ chunk dsplit hsplit is_contiguous nelement numel shape size split split_with_sizes stride tensor_split
unbind vsplit
"""
_READS_SIZE = frozenset(_SIZE_NAMES.split())


def reads_size(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a call tells Python a size of a tensor that is no parameter, or gives as many tensors as it says."""
    name = function_name(func)
    if name == "__get__":  # of a property, such as x.shape
        name = function_name(getattr(func, "__self__", None))
    return name in _READS_SIZE and not (args and isinstance(args[0], nn.Parameter))


def reads_data(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call gives Python a value of a tensor, or a tensor whose shape depends on values."""
    name = function_name(func)
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in index)
    return name in _READS_DATA | _SIZED_BY_DATA or (name == "where" and len(args) + len(kwargs) == 1)
