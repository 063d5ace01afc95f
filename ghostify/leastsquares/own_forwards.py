"""What a convolution with a forward of its own convolves, seen while it runs.

    forward(x) = conv(prepared(x), weight, bias)             a padding of its own, say: it is fitted as torch's own are
    forward(x) = conv(prepared(x), prepared(weight), bias)   a standardised weight: filters that least squares gives
                                                             are not those it would convolve with, and stay

A run on a small image tells which it is.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ghostify.ghosts.narrowing import Conv, has_own_forward


class Call(NamedTuple):
    """What ``aten::convolution`` is given: zeros are all that it pads with, as many on either side."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


class _Watch(TorchDispatchMode):
    """Notes the convolutions that are run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.calls.append(Call(*args))
        return func(*args, **(kwargs or {}))


class Settable(NamedTuple):
    """What of a convolution is used as it stands, so that whoever sets it knows what the convolution then does."""

    filters: bool
    bias: bool


def call_of(conv: Conv, x: Tensor) -> Call:
    """The one convolution that ``conv`` runs for x (B, c, …)."""
    with torch.no_grad(), _Watch() as watch:
        conv(x)
    (call,) = watch.calls
    return call


def settable(conv: nn.Module) -> Settable:
    """What can be set in a convolution (one that is narrowable, if it has a forward of its own)."""
    assert isinstance(conv, Conv)
    if not has_own_forward(conv):
        return Settable(True, True)
    twin = copy.deepcopy(conv).eval()
    # Wider than the dilated kernel, so that even a convolution without padding has something to give.
    image = [2 * step * size + 1 for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    call = call_of(twin, twin.weight.new_zeros(1, conv.in_channels, *image))
    geometry = (tuple(call.stride), tuple(call.dilation), call.groups)
    # The very parameter has to arrive: a prepared copy may be equal to it for these weights and not for others.
    plain = call.weight is twin.weight and geometry == (conv.stride, conv.dilation, conv.groups)
    bias = call.bias is twin.bias
    return Settable(plain and bias, bias)
