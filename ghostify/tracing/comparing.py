"""Whether two runs gave the same."""

from __future__ import annotations

import torch
from torch import Tensor

RTOL = 1e-4
"""Replay must agree with the recorded output to this, relative to the output's largest magnitude."""


def agree(recorded: Tensor, replayed: Tensor) -> bool:
    """Whether a replayed value is the recorded one, as near as ``RTOL`` asks; on meta, whether its shape is."""
    if recorded.shape != replayed.shape:
        return False
    if recorded.is_meta or not recorded.numel():
        return True
    a, b = (_real(tensor).double() for tensor in (recorded, replayed))
    scale = a.abs().nan_to_num(0, 0, 0).max().item()
    return torch.allclose(a, b, rtol=RTOL, atol=RTOL * scale, equal_nan=True)


def fingerprint(tensor: Tensor) -> Tensor:
    """Two numbers that hardly any change leaves as they are."""
    value = _real(tensor.detach()).double()
    return torch.stack([value.sum(), value.abs().sum()])


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
