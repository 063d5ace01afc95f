"""Which layer of the original each layer of a G-Ghost stage was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import fx, nn

from ghostify.ghosts import GGhostStage
from ghostify.names import common
from ghostify.rules.g_ghost.swap import GGhostSwap
from ghostify.rules.origins import Origins, index_of, part_or_none
from ghostify.stages import Stage
from ghostify.tracing import Traced


def add_origins(
    found: Origins, traced: Traced, stage: Stage, swap: GGhostSwap, kept: Mapping[str, np.ndarray], module: nn.Module
) -> None:
    """Add to ``found`` the layers of the stage's tail in ``module``; ``kept`` are the outputs of the thin ones."""
    tail = module.get_submodule(stage.slot)
    assert isinstance(tail, GGhostStage)
    for index, block in enumerate(tail.thin):
        # without ghosts, the last thin block gives all channels again
        widened = swap.cheap == "none" and index == len(tail.thin) - 1
        for name, origin in _twins(block, f"{stage.slot}.thin.{index}", stage, index + 1, traced.module):
            outputs = None if widened or origin not in kept else index_of(traced, origin, kept[origin])
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
        else:  # several modules in a row became a sequence of them
            number, _, rest = inner.partition(".")
            origin = f"{modules[int(number)]}.{rest}".strip(".")
        if part_or_none(original, origin) is not None:
            yield f"{home}.{inner}".strip("."), origin
