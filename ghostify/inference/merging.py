"""A C-Ghost module whose ghosts are mixtures of its intrinsic maps, as plain convolutions.

    Y = [I; D + P] · Y' + [0; b],   Y' = X * f'        (N, c, H, W) → (N, m, H', W') → (N, n, H', W')

D are the cheap operations of one tap (a number for each ghost map), P the pointwise convolution and b the biases of the
cheap operations.  What stands before Y' is one matrix M, (n, m), a 1x1 convolution; an order of the outputs is an order
of its rows.  So nothing is concatenated and nothing is selected, and a norm that follows folds into M.  Where one
convolution c → n of filters M · f' costs a runtime no more than the two (the primary one is 1x1 itself, or the channels
are few), it takes their place.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from ghostify.ghosts import CGhost
from ghostify.ghosts.c_ghost import CGhostLinear
from ghostify.ghosts.narrowing import PLAIN, Conv, dimensions, has_hooks, has_own_forward

MOST_MACS = 1.25
"""How many times the MACs of its ghost plain layers may have.

A pointwise convolution of low rank has fewer than M, and the concatenation behind it costs time of its own
(``docs/inference.md``).
"""
LANES = 16
"""Runtimes compute channels in vectors: eight filters of a convolution take as long as sixteen (AVX-512)."""


class MergedGhost(nn.Sequential):
    """The primary convolution, and M.  (N, c, H, W) → (N, n, H', W')

    It has the fields of the convolution whose place the ghost took, for a forward that asks for them.
    """

    def __init__(self, ghost: CGhost, primary: nn.Module, mixing: nn.Module) -> None:
        super().__init__(primary, mixing)
        self.in_channels, self.out_channels, self.groups = ghost.in_channels, ghost.out_channels, ghost.groups
        self.kernel_size, self.stride = ghost.kernel_size, ghost.stride
        self.padding, self.padding_mode, self.dilation = ghost.padding, ghost.padding_mode, ghost.dilation
        if getattr(mixing, "bias", None) is None:
            self.bias = None  # as a convolution without one; the bias of M is no bias of the whole


def merged(ghost: CGhost, on_vectors: bool = False) -> nn.Module | None:
    """Plain layers that give what ``ghost`` gives in eval mode, with weights of their own; None where it stays.

    It stays where a cheap operation has more than one tap, a norm or an activation, where it works in groups, where
    somebody watches it by hooks, and where plain layers would cost more than ``MOST_MACS``.  ``on_vectors`` says that
    it reads vectors, (N, c), of which a kernel of any size sees one place.
    """
    if ghost.groups > 1 or has_hooks(ghost):
        return None
    mixing = ghost.linear_map(on_vectors)
    primary = ghost.primary
    if mixing is None or not isinstance(primary, Conv):
        return None
    matrix, bias = mixing
    (n, m), filter_size = matrix.shape, primary.weight[0].numel()
    # A class of its own prepares its weight before it convolves, so nothing can be multiplied into that.
    one = math.inf if has_own_forward(primary) else _cost((filter_size, n))
    two = _cost((filter_size, m), (m, n))
    if min(one, two) > MOST_MACS * _cost_of(ghost):
        return None
    layers = _one_layer if one <= two else _two_layers
    return layers(ghost, primary, matrix, bias)


def _cost(*layers: tuple[int, int]) -> int:
    """What layers of (filter size, filters) cost a runtime for one place of their maps: MACs in full vectors."""
    return sum(size * math.ceil(filters / LANES) * LANES for size, filters in layers)


def _cost_of(ghost: CGhost) -> int:
    """The same of a ghost; its depthwise filters are computed one by one."""
    convs = [conv for conv in ghost.modules() if isinstance(conv, Conv)]
    alone = [conv for conv in convs if conv.groups > 1]
    dense = [(conv.weight[0].numel(), len(conv.weight)) for conv in convs if conv.groups == 1]
    return _cost(*dense) + sum(conv.weight.numel() for conv in alone)


# -- the layers ----------------------------------------------------------------------------------------------------


def _one_layer(ghost: CGhost, primary: Conv, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """A convolution c → n of filters M · f'."""
    weight, offset = primary.weight.detach().double(), bias
    if primary.bias is not None:
        through = matrix @ primary.bias.detach().double()
        offset = through if bias is None else through + bias
    filters = (matrix @ weight.flatten(1)).view(-1, *weight.shape[1:])
    return _linear(ghost, filters, offset) if isinstance(ghost, CGhostLinear) else _like(primary, filters, offset)


def _two_layers(ghost: CGhost, primary: Conv, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """The primary convolution as it is, and a 1x1 convolution of M."""
    if isinstance(ghost, CGhostLinear):
        return nn.Sequential(_linear(ghost, primary.weight, primary.bias), _linear(ghost, matrix, bias))
    n, m = matrix.shape
    plain: Any = PLAIN[dimensions(primary)]
    mixing = plain(m, n, 1, bias=bias is not None, device="meta")
    kept = copy.deepcopy(primary)
    return MergedGhost(ghost, kept, with_weights(mixing, matrix.view(mixing.weight.shape), bias, primary.weight))


def _like(primary: Conv, filters: Tensor, bias: Tensor | None) -> nn.Module:
    """A convolution with every field of the primary one, but for its number of filters."""
    plain: Any = PLAIN[dimensions(primary)]
    conv = plain(
        primary.in_channels,
        len(filters),
        primary.kernel_size,
        stride=primary.stride,
        padding=primary.padding,
        dilation=primary.dilation,
        groups=primary.groups,
        bias=bias is not None,
        padding_mode=primary.padding_mode,
        device="meta",
    )
    return with_weights(conv, filters, bias, primary.weight)


def _linear(ghost: CGhost, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer, for vectors and for maps whose channels come last."""
    n, c = matrix.shape[:2]
    layer = nn.Linear(c, n, bias=bias is not None, device="meta")
    primary: Any = ghost.primary
    return with_weights(layer, matrix.reshape(n, c), bias, primary.weight)


def with_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Module:
    """A layer in eval mode with copies of these weights, of the type, device and frozenness of ``like``."""
    for name, value in (("weight", weight), ("bias", bias)):
        held = None if value is None else value.detach().to(like).clone()
        layer.register_parameter(name, None if held is None else nn.Parameter(held, like.requires_grad))
    return layer.eval()
