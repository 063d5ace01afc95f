"""The neighbour in the case: EfficientNet-Lite0 as Torch-Pruning makes it narrower, by the norms of its filters.

Nothing is trained after it, as nothing is with ghostify; so that it is not judged by statistics of other maps, those of
its batch norms are taken anew from the photographs that ghostify fits to.
"""

from __future__ import annotations

import copy

import torch
import torch_pruning
from lite0_data import SIDE, lite0, photographs
from torch import nn
from torch.utils.data import DataLoader, Subset

from ghostify import scan

PHOTOGRAPHS, STEPS = 256, 64
EXAMPLE = torch.zeros(1, 3, SIDE, SIDE)


def at_80() -> nn.Module:
    """With at most 0.8 of the multiply-adds."""
    return pruned(0.8)


def pruned(share: float) -> nn.Module:
    """The widest network, of ratios of 1/64, that has at most a share of the multiply-adds."""
    original = lite0().eval()
    allowed = share * scan(original, EXAMPLE).cost.macs
    for step in range(STEPS):
        narrower = without(original, step / STEPS)
        if scan(narrower, EXAMPLE).cost.macs <= allowed:
            return renormed(narrower)
    raise ValueError(f"no ratio leaves only {share} of the multiply-adds")


def without(original: nn.Module, ratio: float) -> nn.Module:
    """A copy without that share of the channels of each group that hangs together."""
    narrower = copy.deepcopy(original)
    torch_pruning.pruner.BasePruner(
        narrower,
        EXAMPLE,
        torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        round_to=8,  # widths that runtimes are made for
        ignored_layers=[narrower._fc],
    ).step()
    return narrower


def renormed(network: nn.Module) -> nn.Module:
    """The same network, its batch norms' means and variances taken from photographs, each batch counting alike."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    train, _ = photographs()
    with torch.no_grad():
        for images, _ in DataLoader(Subset(train, range(PHOTOGRAPHS)), batch_size=64):
            network(images)
    return network.eval()
