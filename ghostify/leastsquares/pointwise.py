"""A depthwise filter and a pointwise convolution that make a ghost map together, in closed form.

    y_j ≈ k_j ∗ Y'_i + P_j · Y'           i: the ghost's own intrinsic map;  Y': all m of them

With S = cov(Y'), R_i = cov(shifts of Y'_i), X_i = cov(shifts of Y'_i, Y'), c_ij = cov(shifts of Y'_i, y_j) and
c_j = cov(Y', y_j), the least squares of both at once are, the shifts taken without the centre (which is in Y'):

    k_j = (R_i − X_i S⁻¹ X_iᵀ)⁻¹ (c_ij − X_i S⁻¹ c_j)        P_j = S⁻¹ (c_j − X_iᵀ k_j)

One factorisation of S (m x m) serves all ghosts.  A pointwise convolution of low rank is P cut to that rank in the
metric of S; the filters, now with their centre, are then solved for what it leaves: k_j = R_i⁻¹ (c_ij − X_i P_j).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ghostify.leastsquares.moments import LIMIT, Moments, factored, loaded, spanning


@dataclass(frozen=True)
class Blocks:
    """Second moments of the n−m ghosts, part by part, with the d² shifts of the m intrinsic maps, centre included."""

    s: Tensor
    """(m, m)"""
    r: Tensor
    """(m, d², d²)"""
    x: Tensor
    """(m, d², m)"""
    c_own: Tensor
    """(n−m, d²): c_ij"""
    c_all: Tensor
    """(n−m, m): c_j"""
    variance: Tensor
    """(n−m,)"""
    map: Tensor
    """(n−m,): each ghost's own intrinsic map."""
    mean_own: Tensor
    """(n−m, d²): of the shifts of its own map"""
    mean_all: Tensor
    """(m,)"""
    mean: Tensor
    """(n−m,)"""

    @staticmethod
    def of(own: Moments, shared: Moments, area: int, constant: bool) -> Blocks:
        """``own``: shifts (g = m) with the ghosts of each map; ``shared``: Y' with all shifts and all ghosts."""
        crossed, m = shared.crossed(constant)[0], own.mean_u.shape[0]
        ghosts = torch.arange(len(crossed) - m * area, device=crossed.device)
        variance, mean = shared.tt[0, m * area :] / shared.count, shared.mean_t[0, m * area :]
        # The targets in ``shared`` are all m·d² shifts, map by map, and then the ghosts, m to a part: X and c_j come of
        # one product, and ghost g is made of map g mod m.
        return Blocks(
            s=shared.features(constant)[0],
            r=own.features(constant),
            x=crossed[: m * area].unflatten(0, (m, area)),
            c_own=own.crossed(constant)[ghosts % m, ghosts // m],
            c_all=crossed[m * area :],
            variance=variance if constant else variance + mean.square(),
            map=ghosts % m,
            mean_own=own.mean_u[ghosts % m],
            mean_all=shared.mean_u[0],
            mean=mean,
        )

    def renewed(self, own: Moments, mixed: Moments, constant: bool) -> Blocks:
        """The same intrinsic maps with other ghosts; ``own``: shifts with the ghosts of each map, ``mixed``: Y' with
        all ghosts."""
        ghosts = torch.arange(len(self.map), device=self.map.device)
        return replace(
            self,
            c_own=own.crossed(constant)[self.map, ghosts // len(self.s)],
            c_all=mixed.crossed(constant)[0],
            variance=mixed.tt[0] / mixed.count + (0 if constant else mixed.mean_t[0].square()),
            mean=mixed.mean_t[0],
        )

    def without_centre(self) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """The shifts around the centre, and R, X and c_ij of those alone."""
        area = self.r.shape[1]
        around = [tap for tap in range(area) if tap != area // 2]
        return around, self.r[:, around][:, :, around], self.x[:, around], self.c_own[:, around]


class Both:
    """Depthwise filters ``taps`` (n−m, d²) and pointwise ``factors`` ([P], or [B, A] of P = A·B) at one ridge strength.

    ``weights`` (n−m,) say how much each ghost's error counts; ``rank`` is that of P, 0 for a full one.  Without
    ``filters``, of one tap then, that tap is zero: P makes the ghosts alone.
    """

    def __init__(self, blocks: Blocks, strength: float, weights: Tensor, rank: int, filters: bool = True) -> None:
        self.weights, self.strength = weights, strength
        self.taps, p = _at_once(blocks, strength)
        self.factors = [p]
        if rank:
            self.factors = _cut(blocks.s, p, weights, rank)
            p = self.factors[1] @ self.factors[0]
        if rank and filters:
            left = blocks.c_own - torch.einsum("gam,gm->ga", blocks.x[blocks.map], p)
            self.taps = torch.linalg.solve(loaded(blocks.r, strength)[blocks.map], left)
        self.pointwise = p
        self.bias = self._intercept(blocks)

    def error(self, blocks: Blocks) -> float:
        """Weighted mean squared error, from the moments of what was held out."""
        p, k = self.pointwise, self.taps
        # E (y − k·u − P·Y')², multiplied out: second moments are enough, and no position is looked at again.
        products = (p * blocks.c_all).sum(1) + (k * blocks.c_own).sum(1)
        squares = ((p @ blocks.s) * p).sum(1) + (torch.einsum("gab,gb->ga", blocks.r[blocks.map], k) * k).sum(1)
        mixed = (torch.einsum("gam,gm->ga", blocks.x[blocks.map], p) * k).sum(1)
        error = blocks.variance - 2 * products + squares + 2 * mixed
        return float((error * self.weights).mean())

    @property
    def sound(self) -> bool:
        """Whether no map is multiplied by so much that a step of training would destroy it."""
        return bool(self.pointwise.abs().max() <= LIMIT)

    def _intercept(self, blocks: Blocks) -> Tensor:
        """The bias (n−m,) with which the means are right."""
        return blocks.mean - (self.taps * blocks.mean_own).sum(1) - self.pointwise @ blocks.mean_all


def _at_once(blocks: Blocks, strength: float) -> tuple[Tensor, Tensor]:
    """k and P at the head of this file: (n−m, d²) and (n−m, m)."""
    # Eliminating P first leaves d² − 1 unknowns for each filter, however many maps are mixed (Schur complement).
    factor = factored(blocks.s[None], strength)[0]
    solved = torch.cholesky_solve(blocks.c_all.T, factor)  # (m, n−m)
    taps = torch.zeros_like(blocks.c_own)
    around, r, x, c = blocks.without_centre()
    if not around:
        return taps, solved.T
    solved_x = torch.cholesky_solve(x.flatten(0, 1).T, factor).T.reshape(x.shape)
    inner = loaded(r, strength) - solved_x @ x.mT
    own = blocks.map
    taps[:, around] = torch.linalg.solve(inner[own], c - torch.einsum("gam,mg->ga", x[own], solved))
    return taps, solved.T - torch.einsum("gam,ga->gm", solved_x[own], taps[:, around])


def _cut(s: Tensor, p: Tensor, weights: Tensor, rank: int) -> list[Tensor]:
    """P (n−m, m) cut to a rank in the metric of S, as the factors B (r, m) and A (n−m, r) of A·B."""
    cut = spanning(s, p, weights, rank)
    # The product alone says nothing of its two factors; an SVD gives them, and A takes the sizes.
    left, values, right = torch.linalg.svd(cut, full_matrices=False)
    return [right[:rank], left[:, :rank] * values[:rank]]
