"""Where the weights of a rewritten network come from, in names and indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ghostify.names import within
from ghostify.tracing import Traced


@dataclass
class Origins:
    """What is not its own namesake in the original."""

    layers: dict[str, tuple[str, Tensor | None]] = field(default_factory=dict)
    """By layer, the original's name for it and which of its outputs it makes (None: all)."""
    weights: dict[str, Tensor | None] = field(default_factory=dict)
    """By layer that became narrower, the weight it began with; of others the original's is meant."""
    stages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By G-Ghost stage, the modules of the original's block whose output the ghosts are of."""
    ghosts: set[str] = field(default_factory=set)
    """The layers that became C-Ghost modules; others may have been in the network before, and are made of layers."""
    roots: set[str] = field(default_factory=set)
    """The modules that hold everything that was replaced."""

    excluded: Callable[[str], bool] = lambda name: False
    """Whether a module is to stay as it is, by its name."""

    def keeps(self, name: str) -> bool:
        """Whether nothing of a module may change: it is excluded, and no rewrite had to narrow what it reads."""
        return self.excluded(name) and not self.touch(name)

    def touch(self, name: str) -> bool:
        """Whether a module was replaced, or lies in what was."""
        return any(within(name, root) for root in self.roots)


def part_or_none(module: nn.Module, name: str) -> nn.Module | None:
    """The module of that name, if there is one."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def index_of(traced: Traced, name: str, outputs: np.ndarray) -> Tensor | None:
    """Outputs of a layer as an index, or None where they are all."""
    weight = getattr(part_or_none(traced.module, name), "weight", None)
    return None if weight is None or len(outputs) == len(weight) else torch.from_numpy(outputs)
