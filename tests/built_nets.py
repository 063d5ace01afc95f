"""The zoo and the hard nets as sources that a run folder can name: ``built_nets:zoo`` with ``{"name": …}``."""

from __future__ import annotations

from typing import Any

import torch
from hard_nets import HARD_NETS
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from zoo import ZOO

NETS: dict[str, Any] = {net.name: net for net in [*ZOO, *HARD_NETS]}


def build(name: str) -> nn.Module:
    """The net of that name, at its own random state."""
    module: nn.Module = NETS[name].build()
    return module


def example(name: str, dtype: torch.dtype) -> Any:
    """Its example input, the floating tensors in ``dtype``."""
    return in_precision(NETS[name].example(), dtype)


def in_precision(example: Any, dtype: torch.dtype) -> Any:
    """An input with its floating tensors in another precision; anything else as it is."""

    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(cast, example)
