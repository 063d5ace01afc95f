"""How far a changed network's outputs are from the original's: the harm, in the unit that a network's outputs have.

    KL      E Σ_k p_k (log p_k − log q_k)      p, q: softmax of the original's and the changed network's scores
    error   Σ (ŷ − y)² / Σ σ²                  over all numbers of all outputs, as a fit is judged (``judging``)

    unsure  E KL(z ‖ z + σ·ε),  σ = 0.3 std z  of the original's own scores z      1 where there are none

Scores are the one output (N, k ≥ 2) of a network whose classifier gives it.  Anything else (several outputs, maps,
single numbers) has no distribution to be compared by.

The same error of scores is more of a divergence on images of which the network is unsure, and in some hundred images
there are by chance more or fewer of them: between two draws of 256, all harms of a network differ by a third.  How
unsure the network is of them tells by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ghostify.fitting.judging import Varying, squared_difference

_SIGMA, _DRAWS = 0.3, 8
"""Of the noise that tells how unsure a network is, in deviations of its scores: about that of networks one wants."""

Unit = Literal["KL", "error"]
Outputs = Sequence[Sequence[Tensor]]
"""By batch, the tensors that a network gives."""


class Judge:
    """What the original gives for the images held out."""

    def __init__(self, wanted: Outputs, scores: bool) -> None:
        """``scores``: whether the network's last layer is a classifier, and what it gives may be compared as such."""
        self.wanted = wanted
        first = wanted[0]
        one = len(first) == 1 and first[0].dim() == 2 and first[0].shape[1] > 1
        self.unit: Unit = "KL" if scores and one and first[0].is_floating_point() else "error"
        self._variances = _variances(wanted) if self.unit == "error" else []

    def harm(self, found: Outputs) -> float:
        """How far from the original's these outputs are: 0 where they are equal."""
        return self._divergence(found) if self.unit == "KL" else self._error(found)

    @cached_property
    def unsure(self) -> float:
        """What some noise does to these outputs: by it, harms on other images can be compared with those on these."""
        if self.unit == "error":
            return 1.0
        generator = torch.Generator().manual_seed(0)
        deviation = torch.cat([scores for (scores,) in self.wanted]).std(0)
        draws = [self._divergence(self._with_noise(_SIGMA * deviation, generator)) for _ in range(_DRAWS)]
        return sum(draws) / _DRAWS

    def _with_noise(self, deviation: Tensor, generator: torch.Generator) -> Outputs:
        noise = [torch.randn(scores.shape, generator=generator).to(scores) for (scores,) in self.wanted]
        return [[scores + deviation * own] for (scores,), own in zip(self.wanted, noise, strict=True)]

    def _divergence(self, found: Outputs) -> float:
        total, images = 0.0, 0
        for (one,), (other,) in zip(found, self.wanted, strict=True):
            q, p = one.double().log_softmax(1), other.double().log_softmax(1)
            # A class that is masked in both has −∞ − −∞ here, and no probability.
            total += float((p.exp() * (p - q)).nan_to_num(nan=0.0).sum())
            images += len(one)
        return max(0.0, total / images)

    def _error(self, found: Outputs) -> float:
        wrong = total = 0.0
        for given, wanted in zip(found, self.wanted, strict=True):
            for one, other, variance in zip(given, wanted, self._variances, strict=True):
                missed, compared = squared_difference(one, other, variance)
                wrong, total = wrong + float(missed.sum()), total + variance * float(compared.sum())
        return wrong / total if total else float(wrong > 0)


def _variances(outputs: Outputs) -> list[float]:
    """Of each output over images, a mean over its numbers."""
    found = [Varying() for _ in outputs[0]]
    for given in outputs:
        for one, y in zip(found, given, strict=True):
            one.add(y)
    return [one.variance for one in found]
