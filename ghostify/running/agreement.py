"""Whether two runs gave the same, as near as they can: one table of tolerances, and the reason for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """By how much values may differ, as a share of the largest magnitude of those wanted."""

    fine: float
    """In float32 and above."""
    coarse: float
    """Where anything is computed in less: an error of 2⁻⁸ (bfloat16) in every value adds up over the layers."""


REPEATED = Tolerance(1e-4, 1e-4)
"""The same operations on the same values, in the same order: only how a kernel splits its sums may differ."""
REORDERED = Tolerance(1e-4, 0.1)
"""The same sums with their terms in another order, which rounds differently."""
THINNED = Tolerance(1e-3, 0.1)
"""Sums without the terms that are zero, by other kernels: what is fewer channels is other blocks of a product."""
NARROWED = Tolerance(1e-3, 1e-3)
"""The same for one convolution of random positive weights in float32, whatever the network's own type."""
ELSEWHERE = Tolerance(1e-3, 1e-3)
"""A recording run on images of which it was not made, where a batch of another size may take other kernels."""

_COARSE = 1e-6
"""Types with a larger step than this between 1 and the next number are coarse: all that have less than 32 bits."""


def agree(wanted: Tensor, found: Tensor, tolerance: Tolerance = REPEATED, precision: torch.dtype | None = None) -> bool:
    """Whether ``found`` is what was ``wanted``: of the same shape, and as near as the ``tolerance`` asks.

    ``precision`` is the coarsest type that either was computed in, by default that of what was wanted.  NaN agrees with
    NaN and infinity with infinity.  On the meta device shapes alone can agree.
    """
    if wanted.shape != found.shape:
        return False
    if wanted.is_meta or found.is_meta or not wanted.numel():
        return True
    share = tolerance.coarse if _is_coarse(precision or wanted.dtype) else tolerance.fine
    a, b = (_real(tensor).double() for tensor in (wanted, found))
    scale = a.abs().nan_to_num(0, 0, 0).max().item()
    return torch.allclose(b, a, rtol=0, atol=share * scale, equal_nan=True)


def coarsest(values: Iterable[object], otherwise: torch.dtype) -> torch.dtype:
    """The type of the tensors among these values that has the largest step between numbers; or another where none has.

    What a network computes in is not what its weights are: autocast, or its own code, may cast on the way.
    """
    types = {value.dtype for value in values if isinstance(value, Tensor)}
    return max((one for one in types if _has_step(one)), key=_step, default=otherwise)


def fingerprint(tensor: Tensor) -> Tensor:
    """Two numbers that hardly any change leaves as they are."""
    value = _real(tensor.detach()).double()
    return torch.stack([value.sum(), value.abs().sum()])


def _is_coarse(dtype: torch.dtype) -> bool:
    return _has_step(dtype) and _step(dtype) > _COARSE


def _has_step(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _step(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
