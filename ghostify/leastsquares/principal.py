"""How much of n outputs the best m linear combinations of them carry: the rank curve, all m from one decomposition.

    y ≈ P_m y        P_m = R⁻¹ U_m U_mᵀ R           U_m: the first m eigenvectors of G = R cov(y) Rᵀ,  Λ = Rᵀ R
    carried(m) = Σ_{i≤m} g_i / Σ_i g_i              g: the eigenvalues of G, largest first

No map of rank m comes nearer to y where an error e of the outputs counts eᵀΛe (Eckart and Young 1936; reduced rank
regression of y on what it was made of, which explains all of it).  Λ may be diagonal, a weight for each output.  So a
layer whose m intrinsic maps make all others by a pointwise convolution, fitted on the inputs that the original reads,
gives exactly P_m y.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

UNWEIGHTED = 1e-12
"""Outputs count at least this share of the one that counts most, because one must divide by it to scale back."""


@dataclass(frozen=True)
class Principal:
    """The principal directions of n outputs, in the metric by which their errors count."""

    variances: Tensor
    """g (n,): along each direction, largest first."""
    directions: Tensor
    """U (n, n): a direction in every column."""
    root: Tensor
    """R (n, n), upper triangular."""

    @staticmethod
    def of(covariance: Tensor, weights: Tensor) -> Principal:
        """Those of a covariance (n, n), where errors count by ``weights``: Λ (n, n), or its diagonal (n,)."""
        return Principal.under(root_of(weights), covariance.double())

    @staticmethod
    def under(root: Tensor, covariance: Tensor) -> Principal:
        """The same where R is known, in the precision of the two."""
        values, vectors = torch.linalg.eigh(root @ covariance @ root.T)
        return Principal(values.flip(0).clamp_min(0), vectors.flip(1), root)

    @cached_property
    def carried(self) -> Tensor:
        """By m = 1 … n, the share of the variance that m combinations carry, (n,); all of it where nothing varies."""
        return _running(self.variances)

    def needed(self, lost: float) -> int:
        """The smallest m that loses no more than a share of the variance."""
        enough = self.carried >= 1 - lost
        enough[-1] = True  # rounding may leave the sum of all shares below one
        return int(enough.int().argmax()) + 1

    def projection(self, m: int) -> Tensor:
        """P_m (n, n): what m combinations leave of the outputs, about their mean."""
        leading = self.directions[:, :m]
        return torch.linalg.solve_triangular(self.root, leading @ (leading.T @ self.root), upper=True)


def carried(covariance: Tensor, weights: Tensor) -> Tensor:
    """The rank curve alone, (n,): without directions, which take most of the time where outputs are many."""
    root = root_of(weights)
    values = torch.linalg.eigvalsh(root @ covariance.double() @ root.T)
    return _running(values.flip(0).clamp_min(0))


def root_of(weights: Tensor) -> Tensor:
    """R (n, n), in float64: outputs times R make the weighted error a plain one, which eigenvectors minimise."""
    return torch.linalg.cholesky(metric_of(weights, UNWEIGHTED), upper=True)


def _running(variances: Tensor) -> Tensor:
    """By m, the share of all variances that the first m make up; all of it where nothing varies."""
    total = variances.sum()
    return (variances.cumsum(0) / total).clamp_max(1) if total > 0 else torch.ones_like(variances)


def metric_of(weights: Tensor, least: float) -> Tensor:
    """Λ (n, n), of which weights (n,) are the diagonal, none less than so large a share of the largest."""
    return weights.double() if weights.dim() == 2 else torch.diag(shares(weights, least))


def shares(weights: Tensor, least: float) -> Tensor:
    """Weights in shares of the largest, and no less than so much of it; all alike where none counts."""
    weights = weights.double()
    return (weights / weights.max()).clamp_min(least) if weights.max() > 0 else torch.ones_like(weights)
