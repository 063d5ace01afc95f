"""What least squares reads of a layer's inputs: all that a filter reads, or what some known filters give.

    patches      u           (N, g, D)    any filters W are found, of D unknowns each
    responses    v = V ∗ x   (N, g, r)    combinations of r known filters a group: W = B V, r unknowns each

Covariances of patches are D x D, and a filter of 1,024 maps and 64 x 1 pixels has 65,536 unknowns.  Those of responses
are r x r, however wide filters are.  V begins with the trained filters, so that this is the least squares of the
targets on what these give for the *converted* network's inputs (asymmetric response reconstruction: Zhang, Zou, He and
Sun 2015).  It grows by the directions in which errors fall fastest, those of the covariance of what is missed with what
is read, as a block Krylov method's basis does:

    V ← [V; cov(t − B v, u)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ghostify.leastsquares.sampling import Block, Samples, convolved

Input = Callable[[Block], Tensor]
"""What a layer reads of each block."""
Missed = Callable[[Block], Tensor]
"""What is missed of each block's targets: (N, g, n)."""
FULL = 2**10
"""The most numbers that a filter reads of which all are unknowns, where known filters are fewer."""
GROWN = 2
"""By how much the known filters grow where errors fall by it: to so many times the trained ones."""
_NOTHING = 1e-30
"""A norm to stand for zero, by which one can still divide."""


def unknowns(read: int, filters: int) -> int:
    """Unknowns of one filter that reads so many numbers, where there are so many trained filters in its group."""
    return filters * GROWN if read > FULL and 2 * filters * GROWN <= read else read


class Features:
    """Features of a layer's inputs, by block."""

    def __init__(self, layers: Sequence[Any], inputs: Input, samples: Samples, known: Tensor, spanned: bool) -> None:
        """``layers``: what each call calls, with one weight; ``known`` (g, r, D): filters of which combinations are looked for, if
        ``spanned``."""
        self.layers, self.inputs, self.samples, self.known, self.spanned = layers, inputs, samples, known, spanned

    @staticmethod
    def of_layers(layers: Sequence[Any], inputs: Input, samples: Samples, trained: Tensor) -> Features:
        """Those of layers with trained filters (g, r, D), by how many numbers these read."""
        _, filters, read = trained.shape
        return Features(layers, inputs, samples, trained, unknowns(read, filters) < read)

    def of(self, block: Block) -> Tensor:
        """(N, g, D) or (N, g, r)."""
        if not self.spanned:
            return self.samples.patches(self.inputs(block), self.layers[block.call], block)
        return self._responses(block, self._shaped(self.known))

    @property
    def start(self) -> Tensor:
        """The known filters as maps of the features: (g, r, D) or (g, r, r)."""
        if not self.spanned:
            return self.known
        groups, filters, _ = self.known.shape
        return torch.eye(filters, dtype=self.known.dtype, device=self.known.device).repeat(groups, 1, 1)

    def filters(self, weight: Tensor) -> Tensor:
        """Filters (g, n, D) that do with a layer's inputs what ``weight`` (g, n, features) does with the features."""
        return weight @ self.known if self.spanned else weight

    def grown(self, missed: Missed, blocks: Iterable[Block], targets: int) -> Features:
        """The same with another known filter for each of so many ``targets`` a group, given what is ``missed`` of them.

        The covariance of what is missed with what is read is the gradient of the filters, which a convolution's
        backward pass gives without a patch being cut out.
        """
        with torch.enable_grad():
            filters = self._shaped(torch.zeros_like(self.known[:, :1]).repeat(1, targets, 1)).requires_grad_()
            for block in blocks:
                self._responses(block, filters).backward(missed(block).to(filters.dtype))
        assert filters.grad is not None
        found = filters.grad.double().flatten(1).unflatten(0, (len(self.known), -1))
        # One ridge serves all features, so the new ones are to be about as large as the others.
        size = self.known.norm(dim=2).mean(1)[:, None, None] / found.norm(dim=2, keepdim=True).clamp_min(_NOTHING)
        return Features(self.layers, self.inputs, self.samples, torch.cat([self.known, size * found], 1), spanned=True)

    def _responses(self, block: Block, filters: Tensor) -> Tensor:
        """What filters as a layer has them give at a block's positions: (N, g, r)."""
        given = convolved(self.inputs(block), self.layers[block.call], filters)
        return self.samples.values(given, block).unflatten(1, (len(self.known), -1))

    def _shaped(self, filters: Tensor) -> Tensor:
        """Filters (g, r, D) as a layer has them, (g·r, …)."""
        weight = self.layers[0].weight
        return filters.flatten(0, 1).reshape(-1, *weight.shape[1:]).to(weight.dtype)
