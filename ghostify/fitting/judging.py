"""How far the outputs of a network are from those of another, as a share of how much these vary.

    error = Σ (ŷ − y)² / Σ σ²      over all numbers of the outputs; σ²: the variance of y over images, a mean by output

A masked score is minus infinity in both networks, and no difference: where y is not finite, ŷ must be the same.  A
number that is finite in one network alone is wholly missed, which counts as σ².
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.batches import Batch, call, count
from ghostify.fitting.interpreter import Interpreter
from ghostify.tracing import Traced, cloned

_VARYING = 64
"""Images over which outputs vary: those judged, and of others as many as are missing."""
_KEPT = 2**24
"""Numbers of the original's outputs that are kept."""
_CONSTANT = 1e-12
"""A variance below this share of the mean square is that of rounding."""


class Judge:
    """Measures networks by what the original gives for images that nothing is fitted to."""

    def __init__(self, traced: Traced, original: nn.Module, batches: Sequence[Batch], judged: int) -> None:
        """The last ``judged`` of ``batches`` measure the error, and some more the variance."""
        self.traced, self.original = traced, original
        self.judging = batches[len(batches) - judged :]
        self._known = dict[int, list[Tensor]]()
        wanted = max(judged, -(-_VARYING // count(batches[0])))
        others = batches[len(batches) - wanted : len(batches) - judged]
        self._variances = self._varying(others) if judged else []

    def error(self, traced: Traced, module: nn.Module) -> float | None:
        """What is missed of the outputs' variance; None where there is nothing to judge by."""
        if not self.judging:
            return None
        wrong = total = 0.0
        for index, batch in enumerate(self.judging):
            pairs = zip(outputs(traced, module, batch), self._wanted(index), strict=True)
            for variance, (found, wanted) in zip(self._variances, pairs, strict=True):
                missed, compared = squared_difference(found, wanted, variance)
                wrong, total = wrong + float(missed.sum()), total + variance * float(compared.sum())
        return wrong / total if total else float(wrong > 0)

    def _wanted(self, index: int) -> list[Tensor]:
        """What the original gives for a batch to judge by: kept, for it is compared twice, unless it is very large."""
        if index in self._known:
            return self._known[index]
        given = outputs(self.traced, self.original, self.judging[index])
        if len(self.judging) * sum(y.numel() for y in given) <= _KEPT:
            self._known[index] = given
        return given

    def _varying(self, others: Sequence[Batch]) -> list[float]:
        """Of each output its variance over the batches to judge by and ``others``."""
        found: list[Varying] = []
        seen = (outputs(self.traced, self.original, batch) for batch in others)
        for given in chain(seen, map(self._wanted, range(len(self.judging)))):
            found = found or [Varying() for _ in given]
            for one, y in zip(found, given, strict=True):
                one.add(y)
        return [one.variance for one in found]


def squared_difference(found: Tensor, wanted: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """By number, its squared difference, and whether it is compared at all: what is not finite in either is not."""
    found, wanted = real(found), real(wanted)
    both = found.isfinite() & wanted.isfinite()
    same = ~both & ((found == wanted) | (found.isnan() & wanted.isnan()))
    missed = torch.where(both, (found - wanted).square(), variance)
    return torch.where(same, 0.0, missed), ~same


def outputs(traced: Traced, module: nn.Module, batch: Batch) -> list[Tensor]:
    """The tensors that a recorded network in eval mode gives for a batch."""
    walk = Interpreter(traced, module, [batch])
    for node in walk.outputs:
        walk.keep(node)
    walk.advance(len(walk.nodes))
    return [walk.values[0][node] for node in walk.outputs]


def called(module: nn.Module, batch: Batch) -> list[Tensor]:
    """The same of a network that is called: a copy's, it may be, for a network may write into what it is given."""
    return [leaf for leaf in tree_leaves(call(module, cloned(batch))) if isinstance(leaf, Tensor)]


def real(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in float64, those of a complex one apart."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


class Varying:
    """Mean and variance over images of each number of an output, of where it is finite."""

    def __init__(self) -> None:
        self.count = self.mean = self.sum = torch.zeros((), dtype=torch.float64)

    def add(self, y: Tensor) -> None:
        """Take a batch in, (B, …)."""
        y = real(y)[None] if y.dim() == 0 else real(y)
        # Welford's update, number by number, for each may be finite in other images.
        for one in y:
            finite = one.isfinite()
            step = torch.where(finite, one - self.mean, 0.0)
            self.count = self.count + finite
            self.mean = self.mean + step / self.count.clamp_min(1)
            self.sum = self.sum + step * torch.where(finite, one - self.mean, 0.0)

    @property
    def variance(self) -> float:
        """Over images; of an output that does not vary, its mean square, and 1 where nothing is finite."""
        freedom = float((self.count - 1).clamp_min(0).sum())
        variance = float(self.sum.sum()) / freedom if freedom else 0.0
        there = self.count > 0
        square = float(self.mean[there].square().mean()) if there.any() else 1.0
        return variance if variance > _CONSTANT * square else square
