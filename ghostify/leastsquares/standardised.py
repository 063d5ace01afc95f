"""Convolutions that standardise their filters: which filters they can have, and the weights that give them.

    prepared(w)_i = γ_i · (w_i − mean w_i) / std w_i        a filter's direction, of mean zero, times a gain

Whatever scale and mean weights have is lost, so the filters are those of mean zero and, where no parameter of the
convolution is a gain, of the norms that they have.  Runs on random weights tell whether a convolution is such a one.
(Weight standardisation: Qiao et al. 2019; scaled, with a gain: Brock et al. 2021.)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ghostify.ghosts.narrowing import Conv, has_own_forward, prepared
from ghostify.leastsquares.own_forwards import settable

_ALIKE = 1e-3
"""How far filters are apart, in shares of their norm, that differ by what keeps from dividing by zero alone."""


def standardises(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that uses nothing but the direction of its filters, their means taken off."""
    if not isinstance(layer, Conv) or not has_own_forward(layer) or layer.weight.is_meta or not settable(layer).bias:
        return False
    twin = copy.deepcopy(layer).cpu().float()
    weight = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    # Scale and mean are what must be lost: w and 3 w + 1 have to give the same filters.
    given, other = (_prepared_of(twin, each) for each in (weight, 3 * weight + 1))
    centred = _centred(weight.flatten(1))
    expected = centred * (given.norm(dim=1) / centred.norm(dim=1))[:, None]
    return _alike(given, other) and _alike(given, expected)


def gain_of(conv: Conv) -> str | None:
    """The name of a parameter by which each filter of such a convolution is multiplied; None where there is none."""
    before = prepared(conv)[0].detach().flatten(1)
    for name, parameter in conv.named_parameters():
        if name in ("weight", "bias") or parameter.numel() != conv.out_channels:
            continue
        twin = copy.deepcopy(conv)
        with torch.no_grad():
            twin.get_parameter(name).mul_(2)
        if _alike(_prepared_of(twin, twin.weight), 2 * before):
            return name
    return None


def reach(conv: Conv, filters: Tensor) -> Tensor:
    """By how much filters (n, D) of mean zero are to be multiplied, each, so that such a convolution can have them."""
    if gain_of(conv) is not None:
        return torch.ones_like(filters[:, 0])
    own = prepared(conv)[0].detach().to(filters.dtype).flatten(1)
    return own.norm(dim=1) / filters.norm(dim=1).clamp_min(torch.finfo(filters.dtype).tiny)


def give(conv: Conv, filters: Tensor) -> None:
    """Write weights, and gains where there are any, with which such a convolution convolves with ``filters`` (n, D)."""
    spread = conv.weight.detach().flatten(1).std(1, correction=0).to(filters.dtype)
    # In the scale that the weights had: the filters do not depend on it, but what guards their division does, and how
    # far a step of training goes.
    scaled = filters * (spread / filters.std(1, correction=0).clamp_min(torch.finfo(filters.dtype).tiny))[:, None]
    gain = gain_of(conv)
    with torch.no_grad():
        conv.weight.copy_(scaled.reshape(conv.weight.shape))
        if gain is not None:
            parameter = conv.get_parameter(gain)
            now = prepared(conv)[0].detach().to(filters.dtype).flatten(1)
            # As a projection, so that what is nearly no filter gets nearly no gain.
            share = (now * filters).sum(1) / now.square().sum(1).clamp_min(torch.finfo(filters.dtype).tiny)
            parameter.mul_(share.reshape(parameter.shape).to(parameter.dtype))


def _prepared_of(conv: Conv, weight: Tensor) -> Tensor:
    """The filters (n, D) a convolution makes of a weight."""
    with torch.no_grad():
        conv.weight.copy_(weight)
    return prepared(conv)[0].detach().flatten(1)


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).norm(dim=1) <= _ALIKE * other.norm(dim=1)).all())
