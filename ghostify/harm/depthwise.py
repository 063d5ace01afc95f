"""A layer whose ghosts depthwise filters make of their own intrinsic map each: what it gives, fitted.

    y_j ← k_j ∗ y_i(j) + b_j      for ghosts; intrinsic maps stay       k_j: least squares on the d x d shifts of y_i

Which maps are intrinsic, and which ghost is whose, is chosen as a fit chooses it (``fitting/channel_order``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from ghostify.fitting.channel_order import own_split
from ghostify.fitting.kinds.ghosts import layout
from ghostify.leastsquares.pairs import PairMoments, as_maps, pair_positions
from ghostify.rules import CGhostSwap, Swap

_EXCHANGES = 10**6
"""Pairs of maps that are looked at to improve how a layer is divided."""
_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def is_depthwise(swap: Swap) -> TypeGuard[CGhostSwap]:
    """Whether depthwise filters alone make a swap's ghosts."""
    if not isinstance(swap, CGhostSwap) or swap.parts != "linear":
        return False
    return swap.cheap.pointwise is None and swap.cheap.depthwise is not None


class Ghosts:
    """What a layer's outputs (B, n, …) become."""

    def __init__(self, maps: Sequence[Tensor], swap: CGhostSwap, groups: int) -> None:
        """``maps``: by batch, what the layer gives, to fit the filters to."""
        d, n = swap.cheap.depthwise or 1, maps[0].shape[1]
        found, mean = _moments(maps, d)
        self.sources, made = _split(found, swap, n, groups)
        taps, _ = found.filters(self.sources[made], made)
        area = taps.shape[1]
        filters = torch.zeros(n, area, dtype=taps.dtype)
        filters[:, area // 2] = 1  # an intrinsic map is itself
        filters[made] = taps.cpu()
        self.d, self.filters = d, filters
        self.offset = torch.zeros(n, dtype=taps.dtype)
        self.offset[made] = mean[made] - (filters.sum(1) * mean[self.sources])[made]

    def __call__(self, value: Tensor) -> Tensor:
        y = as_maps(value)
        dimensions = y.dim() - 2
        filters = self.filters.to(y).reshape(-1, 1, *(self.d,) * dimensions)
        made = _CONVOLVE[dimensions](
            y[:, self.sources], filters, self.offset.to(y), padding=self.d // 2, groups=len(filters)
        )
        return made.reshape(value.shape)


def _moments(maps: Sequence[Tensor], d: int) -> tuple[PairMoments, Tensor]:
    """Sums over sampled positions, and the mean of each map (n,)."""
    positions = pair_positions(maps[0].shape, d, len(maps), len(maps))
    found = PairMoments()
    for batch in positions.batches:
        found.add(positions.shifts(as_maps(maps[batch]), d, batch))
    mean = torch.stack([as_maps(y).flatten(2).double().mean((0, 2)) for y in maps]).mean(0)
    return found, mean.cpu()


def _split(found: PairMoments, swap: CGhostSwap, n: int, groups: int) -> tuple[Tensor, Tensor]:
    """By map, the map it is made of, (n,); and the ghosts."""
    variances = found.variances.cpu().clamp_min(1e-30)
    errors = (found.errors().cpu() / variances).clamp_max(1)
    parts = layout(n, swap.s, groups, swap.m).cpu().numpy()
    place = torch.arange(n) // max(1, n // groups)
    content = torch.from_numpy(own_split(errors.numpy(), parts, place.numpy(), _EXCHANGES))
    sources = torch.arange(n)
    made = []
    for part in torch.from_numpy(parts[1:]):
        there = part >= 0
        ghosts = content[part[there]]
        sources[ghosts] = content[torch.from_numpy(parts[0])[there]]
        made.append(ghosts)
    return sources, torch.cat(made)
