"""First and second moments of features and targets, streaming, and the least squares that needs nothing else.

    t ≈ W u + b       u: D features, t: n targets, at N positions, in g groups that are solved apart

Blocks are merged by their means and centred sums (Chan et al. 1983), so nothing is lost to cancellation, the order and
size of blocks do not matter, and processes that saw different images agree after ``reduced``.  With the centred
moments S = cov(u), C = cov(t, u):

    W = W₀ + (C − W₀ S)(S + ρ·s̄·I)⁻¹          a ridge towards W₀, in units of s̄, the mean of S's diagonal
    b = E[t] − W E[u]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ghostify.leastsquares.principal import Principal, metric_of
from ghostify.processes import present

RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths ρ that are tried, weakest first."""
_START = 5
_STRONGEST = 1e9
_JUDGES = 64
"""Targets on which a strength is judged, evenly spread over all of them."""
_NOTHING = 1e-100
"""A variance to stand for zero, by which one can still divide."""
_FAINT = 1e-6
_TURNS, _STILL = 30, 1e-2
"""How many turns are taken at most, and in which share of its largest entry P moves in one that is the last."""
MIXING = (1e-10, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Ridges on a pointwise convolution, weakest first."""
LIMIT = 3.0
"""The most that one map is multiplied by to be added to another."""
_STRIP = 256
"""Rows of a product that are computed together."""
_EXACT = 160
"""Up to so many features, products are taken in float64; beyond, in float32 within a block, and summed in float64."""


class Moments:
    """Moments of ``u`` (N, g, D) and ``t`` (N, g, n), for as many blocks as are added.

    Without ``squares``, the products of features with each other are left out, which are most of the work.
    """

    def __init__(self, squares: bool = True) -> None:
        self.squares = squares
        self.count = 0.0
        self.mean_u = self.mean_t = self.uu = self.tu = self.tt = torch.zeros(())

    def add(self, u: Tensor, t: Tensor) -> None:
        """Merge a block in: u (N, g, D), t (N, g, n)."""
        kind = precision(u.shape[2])
        block = Moments(self.squares)
        block.count = float(len(u))
        # Sums, because ``mean`` takes ten times as long where groups are many.
        block.mean_u, block.mean_t = (rows.sum(0, dtype=torch.float64) / len(rows) for rows in (u, t))
        # About the block's own mean, so that a product in float32 loses nothing to a mean much larger than the spread.
        u = (u.to(kind) - block.mean_u.to(kind)).transpose(0, 1)  # (g, N, D)
        t = (t.to(kind) - block.mean_t.to(kind)).transpose(0, 1)
        block.uu = squared(u).double() if self.squares else block.uu
        block.tu, block.tt = (t.mT @ u).double(), t.double().square().sum(1)
        self.merge(block)

    def merge(self, other: Moments) -> None:
        """Take another's blocks in; it is not to be used any more."""
        if not self.count or not other.count:
            self.__dict__.update((self if self.count else other).__dict__)
            return
        total = self.count + other.count
        # Sums about two means become sums about the common one by what lies between these (Chan et al. 1983).
        du, dt, share = other.mean_u - self.mean_u, other.mean_t - self.mean_t, self.count * other.count / total
        # In the other's sums, because a third array of D x D would decide how much memory a wide layer takes.
        if self.squares:
            self.uu = other.uu.add_(self.uu).baddbmm_(du[:, :, None], du[:, None], alpha=share)
        self.tu = other.tu.add_(self.tu).baddbmm_(dt[:, :, None], du[:, None], alpha=share)
        self.tt = self.tt + other.tt + share * dt.square()
        self.mean_u, self.mean_t = self.mean_u + du * (other.count / total), self.mean_t + dt * (other.count / total)
        self.count = total

    def plus(self, other: Moments) -> Moments:
        """The moments of both; neither is changed."""
        both, added = Moments(self.squares), Moments(self.squares)
        both.__dict__.update(self.__dict__)
        if other.count:
            added.__dict__.update(other.__dict__)
            added.uu, added.tu = other.uu.clone(), other.tu.clone()  # merging adds to these
            both.merge(added)
        return both

    def reduced(self) -> Moments:
        """The moments over all processes that compute together, the same in each; itself where there is one."""
        processes = present()
        # A process that saw no image of this layer takes part all the same, or the others would wait for it.
        shape = processes.largest(self.tu.shape if self.count else (0, 0, 0))
        if processes.world == 1 or not any(shape):
            return self
        own = self if self.count else self._of_nothing(*shape)
        total = Moments(self.squares)
        total.count = float(processes.summed(torch.tensor(own.count, dtype=torch.float64)))
        total.mean_u = processes.summed(own.count * own.mean_u) / total.count
        total.mean_t = processes.summed(own.count * own.mean_t) / total.count
        du, dt = own.mean_u - total.mean_u, own.mean_t - total.mean_t
        # Each process's sums are now about the mean of all, and simply add up.
        if self.squares:
            total.uu = processes.summed(own.uu + own.count * du[:, :, None] * du[:, None])
        total.tu = processes.summed(own.tu + own.count * dt[:, :, None] * du[:, None])
        total.tt = processes.summed(own.tt + own.count * dt.square())
        return total

    def _of_nothing(self, g: int, n: int, d: int) -> Moments:
        """No rows, in the shapes of other processes' moments."""
        empty = Moments(self.squares)
        empty.mean_u, empty.mean_t = (torch.zeros(g, size, dtype=torch.float64) for size in (d, n))
        empty.uu = torch.zeros(g, d, d, dtype=torch.float64) if self.squares else empty.uu
        empty.tu, empty.tt = torch.zeros(g, n, d, dtype=torch.float64), torch.zeros_like(empty.mean_t)
        return empty

    def of_targets(self, index: Tensor) -> Moments:
        """The moments of some of the targets; memory is shared where it can be."""
        some = Moments(self.squares)
        some.__dict__.update(self.__dict__)
        if self.count:
            some.mean_t, some.tu, some.tt = self.mean_t[:, index], self.tu[:, index], self.tt[:, index]
        return some

    def features(self, constant: bool = True) -> Tensor:
        """S (g, D, D), the features' covariances; not centred where there is no constant to fit."""
        s = self.uu / self.count
        return s if constant else s + self.mean_u[:, :, None] * self.mean_u[:, None]

    def crossed(self, constant: bool = True) -> Tensor:
        """C (g, n, D), the targets' covariances with the features; as above."""
        c = self.tu / self.count
        return c if constant else c + self.mean_t[:, :, None] * self.mean_u[:, None]

    def intercept(self, weight: Tensor) -> Tensor:
        """The bias (g, n) with which ``weight`` (g, n, D) has the mean right."""
        return self.mean_t - (weight @ self.mean_u[:, :, None])[:, :, 0]

    def error(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Mean squared error of ``weight`` (g, n, D) and ``bias`` (g, n) for each target, (g, n)."""
        # Σ (t − W u)² about the means, and what the bias misses of these.
        spread = self.tt - 2 * (weight * self.tu).sum(2) + ((weight @ self.uu) * weight).sum(2)
        offset = self.intercept(weight)
        return spread.clamp_min(0) / self.count + (offset if bias is None else offset - bias).square()


def within(groups: Sequence[Moments]) -> Moments:
    """The moments of groups of rows, each about its own mean, so that every group may have an intercept of its own."""
    if len(groups) == 1:
        return groups[0]
    filled = [group for group in groups if group.count]
    both = Moments(groups[0].squares)
    if not filled:
        return both
    both.count = sum(group.count for group in filled)
    # Means of zero make the common intercept zero, too: each group's own is computed from its moments later.
    both.mean_u, both.mean_t = torch.zeros_like(filled[0].mean_u), torch.zeros_like(filled[0].mean_t)
    both.tu = torch.stack([group.tu for group in filled]).sum(0)
    both.tt = torch.stack([group.tt for group in filled]).sum(0)
    if both.squares:
        both.uu = torch.stack([group.uu for group in filled]).sum(0)
    return both


def squared(u: Tensor) -> Tensor:
    """UᵀU, (g, D, D), of u (g, N, D): strip by strip up to the diagonal, because the rest mirrors it."""
    found = u.new_empty(len(u), u.shape[2], u.shape[2])
    for first in range(0, u.shape[2], _STRIP):
        strip, upto = slice(first, first + _STRIP), slice(first + _STRIP)
        found[:, strip, upto] = u[:, :, strip].mT @ u[:, :, upto]
        found[:, :first, strip] = found[:, strip, :first].mT
    return found


def precision(features: int) -> torch.dtype:
    """In which products of so many features are taken, before they are summed in float64."""
    return torch.float64 if features <= _EXACT else torch.float32


@dataclass(frozen=True)
class Solution:
    """A fit: ``weight`` (g, n, D), ``bias`` (g, n) or None, and how it came about."""

    weight: Tensor
    bias: Tensor | None
    ridge: float
    """Strength ρ of the ridge; infinite where the weights it began with did best."""
    error: float
    """Mean squared error over the targets on what was held out, weighted."""
    before: float
    """The same of the weights it began with."""
    moments: Moments
    """Those of everything, held out or not."""
    normal: Normal
    """The normal equations of everything."""


class Normal:
    """The normal equations of one S (g, D, D), W₀ (g, n, D) and ρ, for any C: factored once, when first solved.

    A singular S is no obstacle: the ridge grows until it can be factored.
    """

    def __init__(self, s: Tensor, start: Tensor, strength: float) -> None:
        self.s, self.start, self.strength = s, start, strength

    @cached_property
    def _factor(self) -> Tensor:
        return factored(self.s, self.strength)

    @cached_property
    def _pull(self) -> Tensor:
        return self.start @ self.s

    def solve(self, c: Tensor) -> Tensor:
        """W of the head of this file, (g, n, D), for C (g, n, D)."""
        return self.start + torch.cholesky_solve((c - self._pull).mT, self._factor).mT


def factored(s: Tensor, strength: float) -> Tensor:
    """The Cholesky factor of S + ρ s̄ I, (g, D, D), of a stronger ridge where that is what it takes.

    NaN where none is strong enough, for S is not finite.
    """
    while strength < _STRONGEST:
        # All groups are factored at once, so a singular one makes the ridge stronger for all of them.
        factor, failed = torch.linalg.cholesky_ex(loaded(s, strength))
        if not failed.any():
            return factor
        strength *= 10
    return torch.full_like(s, torch.nan)


def loaded(s: Tensor, strength: float) -> Tensor:
    """S + ρ s̄ I, (g, D, D)."""
    # Features that never vary have a scale of zero, and no multiple of it would make S positive definite.
    scale = s.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_NOTHING)[:, None]
    ridged = s.clone()
    ridged.diagonal(dim1=1, dim2=2).add_(strength * scale)
    return ridged


def solve(
    seen: Moments,
    held: Moments,
    start: Tensor,
    *,
    weights: Tensor | None = None,
    constant: bool = True,
    ridges: Sequence[float] = RIDGES,
) -> Solution:
    """The ridge solution whose strength does best on what was held out, then solved again on everything.

    ``start`` (g, n, D) is what the ridge leads to, and itself a candidate; ``weights`` (g, n) say how much each
    target's error counts; ``constant`` whether there is a bias.  Without held-out positions the middle strength is
    taken.
    """
    start = start.double()
    weights = torch.ones_like(seen.mean_t) if weights is None else weights.double()
    index, before, error = best_strength(seen, held, start, weights, constant, ridges)
    everything = seen.plus(held)
    normal = Normal(everything.features(constant), start, ridges[index])
    # An error that is NaN is not better, so what the solve began with stays.
    better = error <= before
    weight = normal.solve(everything.crossed(constant)) if better else start
    bias = everything.intercept(weight) if constant else None
    chosen = ridges[index] if better else float("inf")
    return Solution(weight, bias, chosen, error if better else before, before, everything, normal)


def best_strength(
    seen: Moments,
    held: Moments,
    start: Tensor,
    weights: Tensor,
    constant: bool = True,
    ridges: Sequence[float] = RIDGES,
) -> tuple[int, float, float]:
    """Which of ``ridges`` does best on what was held out; the error there of ``start``, and that of the ridge."""
    # Few targets tell as much of a ridge as all, and one factor serves any number of them.
    judges = torch.arange(0, start.shape[1], -(-start.shape[1] // _JUDGES), device=start.device)
    seen, held, start, weights = seen.of_targets(judges), held.of_targets(judges), start[:, judges], weights[:, judges]
    s, c = seen.features(constant), seen.crossed(constant)
    judge = held if held.count else seen

    def judged(weight: Tensor) -> float:
        bias = seen.intercept(weight) if constant else None
        return float((judge.error(weight, bias) * weights).mean())

    before = judged(start)
    tried: dict[int, float] = {}

    def attempt(index: int) -> float:
        if index not in tried:
            tried[index] = judged(Normal(s, start, ridges[index]).solve(c))
        return tried[index]

    best = min(_START, len(ridges) - 1)
    attempt(best)
    if held.count:
        # Errors fall towards one strength and rise beyond it, so a search goes on only as long as they fall.
        for step in (-1, 1):
            while 0 <= best + step < len(ridges) and attempt(best + step) < tried[best]:
                best += step
    return best, before, tried[best]


def spanning(s: Tensor, weight: Tensor, weights: Tensor, rank: int) -> Tensor:
    """The map of a rank nearest to ``weight`` (n, D), over features of covariance ``s``: reduced rank regression.

    Errors of the n targets count by ``weights`` (n,).  Returns (n, D), of that rank: U Uᵀ W with U the leading
    eigenvectors of W S Wᵀ, in the scale the weights give (``principal``).
    """
    return Principal.of(weight @ s @ weight.T, weights).projection(rank) @ weight


def serving(s: Tensor, weight: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    """The map whose m ``chosen`` rows J, mixed, come nearest to all n rows of ``weight`` (n, D); (n, D), of rank m.

    Features have the covariance ``s``; an error e of the outputs counts eᵀΛe by ``weights``: Λ (n, n), or
    its diagonal (n,).  With G = W S Wᵀ, A the identity in the chosen rows J and P in the others K, V and P take turns:

        P = (G_K Vᵀ + Λ_KK⁻¹ Λ_KJ (G_J − V G) Vᵀ) (V G Vᵀ + ρ ḡ I)⁻¹        V = (AᵀΛA)⁻¹ AᵀΛ

    Without the ridge ρ that spans what ``spanning`` does, whichever rows are chosen, so turns begin there; but where
    these are nearly dependent, or hardly vary, P is of hundreds, and the first step of training destroys it.  So ρ is
    the weakest of ``MIXING`` with which no entry of P is above ``LIMIT``.
    """
    metric = metric_of(weights, _FAINT)
    g = weight @ s @ weight.T
    if not g.isfinite().all():
        return torch.full_like(weight, torch.nan)  # as of any solve of what is not finite; it is undone later
    others = torch.ones(len(weight), dtype=torch.bool, device=g.device)
    others[chosen] = False
    basis = Principal.of(g, metric).projection(len(chosen))[chosen]
    for strength in MIXING:
        # What a weaker ridge led to is near to what this one does.
        mix, basis = _in_turns(g, metric, chosen, others, strength, basis)
        if mix.abs().max() <= LIMIT:
            break
    return mix @ (basis @ weight)


def mixing(g: Tensor, crossed: Tensor) -> Tensor:
    """P (k, m) with which m maps make k others, of covariances ``g`` (m, m) and ``crossed`` (k, m).

    By the weakest ridge of ``MIXING`` with which no entry is above ``LIMIT``.
    """
    for strength in MIXING:
        mix = torch.cholesky_solve(crossed.T, factored(g[None], strength)[0]).T
        if mix.abs().max() <= LIMIT:
            break
    return mix


def _in_turns(
    g: Tensor, metric: Tensor, chosen: Tensor, others: Tensor, strength: float, basis: Tensor
) -> tuple[Tensor, Tensor]:
    """A (n, m) and V (m, n), which begins with ``basis``; turns end when P hardly moves any more."""
    mix = torch.eye(len(g), dtype=g.dtype, device=g.device)[:, chosen]
    # An error of a chosen output may be made up for by the others, where the two matter together.
    along = torch.linalg.solve(metric[others][:, others], metric[others][:, chosen])
    for _ in range(_TURNS):
        # With the maps V y given, the best P is a regression on them; with A given, the best V a weighted projection.
        crossed = g @ basis.T
        inner = basis @ crossed
        wanted = crossed[others] + along @ (crossed[chosen] - inner)
        before = mix[others]
        mix[others] = torch.linalg.solve(loaded(inner[None], strength)[0], wanted.T).T
        weighed = metric @ mix
        basis = torch.linalg.solve(mix.T @ weighed, weighed.T)
        if (mix[others] - before).abs().max() <= _STILL * mix[others].abs().max():
            break
    return mix, basis
