"""How far a changed network's outputs are from the original's: the harm, in the unit that a network's outputs have.

    KL      E Σ_k p_k (log p_k − log q_k)      p, q: softmax of the original's and the changed network's scores
    error   Σ (ŷ − y)² / Σ σ²                  over all numbers of all outputs, as a fit is judged (``judging``)

Scores are the one output (N, k ≥ 2) of a network whose classifier gives it.  Anything else (several outputs, maps,
single numbers) has no distribution to be compared by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ghostify.fitting.judging import Varying, squared_difference

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
