"""Where the layers of a converted network come from: the original's names for them, and the outputs they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn

from ghostify.ghosts import GGhostStage
from ghostify.names import common, within
from ghostify.rules import CGhostSwap, GGhostSwap, Swap, g_ghost, width
from ghostify.stages import Stage
from ghostify.tracing import Traced


@dataclass
class Origins:
    """What is not its own namesake in the original."""

    layers: dict[str, tuple[str, Tensor | None]] = field(default_factory=dict)
    """By layer, the original's name for it and which of its outputs it makes (None: all)."""
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


def origins(traced: Traced, swaps: Sequence[Swap], module: nn.Module) -> Origins:
    """The origins of everything in ``module``, which ``swaps`` made of the ``traced`` network."""
    found = Origins()
    for swap in swaps:
        if isinstance(swap, CGhostSwap):
            found.ghosts.add(swap.target)
            found.roots.add(swap.target)
        elif isinstance(swap, GGhostSwap):
            _of_stage(found, traced, swap, module)
        else:
            kept = width.outputs_kept(traced, swap)
            made = {name: (name, _index(traced, name, outputs)) for name, outputs in kept.items()}
            found.layers |= made
            found.roots |= {name for name in kept if _differs(traced.module, module, name)}
    return found


def _of_stage(found: Origins, traced: Traced, swap: GGhostSwap, module: nn.Module) -> None:
    stage = g_ghost.find(traced, swap)
    tail = module.get_submodule(stage.slot)
    assert isinstance(tail, GGhostStage)
    kept = g_ghost.outputs_kept(traced, swap)
    for index, block in enumerate(tail.thin):
        widened = swap.cheap == "none" and index == len(tail.thin) - 1
        for name, origin in _twins(block, f"{stage.slot}.thin.{index}", stage, index + 1, traced.module):
            outputs = None if widened or origin not in kept else _index(traced, origin, kept[origin])
            found.layers[name] = origin, outputs
    if tail.end is not None:
        for name, origin in _twins(tail.end, f"{stage.slot}.end", stage, stage.n - 1, traced.module):
            found.layers[name] = origin, None
    found.stages[stage.slot] = stage.blocks[len(tail.thin)].modules
    found.roots |= {stage.slot, *stage.later}


def _twins(block: nn.Module, home: str, stage: Stage, index: int, original: nn.Module) -> Iterator[tuple[str, str]]:
    """(name, original's name) of the layers of a block."""
    modules = stage.blocks[index].modules
    for inner, layer in block.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        if len(modules) == 1 or isinstance(block, fx.GraphModule):
            origin = f"{common(modules)}.{inner}".strip(".")
        else:
            number, _, rest = inner.partition(".")
            origin = f"{modules[int(number)]}.{rest}".strip(".")
        if _submodule(original, origin) is not None:
            yield f"{home}.{inner}".strip("."), origin


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _index(traced: Traced, name: str, outputs: np.ndarray) -> Tensor | None:
    """Outputs as an index, or None where they are all."""
    weight = getattr(_submodule(traced.module, name), "weight", None)
    return None if weight is None or len(outputs) == len(weight) else torch.from_numpy(outputs)


def _differs(original: nn.Module, module: nn.Module, name: str) -> bool:
    one, other = (getattr(_submodule(part, name), "weight", None) for part in (original, module))
    return one is None or other is None or one.shape != other.shape
