"""A block that becomes thinner inside: what its layers make of the channels that stay, fitted.

    h_J ← h_J        h_D ← L h_J + l        L = cov(h_D, h_J) (cov(h_J) + ρ s̄ I)⁻¹      J: kept, D: dropped

Whatever a layer of the block reads, it is fitted anew to read the kept channels alone.  So its filters may stand for
any linear combination of them, and a dropped channel is as good as what the others predict of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import fx

from ghostify.channels import Channels
from ghostify.harm.rows import Affine, positions, sampled
from ghostify.harm.walk import Walk
from ghostify.leastsquares.moments import RIDGES, Moments, Normal
from ghostify.module_calls import calls_of
from ghostify.rules import ThinSwap
from ghostify.rules.thin import kept_by


class Readers:
    """The layers that read channels of which some may be dropped, and the moments of what they read."""

    def __init__(self, walk: Walk, channels: Channels) -> None:
        self.walk, self.channels = walk, channels
        self.moments: dict[fx.Node, Moments] = {}

    def dropped(self, swap: ThinSwap) -> dict[fx.Node, np.ndarray]:
        """By node whose value a layer reads, which of its channels stay."""
        kept = kept_by(self.channels, [swap])
        found: dict[fx.Node, np.ndarray] = {}
        for use in self.channels.uses:
            layer = use.name.removesuffix(".weight")
            if use.dim != 1 or use.lanes or layer == use.name or kept[use.channels].all():
                continue
            for node in self._read_by(layer, width=len(use.channels)):
                found[node] = kept[use.channels]
        return found

    def _read_by(self, layer: str, width: int) -> Iterator[fx.Node]:
        """The nodes whose values a layer reads, call by call."""
        for call in calls_of(self.walk.traced, layer):
            # A class of its own may read other channels than its filters do, of which nothing is known here.
            if call.is_plain and call.reads[0].meta["shapes"][0][1] == width:
                yield call.reads[0]

    def note(self, swaps: Sequence[ThinSwap], batches: Sequence[int]) -> None:
        """Take the moments of all that swaps make thinner; the walk stands where it stood."""
        nodes = {node for swap in swaps for node in self.dropped(swap)}
        self.moments = {node: Moments() for node in nodes}
        with self.walk.changed({}), self.walk.keeping(nodes):
            for batch in batches:
                self.walk.advance(len(self.walk.nodes), [batch])
                for node, moments in self.moments.items():
                    value = self.walk.values[batch][node]
                    each = math.ceil(positions(value.shape[1]) / (len(value) * len(batches)))
                    rows = sampled(value, 1, each, batch)[:, None]
                    moments.add(rows, rows)
                self.walk.values[batch].clear()

    def changes(self, swap: ThinSwap) -> dict[fx.Node, Affine]:
        """What becomes of the values that the block's layers read."""
        return {node: predicted(self.moments[node], mask) for node, mask in self.dropped(swap).items()}

    def missed(self, changes: Mapping[fx.Node, Affine]) -> float:
        """The share of what the layers read that the kept channels do not predict, a mean over layers."""
        shares = [_missed(self.moments[node], change) for node, change in changes.items()]
        return sum(shares) / len(shares)


def _missed(moments: Moments, change: Affine) -> float:
    s = moments.features()[0]
    less = change.matrix - torch.eye(len(s), dtype=s.dtype, device=s.device)
    return float(((less @ s) * less).sum() / s.diagonal().sum().clamp_min(1e-300))


def predicted(moments: Moments, kept: np.ndarray) -> Affine:
    """Dropped channels as the kept ones predict them; of moments of channels with themselves."""
    s, mean = moments.features()[0], moments.mean_u[0]
    mask = torch.from_numpy(kept).to(s.device)
    matrix = torch.zeros_like(s)
    matrix[mask, mask.nonzero()[:, 0]] = 1
    inner, crossed = s[mask][:, mask][None], s[~mask][:, mask][None]
    weight = Normal(inner, torch.zeros_like(crossed), RIDGES[3]).solve(crossed)[0]
    lower = torch.zeros_like(s[~mask])
    lower[:, mask] = weight
    matrix[~mask] = lower
    return Affine(matrix, mean - matrix @ mean, 1)
