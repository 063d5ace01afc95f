"""Fitting a convolution or linear layer as it is: one that was thinned, or one that reads what a ghost gives.

    W = argmin Σ ‖t − W u − b‖² + ρ s̄ ‖W − W₀‖²      (``least_squares``), W₀: the trained weights

A layer that is called more than once is fitted to all its calls at once.  Its intercepts go where ``intercepts`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ghostify.fitting.kinds.features import Features, Input
from ghostify.fitting.kinds.intercepts import Intercepts
from ghostify.fitting.kinds.least_squares import FiltersFit, put, weight_of
from ghostify.fitting.kinds.targets import Targets
from ghostify.leastsquares.sampling import Block
from ghostify.processes import present


class LayerFit(FiltersFit):
    """A convolution or linear layer, or several that share one weight."""

    def __init__(self, layers: Sequence[nn.Module], inputs: Input, targets: Targets) -> None:
        """``layers``: what each call calls."""
        self.intercepts = Intercepts(layers, targets.takers)
        super().__init__(targets, self.intercepts.of)
        self.layers = layers
        self.basis = Features(layers, inputs, targets.samples, weight_of(layers[0]))
        self.start = self.weight = self.basis.start
        self.constant = self.intercepts.there

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        self.weight = weight
        put(self.layers[0], self.basis.filters(weight))
        if biases is not None:
            self.intercepts.put([bias.flatten() for bias in biases])
            self.targets.refresh()

    def outputs(self, block: Block) -> Tensor:
        """What the layer as it is gives at the positions: (N, n)."""
        y = self.given(block, self.weight, None).flatten(1)
        # An intercept that a norm has taken in is in the targets already, and not in what the layer gives.
        bias = getattr(self.layers[block.call], "bias", None)
        return y if bias is None else y + bias.detach()


def error(targets: Targets, outputs: Callable[[Block], Tensor], blocks: Sequence[Block]) -> float | None:
    """Mean squared error behind the rectifier over the variance there, on some blocks of each process; None without."""
    missed = sum(targets.error(block, outputs(block)) for block in blocks)
    total, count = present().total([missed, len(blocks)])
    if not count:
        return None
    missed = total / count
    # Where nothing varies there are no shares: it is right, or wholly wrong.
    return missed / targets.variance if targets.variance > 0 else float(missed > 0)
