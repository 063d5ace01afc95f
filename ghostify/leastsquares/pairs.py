"""How well every map of a layer is made of every other by a d x d depthwise filter, from sums over positions.

    e_ij = var_j − c_ijᵀ R_i⁻¹ c_ij        R_i: covariance of the shifts of map i (d² x d²),  c_ij: of those with map j

For n maps that is d²·n² products a position, so wide layers get fewer positions.  (Of maps of one dimension, d stands
for d², and of three d³.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghostify.leastsquares.moments import precision
from ghostify.leastsquares.sampling import Positions
from ghostify.processes import present

_POSITIONS, _LEAST_POSITIONS = 8192, 1024
_WORK = 8e9
"""Multiply-accumulates spent on the pairs of one layer."""
_LOAD = {torch.float64: 1e-11, torch.float32: 1e-6}
"""What is added to R_i, in shares of its mean diagonal, by the precision of sums: singular ones are no obstacle."""
_ROWS = 2**24
"""Values c_ij worked on at a time."""


def pair_positions(shape: Sequence[int], d: int, batches: int, most: float, enough: int = _POSITIONS) -> Positions:
    """Where the maps of a layer are compared: ``enough`` positions, in no more than ``most`` of the batches.

    ``shape``: of a batch's output, (B, n) or (B, n, …).
    """
    shape = shape if len(shape) > 2 else (*shape, 1, 1)
    wanted = min(enough, max(_LEAST_POSITIONS, int(_WORK / (d ** len(shape[2:]) * shape[1] ** 2))))
    return Positions(shape, wanted, batches, 0, 1, most=most)


def as_maps(y: Tensor) -> Tensor:
    """(B, n, …), of vectors (B, n) maps of one pixel."""
    return y if y.dim() > 2 else y[:, :, None, None]


class PairMoments:
    """Sums over positions of the shifts of n maps, of one map's with each other and with all maps."""

    def __init__(self) -> None:
        self.count = 0.0
        self._mean = self._inner = self._crossed = torch.zeros(())
        self._about: Tensor | None = None

    def add(self, v: Tensor) -> None:
        """Take positions in: the d x d neighbourhoods v (N, n, d²).

        Sums are about the mean of what came first, so that nothing is lost to large means.
        """
        kind = precision(v.shape[1] * v.shape[2])
        if self._about is None:
            self._about = v.mean(0, dtype=torch.float64)
        v = v.to(kind) - self._about.to(kind)
        self._mean = self._mean + v.sum(0, dtype=torch.float64)
        by_map = v.transpose(0, 1)
        self._inner = self._inner + (by_map.mT @ by_map).double()
        self._crossed = self._crossed + v.flatten(1).T @ v[:, :, v.shape[2] // 2]
        self.count += len(v)

    def reduced(self) -> PairMoments:
        """The sums over all processes that compute together, the same in each; itself where there is one."""
        processes = present()
        # A process that saw no position takes part all the same, or the others would wait for it.
        shape = processes.largest(self._mean.shape if self.count else (0, 0))
        if processes.world == 1 or not all(shape):
            return self
        own = self if self.count else self._of_nothing(*shape)
        total = PairMoments()
        total.count = float(processes.summed(torch.tensor(own.count, dtype=torch.float64)))
        total._about = processes.summed(own.count * own._reference) / total.count
        own = own.around(total._about)
        total._mean, total._inner = processes.summed(own._mean), processes.summed(own._inner)
        total._crossed = processes.summed(own._crossed)
        return total

    def around(self, about: Tensor) -> PairMoments:
        """The same positions, their sums about another mean (n, d²)."""
        if about is self._about:
            return self
        moved = PairMoments()
        moved.count, moved._about = self.count, about
        # Σ(x + δ)(y + δ)ᵀ, with x and y about the mean until now, and δ from there to the other
        step = self._reference - about
        moved._mean = self._mean + self.count * step
        moved._inner = self._inner + _outer(step, self._mean) + _outer(moved._mean, step)
        centre = step.shape[1] // 2
        added = torch.outer(step.flatten(), self._mean[:, centre]) + torch.outer(moved._mean.flatten(), step[:, centre])
        moved._crossed = self._crossed + added.to(self._crossed.dtype)
        return moved

    @property
    def _reference(self) -> Tensor:
        assert self._about is not None, "there is some position"
        return self._about

    def _of_nothing(self, n: int, area: int) -> PairMoments:
        """No positions, in the shapes of other processes' sums."""
        empty = PairMoments()
        empty._about = empty._mean = torch.zeros(n, area, dtype=torch.float64)
        empty._inner = torch.zeros(n, area, area, dtype=torch.float64)
        empty._crossed = torch.zeros(n * area, n, dtype=precision(n * area))
        return empty

    def plus(self, other: PairMoments) -> PairMoments:
        """The sums of both."""
        both, other = PairMoments(), other.around(self._reference)
        both._about, both.count = self._about, self.count + other.count
        both._mean, both._inner = self._mean + other._mean, self._inner + other._inner
        both._crossed = self._crossed + other._crossed
        return both

    @property
    def variances(self) -> Tensor:
        """Of each map, (n,)."""
        centre = self._inner.shape[1] // 2
        return self._inner[:, centre, centre] / self.count - (self._mean[:, centre] / self.count).square()

    def errors(self) -> Tensor:
        """e (n, n): of map j as the best filter of map i, mean squared; zero where i is j."""
        n, area = self._mean.shape
        variances, found = self.variances, []
        for rows in torch.arange(n, device=variances.device).split(max(1, _ROWS // (area * n))):
            c = self._with_all(rows)
            # R_i is the same for every j, so one inverse of d² x d² serves all n filters that are compared.
            taps = torch.linalg.inv(self._within(rows)).to(c.dtype) @ c
            errors = (variances - c.mul_(taps).sum(1)).clamp_min(0)
            # A map makes itself without error; what was added to R_i would say otherwise.
            errors[torch.arange(len(rows)), rows] = 0
            found.append(errors)
        return torch.cat(found)

    def correlations(self) -> Tensor:
        """Of every two maps as they are, (n, n); zero where a map does not vary."""
        area = self._mean.shape[1]
        mean = self._mean[:, area // 2] / self.count
        # Rows lie map by map, d² of each: every d²-th one from the centre on is a map as it is.
        covariances = self._crossed[area // 2 :: area].double() / self.count - mean[:, None] * mean
        scale = self.variances.clamp_min(0).sqrt()
        scale = torch.where(scale > 0, 1 / scale, 0.0)
        return scale[:, None] * covariances * scale

    def filters(self, sources: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """The best filters (k, d²) of maps ``sources`` (k,) for maps ``made`` (k,), and their errors (k,)."""
        n, area = self._mean.shape
        mean = self._mean / self.count
        # Indices on both sides of a slice go in pairs, and the pairs come first: (k, d²).
        crossed = self._crossed.unflatten(0, (n, area))[sources, :, made].double() / self.count
        c = crossed - mean[sources] * mean[made, area // 2][:, None]
        taps = torch.linalg.solve(self._within(sources), c)
        return taps, (self.variances[made] - (c * taps).sum(1)).clamp_min(0)

    def _with_all(self, rows: Tensor) -> Tensor:
        """c_ij of maps i in ``rows`` with all maps, (r, d², n), as precise as the sums are."""
        n, area = self._mean.shape
        mean = (self._mean / self.count).to(self._crossed.dtype)
        crossed = self._crossed.unflatten(0, (n, area))[rows] / self.count
        return crossed.sub_(mean[rows][:, :, None] * mean[:, area // 2])

    def _within(self, rows: Tensor) -> Tensor:
        """R_i of maps i in ``rows``, (r, d², d²)."""
        mean = self._mean[rows] / self.count
        r = self._inner[rows] / self.count - mean[:, :, None] * mean[:, None]
        load = _LOAD[self._crossed.dtype] * r.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        return r + load[:, None, None] * torch.eye(r.shape[1], dtype=r.dtype, device=r.device)


def _outer(one: Tensor, other: Tensor) -> Tensor:
    """(n, a) and (n, b) → (n, a, b), map by map."""
    return one[:, :, None] * other[:, None]
