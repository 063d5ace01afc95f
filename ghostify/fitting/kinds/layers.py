"""Fitting a convolution or linear layer as it is: one that was thinned, or one that reads what a ghost gives.

    W = argmin Σ ‖t − W u − b‖² + ρ s̄ ‖W − W₀‖²      u: patches of what the converted network gives the layer
                                                     t: ``targets``;  W₀: the trained weights

A layer that is called more than once is fitted to all its calls at once.  Its intercepts go where ``intercepts`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from ghostify.fitting.kinds.intercepts import Intercepts
from ghostify.fitting.kinds.targets import Targets
from ghostify.ghosts.narrowing import Conv
from ghostify.leastsquares.moments import Moments, precision, solve, within
from ghostify.leastsquares.sampling import Block

Input = Callable[[Block], Tensor]
"""What a layer reads of each block."""
ROUNDS = 3
"""How often targets behind a rectifier are renewed."""
_KEPT = 2**26
"""Numbers that are kept of one function of batches."""


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer as (g, n/g, D), in float64."""
    assert isinstance(layer, Conv | nn.Linear)
    groups = layer.groups if isinstance(layer, Conv) else 1
    return layer.weight.detach().double().flatten(1).unflatten(0, (groups, -1))


def put(layer: nn.Module, weight: Tensor) -> None:
    """Write a weight (g, n/g, D) into a layer."""
    assert isinstance(layer, Conv | nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(weight.flatten(0, 1).reshape(layer.weight.shape))


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
        """Let go of the values, for the function is another now."""
        self._values.clear()
        self._size = 0


class LeastSquares:
    """A linear map from rows of features to targets, whatever it is made of."""

    start: Tensor
    """The weights it begins with, (g, n/g, D)."""
    constant: bool

    def __init__(self, targets: Targets, places: Sequence[int]) -> None:
        """``places``: by call, which of the intercepts is its own."""
        self.targets, self.places = targets, places
        self._read = Kept()

    def features(self, block: Block) -> Tensor:
        """What the map reads at the positions: (N, g, D)."""
        raise NotImplementedError

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        """Put weights (g, n/g, D) and intercepts (g, n/g) where they belong."""
        raise NotImplementedError

    def fit(self) -> float:
        """Fit the map in place; the strength of the ridge."""
        weights = self.targets.weights.unflatten(0, self.start.shape[:2])
        moments = self._moments()
        seen, held = (within(side) for side in moments)
        found = solve(seen, held, self.start, weights=weights, constant=self.constant)
        weight = self._alive(found.weight)
        alone = len(moments[0]) == 1
        everything = [found.moments] if alone else [one.plus(other) for one, other in zip(*moments, strict=True)]
        biases = self._intercepts(everything, found.weight)
        if found.ridge < float("inf") and self.targets.rectified:
            for _ in range(ROUNDS):
                crossed = self._renewed(weight, biases)
                weight = self._alive(found.normal.solve(within(crossed).crossed(self.constant)))
                biases = self._intercepts(crossed, weight)
        self.write(weight, biases)
        return found.ridge

    def _intercepts(self, moments: Sequence[Moments], weight: Tensor) -> list[Tensor] | None:
        """The intercept (g, n/g) of each place, from the moments there."""
        return [one.intercept(weight) for one in moments] if self.constant else None

    def _moments(self) -> tuple[list[Moments], list[Moments]]:
        """By place, of what the fit is made of and of what is held out."""
        seen, held = ([Moments() for _ in range(max(self.places) + 1)] for _ in range(2))
        for block in self.targets.samples.blocks:
            side = held if self.targets.is_held(block) else seen
            side[self.places[block.call]].add(self._read.of(block, self.features), self._wanted(block))
        return [one.reduced() for one in seen], [one.reduced() for one in held]

    def _wanted(self, block: Block) -> Tensor:
        return self.targets.outputs(block).unflatten(1, self.start.shape[:2])

    def _renewed(self, weight: Tensor, biases: Sequence[Tensor] | None) -> list[Moments]:
        """The moments by place, with targets renewed by what ``weight`` and ``biases`` give."""
        crossed = [Moments(squares=False) for _ in range(max(self.places) + 1)]
        for block in self.targets.samples.blocks:
            u, place = self._read.of(block, self.features), self.places[block.call]
            y = times(weight, u)
            self.targets.bend(block, (y if biases is None else y + biases[place]).flatten(1))
            crossed[place].add(u, self._wanted(block))
        return [one.reduced() for one in crossed]

    def _alive(self, weight: Tensor) -> Tensor:
        """With the weights it began with where a norm silences the output, so that training may wake it up."""
        alive = self.targets.alive.unflatten(0, self.start.shape[:2])[:, :, None]
        return torch.where(alive, weight, self.start)


class LayerFit(LeastSquares):
    """A convolution or linear layer, or several that share one weight."""

    def __init__(self, layers: Sequence[nn.Module], inputs: Input, targets: Targets) -> None:
        """``layers``: what each call calls."""
        self.intercepts = Intercepts(layers, targets.takers)
        super().__init__(targets, self.intercepts.of)
        self.layers, self.inputs = layers, inputs
        self.start = weight_of(layers[0])
        self.constant = self.intercepts.there

    def features(self, block: Block) -> Tensor:
        return self.targets.samples.patches(self.inputs(block), self.layers[block.call], block)

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        put(self.layers[0], weight)
        if biases is not None:
            self.intercepts.put([bias.flatten() for bias in biases])
            self.targets.refresh()

    def outputs(self, block: Block) -> Tensor:
        """What the layer as it is gives at the positions: (N, n)."""
        layer = self.layers[block.call]
        y = times(weight_of(layer), self._read.of(block, self.features)).flatten(1)
        bias = getattr(layer, "bias", None)
        return y if bias is None else y + bias.detach()


def times(weight: Tensor, u: Tensor) -> Tensor:
    """(g, n, D) and (N, g, D) → (N, g, n), as precise as moments of so many features are."""
    kind = precision(u.shape[2])
    return (u.transpose(0, 1).to(kind) @ weight.mT.to(kind)).transpose(0, 1).double()


def error(targets: Targets, outputs: Callable[[Block], Tensor], blocks: Sequence[Block]) -> float | None:
    """Mean squared error behind the rectifier over the variance there, on some blocks; None without any."""
    if not blocks:
        return None
    missed = fmean(targets.error(block, outputs(block)) for block in blocks)
    return missed / targets.variance if targets.variance > 0 else float(missed > 0)
