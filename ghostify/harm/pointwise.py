"""A layer whose m intrinsic maps make all others by a pointwise convolution: what it gives, fitted, before it is built.

    y ← P_m B y + b       P_m: the projection on m principal directions (``leastsquares/principal``)
                          B: what answers the rectifier behind, the identity where there is none

Fitted to what the original reads, the module is exactly the best map of rank m of the layer's own outputs, so their
n x n covariance holds all m at once, and what the layer reads does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ghostify.fitting.kinds.least_squares import ROUNDS
from ghostify.harm.answering import Regression
from ghostify.harm.rows import Affine, Rows
from ghostify.leastsquares.moments import RIDGES, squared
from ghostify.leastsquares.principal import UNWEIGHTED, Principal, metric_of, root_of

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of a layer's maps, how many are intrinsic where its harm is measured."""


class Projections:
    """What every m leaves of one layer's outputs; of a grouped layer, of those of each group."""

    def __init__(self, rows: Rows, weights: Tensor, groups: int, dim: int) -> None:
        """``weights``: how much errors of the outputs count, (n,) or (n, n)."""
        self.rows, self.weights, self.groups, self.dim = rows, weights, groups, dim
        # Products of wide layers, n³ each and several for every m, are all in the precision of the rows' own.
        self.covariance = squared(rows.centred[None])[0] / len(rows.y)
        self.mean = rows.mean.to(self.covariance)
        # The weakest ridge by which a covariance in single precision can be divided.
        self.regression = Regression(rows, RIDGES[1])

    @cached_property
    def carried(self) -> tuple[float, ...]:
        """By intrinsic maps of a group, the share of the outputs' weighted variance that they carry."""
        curves = torch.stack([one.variances for one in self._directions]).sum(0).double().cumsum(0)
        total = curves[-1]
        return tuple((curves / total).clamp_max(1).tolist()) if total > 0 else (1.0,) * len(curves)

    def of(self, m: int) -> Affine:
        """What m intrinsic maps give."""
        n, each = len(self.mean), m // self.groups
        if m >= n:
            return Affine(torch.eye(n, dtype=self.mean.dtype), torch.zeros_like(self.mean), self.dim)
        matrix = _projected(self._directions, each)
        now = Affine(matrix, self.mean - matrix @ self.mean, self.dim)
        # Of groups, what is renewed would mix the maps of one with those of another, which no grouped layer can.
        renewed = self.rows.ceiling is not None and self.groups == 1
        for _ in range(ROUNDS if renewed else 0):
            full = self.regression.nearest(now, self.dim).to(self.covariance)
            # The rank is cut anew, because renewed targets have other principal directions.
            cut = _projected(self._principal(full.matrix @ self.covariance @ full.matrix.T), each)
            wanted = full.matrix @ self.mean + full.offset
            matrix = cut @ full.matrix
            now = Affine(matrix, wanted - matrix @ self.mean, self.dim)
        return now

    @cached_property
    def _directions(self) -> Sequence[Principal]:
        """Those of the outputs as the original gives them, from which every m begins."""
        return self._principal(self.covariance)

    @cached_property
    def _roots(self) -> list[Tensor]:
        """By group, the root of the metric that errors of its outputs count by."""
        blocks = self._by_group(metric_of(self.weights, UNWEIGHTED))
        return [root_of(block).to(self.covariance) for block in blocks]

    def _principal(self, covariance: Tensor) -> Sequence[Principal]:
        """The principal directions of each group's outputs."""
        blocks = self._by_group(covariance)
        return [Principal.under(root, block) for root, block in zip(self._roots, blocks, strict=True)]

    def _by_group(self, square: Tensor) -> list[Tensor]:
        """The blocks on the diagonal of an (n, n) matrix."""
        n = len(square) // self.groups
        blocks = square.unflatten(0, (self.groups, n)).unflatten(2, (self.groups, n))
        return [blocks[group, :, group] for group in range(self.groups)]


def _projected(directions: Sequence[Principal], m: int) -> Tensor:
    """The projection of each group's outputs on its first m directions, (n, n) of all groups."""
    return torch.block_diag(*(one.projection(m) for one in directions))


def ranks(n: int, groups: int) -> list[int]:
    """At how many intrinsic maps of n the harm is measured, in whole maps of every group."""
    each = n // groups
    wanted = {max(1, round(share * each)) * groups for share in SHARES}
    return sorted(m for m in wanted if m < n)
