"""Fitting a convolution or linear layer as it is: one that was thinned, or one that reads what a ghost gives.

    W = argmin Σ ‖t − W u − b‖² + ρ s̄ ‖W − W₀‖²      u: patches of what the converted network gives the layer
                                                     t: ``targets``;  W₀: the trained weights

An intercept goes into the layer's bias or, where it has none, into the mean of the norm that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn

from ghostify.fitting.moments import Moments, precision, solve
from ghostify.fitting.targets import Pair, Targets
from ghostify.ghosts.narrowing import Conv

Input = Callable[[int], Tensor]
"""What a layer reads of each batch."""
ROUNDS = 3
"""How often targets behind a rectifier are renewed."""
_KEPT = 2**26
"""Numbers that are kept of one function of batches."""
MOST = 2**13
"""Unknowns of one filter that are solved for: the covariances of D of them take 8·D² bytes, several times over."""


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a convolution or linear layer as (g, n/g, D), in float64."""
    assert isinstance(layer, Conv | nn.Linear)
    groups = layer.groups if isinstance(layer, Conv) else 1
    return layer.weight.detach().double().flatten(1).unflatten(0, (groups, -1))


def too_wide(layer: nn.Module) -> bool:
    """Whether the filters of a convolution or linear layer have more unknowns than are solved for."""
    assert isinstance(layer, Conv | nn.Linear)
    return layer.weight[0].numel() > MOST


def has_constant(layer: nn.Module, norm: nn.Module | None) -> bool:
    """Whether an intercept has a place to go to."""
    return getattr(layer, "bias", None) is not None or norm is not None


def put(layer: nn.Module, weight: Tensor, bias: Tensor | None, norm: nn.Module | None) -> None:
    """Write a weight (g, n/g, D) and an intercept (g, n/g) into a layer, or into the mean of its ``norm``."""
    assert isinstance(layer, Conv | nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(weight.flatten(0, 1).reshape(layer.weight.shape))
        if bias is not None:
            put_bias(layer, bias.flatten(), norm)


def put_bias(layer: nn.Module, bias: Tensor, norm: nn.Module | None) -> None:
    """Write an intercept (n,) into a layer's bias or, where it has none, into the mean of its ``norm``."""
    own = getattr(layer, "bias", None)
    if own is not None:
        own.copy_(bias)
    else:
        shift_mean(norm, bias)


def shift_mean(norm: nn.Module | None, bias: Tensor) -> None:
    """Let a norm in eval mode see its input with ``bias`` (n,) added."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None
    norm.running_mean.sub_(bias.to(norm.running_mean.dtype))


class Kept:
    """Values by batch that are kept, unless all of them together would take too much memory.

    It does not hold on to what makes them, which holds on to it: memory in such a circle is given back late.
    """

    def __init__(self) -> None:
        self._values, self._size = dict[int, Tensor](), 0

    def of(self, batch: int, made: Callable[[int], Tensor]) -> Tensor:
        """The value of a batch, ``made`` now if it is not kept."""
        if batch in self._values:
            return self._values[batch]
        value = made(batch)
        if self._size + value.numel() <= _KEPT:
            self._values[batch] = value
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

    def __init__(self, pair: Pair, targets: Targets) -> None:
        self.pair, self.targets = pair, targets
        self._read = Kept()

    def features(self, batch: int) -> Tensor:
        """What the map reads at the positions: (N, g, D)."""
        raise NotImplementedError

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put weights (g, n/g, D) and an intercept (g, n/g) where they belong."""
        raise NotImplementedError

    def fit(self) -> float:
        """Fit the map in place; the strength of the ridge."""
        weights = self.targets.weights.unflatten(0, self.start.shape[:2])
        found = solve(*self._moments(), self.start, weights=weights, constant=self.constant)
        weight, bias = self._alive(found.weight), found.bias
        if found.ridge < float("inf") and self.targets.ceiling is not None:
            for _ in range(ROUNDS):
                crossed = self._renewed(weight, bias)
                weight = self._alive(found.normal.solve(crossed.crossed(self.constant)))
                bias = crossed.intercept(weight) if self.constant else None
        self.write(weight, bias)
        return found.ridge

    def _moments(self) -> tuple[Moments, Moments]:
        seen, held = Moments(), Moments()
        for batch in self.targets.positions.batches:
            (held if self.pair.is_held(batch) else seen).add(self._read.of(batch, self.features), self._wanted(batch))
        return seen.reduced(), held.reduced()

    def _wanted(self, batch: int) -> Tensor:
        return self.targets.outputs(batch).unflatten(1, self.start.shape[:2])

    def _renewed(self, weight: Tensor, bias: Tensor | None) -> Moments:
        """The moments with targets renewed by what ``weight`` and ``bias`` give."""
        crossed = Moments(squares=False)
        for batch in self.targets.positions.batches:
            u = self._read.of(batch, self.features)
            y = times(weight, u)
            self.targets.bend(batch, (y if bias is None else y + bias).flatten(1))
            crossed.add(u, self._wanted(batch))
        return crossed.reduced()

    def _alive(self, weight: Tensor) -> Tensor:
        """With the weights it began with where a norm silences the output, so that training may wake it up."""
        alive = self.targets.alive.unflatten(0, self.start.shape[:2])[:, :, None]
        return torch.where(alive, weight, self.start)


class LayerFit(LeastSquares):
    """A convolution or linear layer."""

    def __init__(self, pair: Pair, layer: nn.Module, inputs: Input, targets: Targets) -> None:
        super().__init__(pair, targets)
        self.layer, self.inputs = layer, inputs
        self.start = weight_of(layer)
        self.constant = has_constant(layer, targets.norm)

    def features(self, batch: int) -> Tensor:
        return self.targets.positions.patches(self.inputs(batch), self.layer, batch)

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        put(self.layer, weight, bias, self.targets.norm)
        if bias is not None:
            self.targets.refresh()

    def outputs(self, batch: int) -> Tensor:
        """What the layer as it is gives at the positions: (N, n)."""
        y = times(weight_of(self.layer), self._read.of(batch, self.features)).flatten(1)
        bias = getattr(self.layer, "bias", None)
        return y if bias is None else y + bias.detach()


def times(weight: Tensor, u: Tensor) -> Tensor:
    """(g, n, D) and (N, g, D) → (N, g, n), as precise as moments of so many features are."""
    kind = precision(u.shape[2])
    return (u.transpose(0, 1).to(kind) @ weight.mT.to(kind)).transpose(0, 1).double()


def error(targets: Targets, outputs: Callable[[int], Tensor]) -> float | None:
    """Mean squared error behind the rectifier over the variance there, on the batches judged; None without any."""
    judged = targets.positions.judged
    if not judged:
        return None
    missed = fmean(targets.error(batch, outputs(batch)) for batch in judged)
    return missed / targets.variance if targets.variance > 0 else float(missed > 0)
