"""What least squares reads of a layer's inputs: all that a filter reads, or what some known filters give.

    patches      u           (N, g, D)    any filters W are found, of D unknowns each
    responses    v = V ∗ x   (N, g, r)    combinations of r known filters a group: W = B V, r unknowns each

Covariances of patches are D x D, and a filter of 1,024 maps and 64 x 1 pixels has 65,536 unknowns.  Those of responses
are r x r, however wide filters are.  V begins with the trained filters, so that this is the least squares of the
targets on what these give for the *converted* network's inputs (asymmetric response reconstruction: Zhang, Zou, He and
Sun 2015).  It grows by the directions in which errors fall fastest, those of the covariance of what is missed with what
is read, as a block Krylov method's basis does:

    V ← [V; cov(t − B v, u)]

Where a layer has fewer positions than a filter has unknowns, as of a linear layer on vectors with one an image, what
filters do there depends on their part in the span of what is read alone.  With Q an orthonormal basis of that span,

    span         v = Q u         (N, g, r)    W = W₀ + (B − W₀ Qᵀ) Q, r unknowns each: no more than positions

is the solution among all filters, for the ridge leaves them as trained beyond the span (its kernel form).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ghostify.leastsquares.sampling import Block, Samples, convolved
from ghostify.leastsquares.standardised import standardises
from ghostify.processes import present

Input = Callable[[Block], Tensor]
"""What a layer reads of each block."""
Missed = Callable[[Block], Tensor]
"""What is missed of each block's targets: (N, g, n)."""
FULL = 1536
"""The most numbers that a filter reads of which all are unknowns, whatever filters are known."""
_FEW = 8
"""Filters are known ones' combinations where they read so many times as many numbers as there are of these."""
_GROWTHS, _SHARE = 3, 5
"""How often the known filters grow at most, which is not beyond about one for so many numbers read."""
_KEPT = 2**26
"""Numbers that are kept of one function of blocks."""
_SPANNING = 4096
"""Up to so many positions, their span is taken for features where there are fewer than unknowns."""
_NOTHING = 1e-30
"""A norm to stand for zero, by which one can still divide."""


def unknowns(read: int, filters: int) -> int:
    """Unknowns of one filter that reads so many numbers, where there are so many trained filters in its group."""
    growths = growths_of(read, filters)
    return filters * (1 + growths) if growths else read


def growths_of(read: int, filters: int) -> int:
    """How often known filters may grow, each time by as many; never where a filter is no combination of any."""
    return min(_GROWTHS, read // (_SHARE * filters)) if read > FULL and read >= _FEW * filters else 0


class Kept:
    """Values by block that are kept, unless all of them together would take too much memory.

    It does not hold on to what makes them, which holds on to it: memory in such a circle is given back late.
    """

    def __init__(self) -> None:
        self._values, self._size = dict[Block, Tensor](), 0

    def of(self, block: Block, made: Callable[[Block], Tensor]) -> Tensor:
        """The value of a block, ``made`` now if it is not kept."""
        if block in self._values:
            return self._values[block]
        value = made(block)
        if self._size + value.numel() <= _KEPT:
            self._values[block] = value
            self._size += value.numel()
        return value

    def forget(self) -> None:
        """Let go of the values."""
        self._values.clear()
        self._size = 0


class Features:
    """Features of a layer's inputs, by block."""

    def __init__(self, layers: Sequence[Any], inputs: Input, samples: Samples, trained: Tensor) -> None:
        """``layers``: what each call calls, with one weight; ``trained`` (g, r, D): the filters it begins with."""
        self.layers, self.inputs, self.samples = layers, inputs, samples
        self.centred = standardises(layers[0])
        """Whether filters must have a mean of zero: then they read how numbers differ from their mean."""
        self.trained = trained
        most = min(_SPANNING, unknowns(trained.shape[2], trained.shape[1]) - 1)
        self.spanned = samples.total <= most and not self.centred
        """Whether features are parts in the span of what is read."""
        self.growths = 0 if self.spanned else growths_of(trained.shape[2], trained.shape[1])
        """How often known filters may grow; where never, nor spanned, all that a filter reads is a feature."""
        self.known = self._span() if self.spanned else trained
        self._kept = [(trained, Kept())]
        """The known filters as they came, and what each of them gives."""

    def of(self, block: Block) -> Tensor:
        """(N, g, D) or (N, g, r)."""
        if self.spanned:
            return self._kept[0][1].of(block, self._in_span)
        if not self.growths:
            return self._kept[0][1].of(block, self._patches)
        # Each lot of known filters keeps its own responses: those of before are not convolved again when more come.
        given = [kept.of(block, partial(self._responses, filters=filters)) for filters, kept in self._kept]
        return given[0] if len(given) == 1 else torch.cat(given, 2)

    @property
    def start(self) -> Tensor:
        """The trained filters as maps of the features: (g, r, D) or (g, r, r)."""
        if self.spanned:
            return self.trained @ self.known.mT
        if not self.growths:
            return self.known
        groups, filters, _ = self.known.shape
        # Features are what the trained filters give, so each of these filters is one feature.
        return torch.eye(filters, dtype=self.known.dtype, device=self.known.device).repeat(groups, 1, 1)

    def filters(self, weight: Tensor, rows: Tensor | None = None) -> Tensor:
        """Filters (g, n, D) that do with a layer's inputs what ``weight`` (g, n, features) does with the features.

        ``rows`` (g·n,): the trained filters that these stand for; None for all.
        """
        if self.spanned:
            trained = self.trained
            if rows is not None:
                trained = trained.flatten(0, 1)[rows].unflatten(0, weight.shape[:2])
            return trained.baddbmm(weight - trained @ self.known.mT, self.known)
        return weight @ self.known if self.growths else weight

    def forget(self) -> None:
        """Let go of what is kept of them, for filters stand: whoever asks again has it computed anew."""
        for _, kept in self._kept:
            kept.forget()

    def grown(self, missed: Missed, blocks: Iterable[Block], each: int) -> Features:
        """The same with another known filter for ``each`` of a group's targets, given what is ``missed`` of them."""
        found = self._gradient(missed, blocks, each)
        # One ridge serves all features, so the new ones are to be about as large as the others.
        size = self.known.norm(dim=2).mean(1)[:, None, None] / found.norm(dim=2, keepdim=True).clamp_min(_NOTHING)
        more = copy.copy(self)
        more.known = torch.cat([self.known, size * found], 1)
        more._kept = [*self._kept, (size * found, Kept())]
        return more

    def _gradient(self, missed: Missed, blocks: Iterable[Block], each: int) -> Tensor:
        """The covariance of what is missed with what is read, (g, n, D).

        It is the gradient of the filters, so a convolution's backward pass gives it and no patch need be cut out.
        """
        groups, _, read = self.known.shape
        filters = self._shaped(self.known.new_zeros(groups, each, read)).requires_grad_()
        with torch.enable_grad():
            for block in blocks:
                self._convolved(block, filters).backward(missed(block).to(filters.dtype))
        # A process that has none of the blocks adds zeros.
        own = torch.zeros_like(filters) if filters.grad is None else filters.grad
        found = present().summed(own.double()).flatten(1).unflatten(0, (groups, each))
        return found - found.mean(2, keepdim=True) if self.centred else found

    def _span(self) -> Tensor:
        """An orthonormal basis of all that is read, (g, r, D)."""
        # What judges is in it, too, so that its outputs are those of the filters; no solution goes that way.
        blocks = (*self.samples.blocks, *self.samples.judged)
        groups, _, wide = self.trained.shape
        # One basis for all processes, because moments are summed over them only if they are of the same features.
        own = torch.cat([self.trained.new_zeros(0, groups, wide), *(self._patches(block) for block in blocks)])
        read = present().joined(own, [groups, wide]).double()
        return torch.linalg.qr(read.permute(1, 2, 0)).Q.mT

    def _in_span(self, block: Block) -> Tensor:
        """The parts of what is read along the basis, (N, g, r)."""
        return (self._patches(block).double().transpose(0, 1) @ self.known.mT).transpose(0, 1)

    def _patches(self, block: Block) -> Tensor:
        u = self.samples.patches(self.inputs(block), self.layers[block.call], block)
        return u - u.mean(2, keepdim=True) if self.centred else u

    def _responses(self, block: Block, filters: Tensor) -> Tensor:
        """What filters (g, r, D) give at a block's positions, (N, g, r)."""
        return self._convolved(block, self._shaped(filters))

    def _convolved(self, block: Block, filters: Tensor) -> Tensor:
        """The same of filters as a layer has them."""
        given = convolved(self.inputs(block), self.layers[block.call], filters)
        return self.samples.values(given, block).unflatten(1, (len(self.known), -1))

    def _shaped(self, filters: Tensor) -> Tensor:
        """Filters (g, r, D) as a layer has them, (g·r, …)."""
        weight = self.layers[0].weight
        return filters.flatten(0, 1).reshape(-1, *weight.shape[1:]).to(weight.dtype)
