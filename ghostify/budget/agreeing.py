"""How many answers change where a network's class scores move by so much: from harm to agreement, and back.

    z' = z + σ·ε,  ε_k ~ N(0, std z_k)        σ → (E KL(z ‖ z'), share of images with argmax z' = argmax z)

Errors of a fitted network look much like noise to the scores, so the curve of the original's own scores tells about
what to expect; what a fitted network is measured to do then moves the curve (``Curve.through``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ghostify.budget.solving import Vector

_SIGMAS = np.geomspace(0.01, 3.0, 40)
_DRAWS = 4
"""Of noise for each σ: a few make up for a few images."""


@dataclass(frozen=True)
class Curve:
    """Shares of images that keep their answer, by harm."""

    harms: Vector
    """Increasing, from 0."""
    shares: Vector
    """Decreasing, from 1."""
    factor: float = 1.0
    """By how much more answers change than the curve says."""

    @classmethod
    def of(cls, scores: Tensor) -> Curve:
        """The curve of the original's scores (N, k) on images held out."""
        scores = scores.double()
        generator = torch.Generator().manual_seed(0)
        found = [(0.0, 1.0), *(_with_noise(scores, float(sigma), generator) for sigma in _SIGMAS)]
        harms, shares = np.array(found).T
        return cls(np.maximum.accumulate(harms), np.minimum.accumulate(shares))

    def share(self, harm: float) -> float:
        """The share of images that keep their answer at a harm."""
        return 1 - min(1.0, self.factor * (1 - float(np.interp(harm, self.harms, self.shares))))

    def harm(self, share: float) -> float:
        """The most harm at which such a share keeps its answer."""
        wanted = 1 - (1 - share) / self.factor
        return float(np.interp(-wanted, -self.shares, self.harms))

    def through(self, harm: float, share: float) -> Curve:
        """The curve moved to what was measured."""
        expected = 1 - float(np.interp(harm, self.harms, self.shares))
        return replace(self, factor=(1 - share) / expected) if expected > 0 and share < 1 else self


def _with_noise(scores: Tensor, sigma: float, generator: torch.Generator) -> tuple[float, float]:
    """KL and agreement of scores with noise in them, means over draws."""
    p = scores.log_softmax(1)
    spread = sigma * scores.std(0, keepdim=True)
    moved = [
        scores + spread * torch.randn(scores.shape, generator=generator, dtype=scores.dtype) for _ in range(_DRAWS)
    ]
    divergences = [(p.exp() * (p - other.log_softmax(1))).sum(1).mean() for other in moved]
    agreeing = [(other.argmax(1) == scores.argmax(1)).double().mean() for other in moved]
    return float(torch.stack(divergences).mean()), float(torch.stack(agreeing).mean())
