"""Where the intercepts of a layer go: into its bias or, where it has none, into the mean of the norm that follows.

A layer that is called more than once may have another norm behind every call, and modules that share a weight may have
a bias each.  Every such place p takes an intercept of its own, and the moments are those about the means there:

    S = Σ_p N_p cov_p(u) / N        C = Σ_p N_p cov_p(t, u) / N        b_p = E_p[t] − W E_p[u]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Intercepts:
    """The places of a layer's intercepts, by call."""

    def __init__(self, layers: Sequence[nn.Module], norms: Sequence[nn.Module | None]) -> None:
        """``layers`` and ``norms``: what each call calls, and the norm behind it."""
        found = [_place(layer, norm) for layer, norm in zip(layers, norms, strict=True)]
        self.there = all(place is not None for place in found)
        """Whether every call has such a place; else there is no intercept at all."""
        # Calls with one bias, or one norm, behind them can only have one intercept.
        distinct = {id(place): place for place in found if place is not None} if self.there else {}
        self._places = list(distinct.values())
        self.of = [list(distinct).index(id(place)) if self.there else 0 for place in found]
        """By call, which place is its own."""

    @property
    def count(self) -> int:
        """How many intercepts there are to be fitted; one that stays zero where there is no place for any."""
        return max(1, len(self._places))

    def put(self, values: Sequence[Tensor], outputs: Tensor | None = None) -> None:
        """Write the intercepts, (n,) each by place; a norm's is added to what it has taken in already.

        ``outputs``: the channels of a norm that these are of, -1 for one that nobody reads; None for all.
        """
        with torch.no_grad():
            for place, value in zip(self._places, values, strict=True):
                if isinstance(place, nn.Module):
                    shift_mean(place, value if outputs is None else _among(place, value, outputs))
                else:
                    place.copy_(value)


def _place(layer: nn.Module, norm: nn.Module | None) -> nn.Module | Tensor | None:
    bias = getattr(layer, "bias", None)
    return norm if bias is None else bias


def _among(norm: nn.Module, value: Tensor, outputs: Tensor) -> Tensor:
    """Values of some channels as those of all of a norm's, zero for the others."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    there = outputs >= 0
    return value.new_zeros(norm.num_features).index_add(0, outputs[there], value[there])


def shift_mean(norm: nn.Module | None, bias: Tensor) -> None:
    """Let a norm in eval mode see its input with ``bias`` (n,) added."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    # (y + b) − μ = y − (μ − b)
    norm.running_mean.sub_(bias.to(norm.running_mean.dtype))
