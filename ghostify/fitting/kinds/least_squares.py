"""A linear map from features of what a layer reads to its targets, by least squares, whatever it is made of.

    W = argmin Σ ‖t − W u − b‖² + ρ s̄ ‖W − W₀‖²      u: features of what the converted network gives there
                                                     t: ``targets``;  W₀: the weights it begins with

Where features are the responses of known filters (``features``), more of these are taken as long as errors held out
fall by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostify.fitting.kinds.features import Features
from ghostify.fitting.kinds.targets import Targets
from ghostify.ghosts.narrowing import Conv
from ghostify.leastsquares.moments import Moments, Normal, Solution, precision, solve, within
from ghostify.leastsquares.sampling import Block
from ghostify.leastsquares.standardised import give, reach, standardises

Rows = Callable[[Block], tuple[Tensor, Tensor]]
"""Features (N, g, D) and targets (N, g, n) of a block."""
ROUNDS = 3
"""How often targets behind a rectifier are renewed."""
_WORTH = 0.95
"""Known filters stay more where the error held out fell to this share of what it was."""


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer as (g, n/g, D), in float64."""
    assert isinstance(layer, Conv | nn.Linear)
    groups = layer.groups if isinstance(layer, Conv) else 1
    return layer.weight.detach().double().flatten(1).unflatten(0, (groups, -1))


def put(layer: nn.Module, weight: Tensor) -> None:
    """Let a layer have the filters (g, n/g, D), such as it can have."""
    assert isinstance(layer, Conv | nn.Linear)
    if isinstance(layer, Conv) and standardises(layer):
        give(layer, weight.flatten(0, 1))
        return
    with torch.no_grad():
        layer.weight.copy_(weight.flatten(0, 1).reshape(layer.weight.shape))


class Sums(ABC):
    """Features and targets of a linear map at sampled positions, and their moments by place."""

    start: Tensor
    """The weights it begins with, (g, n/g, D)."""
    constant: bool

    def __init__(self, targets: Targets, places: Sequence[int]) -> None:
        """``places``: by call, which of the intercepts is its own."""
        self.targets, self.places = targets, places

    @abstractmethod
    def read(self, block: Block) -> Tensor:
        """The features at a block's positions, (N, g, D)."""

    @abstractmethod
    def fit(self) -> float:
        """Fit the map in place; the strength of the ridge."""

    def grouped(self, values: Tensor) -> Tensor:
        """Values by output (…, n) as those of the targets, by group: (…, g, n/g)."""
        return values.unflatten(-1, self.start.shape[:2])

    def wanted(self, block: Block) -> Tensor:
        """The targets of a block, (N, g, n/g)."""
        return self.grouped(self.targets.outputs(block))

    def crossed(self) -> list[Moments]:
        """The moments of renewed targets with the same features, by place."""
        return self.summed(self.targets.samples.blocks, self.rows, squares=False)

    def rows(self, block: Block) -> tuple[Tensor, Tensor]:
        """Features and targets of a block."""
        return self.read(block), self.wanted(block)

    def intercepts_of(self, moments: Sequence[Moments], weight: Tensor) -> list[Tensor] | None:
        """The intercept (g, n/g) of each place, from the moments there."""
        return [one.intercept(weight) for one in moments] if self.constant else None

    def given(self, block: Block, weight: Tensor, biases: Sequence[Tensor] | None) -> Tensor:
        """What weights and intercepts give for a block, (N, g, n/g)."""
        y = times(weight, self.read(block))
        return y if biases is None else y + biases[self.places[block.call]]

    def alive(self, weight: Tensor) -> Tensor:
        """With the weights it began with where a norm silences the output, so that training may wake it up."""
        return torch.where(self.grouped(self.targets.alive)[:, :, None], weight, self.start)

    def sides(self) -> tuple[list[Block], list[Block]]:
        """The blocks that the fit is made of, and those that are held out."""
        held = [block for block in self.targets.samples.blocks if self.targets.is_held(block)]
        return [block for block in self.targets.samples.blocks if block not in held], held

    def summed(self, blocks: Iterable[Block], rows: Rows, squares: bool = True) -> list[Moments]:
        """The moments of features and targets of blocks, by place."""
        found = [Moments(squares) for _ in range(max(self.places) + 1)]
        for block in blocks:
            found[self.places[block.call]].add(*rows(block))
        return [one.reduced() for one in found]


class LeastSquares(Sums):
    """A linear map from rows of features to targets, whatever it is made of."""

    @abstractmethod
    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        """Put weights (g, n/g, D) and intercepts (g, n/g) by place where they belong."""

    def fit(self) -> float:
        """Fit the map in place; the strength of the ridge."""
        found, moments = self.solved()
        weight = self.attainable(found.weight, found.normal.s, within(moments).crossed(self.constant))
        biases = self.intercepts_of(moments, weight)
        normal = self.renewing(found)
        if normal is not None and self.targets.rectified:
            for _ in range(ROUNDS):
                for block in self.targets.samples.blocks:
                    self.targets.bend(block, self.given(block, weight, biases).flatten(1))
                # What is read stays the same, so S and its factor do: only C is summed anew.
                renewed = self.crossed()
                c = within(renewed).crossed(self.constant)
                weight = self.attainable(normal.solve(c), normal.s, c)
                biases = self.intercepts_of(renewed, weight)
        self.write(weight, biases)
        return found.ridge

    def attainable(self, weight: Tensor, s: Tensor, c: Tensor) -> Tensor:
        """Of weights that can be had, those nearest to a solution; ``s``: covariances of features, ``c``: of targets
        with these."""
        return self.alive(weight)

    def renewing(self, found: Solution) -> Normal | None:
        """What renewed targets are solved with; None where the weights it began with did best and stay."""
        return found.normal if found.ridge < float("inf") else None

    def solved(self) -> tuple[Solution, list[Moments]]:
        """The least squares of the targets as they are, and the moments of everything by place."""
        seen, held = self._moments()
        weights = self.grouped(self.targets.weights)
        found = solve(within(seen), within(held), self.start, weights=weights, constant=self.constant)
        if len(seen) == 1:
            return found, [found.moments]
        return found, [one.plus(other) for one, other in zip(seen, held, strict=True)]

    def _moments(self) -> tuple[list[Moments], list[Moments]]:
        """By place, of what the fit is made of and of what is held out."""
        seen, held = self.sides()
        return self.summed(seen, self.rows), self.summed(held, self.rows)


class FiltersFit(LeastSquares):
    """Filters of a layer: any, or combinations of known ones, of which there are more where that does better."""

    basis: Features

    def read(self, block: Block) -> Tensor:
        return self.basis.of(block)

    def solved(self) -> tuple[Solution, list[Moments]]:
        best, moments = super().solved()
        for _ in range(self.basis.growths):
            before = self.basis, self.start
            self._grow(best, moments)
            grown, those = super().solved()
            if not grown.error < _WORTH * best.error:
                self.basis, self.start = before
                break
            best, moments = grown, those
        return best, moments

    def reached(self, weight: Tensor) -> Tensor:
        """Maps of the features (g, n, D) in the nearest scale in which the layer can have them as its filters."""
        layer = self.basis.layers[0]
        if not self.basis.centred:
            return weight
        return weight * reach(layer, self.basis.filters(weight).flatten(0, 1)).reshape(*weight.shape[:2], 1)

    def _grow(self, found: Solution, moments: Sequence[Moments]) -> None:
        """Let known filters be more, by what a solution misses."""
        biases = self.intercepts_of(moments, found.weight)

        def missed(block: Block) -> Tensor:
            return self.wanted(block) - self.given(block, found.weight, biases)

        each = self.start.shape[1]
        seen, _ = self.sides()  # what is held out judges the filters, so they are not made of it
        self.basis = self.basis.grown(missed, seen, each)
        self.start = F.pad(self.start, (0, each))


def times(weight: Tensor, u: Tensor) -> Tensor:
    """(g, n, D) and (N, g, D) → (N, g, n), as precise as moments of so many features are."""
    kind = precision(u.shape[2])
    return (u.transpose(0, 1).to(kind) @ weight.mT.to(kind)).transpose(0, 1).double()
