"""The layers that int8 is about: convolutions and linear layers that hold their weights themselves."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ghostify.ghosts.narrowing import Conv, has_own_forward


def weighted_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each layer by its name.  One of a class that prepares its weight before it uses it is left out."""
    for name, module in network.named_modules():
        if isinstance(module, Conv | nn.Linear) and not has_own_forward(module):
            yield name, module


def by_channel(layer: nn.Module, maps: Tensor) -> Tensor:
    """What a layer reads as (c, everything else): a convolution's channels come second, a linear layer's last."""
    channel = -1 if isinstance(layer, nn.Linear) else 1
    return maps.transpose(0, channel).flatten(1)
