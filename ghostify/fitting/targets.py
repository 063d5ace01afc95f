"""What one layer of the converted network is fitted to: the original's sums at sampled positions.

    z = a·y + b + r     y: the layer's output, a and b: its norm's line, r: what the converted network adds
    y ← (z − b − r)/a   the target of the layer

Behind a rectifier only what is positive counts: with z* the original's sum and ẑ the present one, the target is z*
where z* > 0 and min(ẑ, 0) elsewhere.  Fitting to that and renewing it in turns never raises
Σ_{z* > 0} (ẑ − z*)² + Σ_{z* ≤ 0} max(ẑ, 0)² (after Zhang et al. 2015, who bound a rectifier's error so).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from ghostify.fitting.sampling import Positions
from ghostify.fitting.surroundings import Surroundings, bare, line, surroundings, without_addition
from ghostify.fitting.walking import Walk
from ghostify.tracing import Traced

_DEAD = 1e-4
"""A norm's slope below this share of its largest leaves its channel out of the fit."""


@dataclass
class Pair:
    """The original and the converted network, recorded and walked through the same images."""

    original: Traced
    converted: Traced
    first: Walk
    second: Walk
    held: int
    """The last so many of the batches that are fitted to choose how strong ridges are."""
    judged: int = 0
    """The last so many of all batches are not fitted to."""

    @property
    def batches(self) -> int:
        """How many batches are fitted to."""
        return len(self.second.values) - self.judged

    def is_held(self, batch: int) -> bool:
        return batch >= self.batches - self.held


@dataclass(frozen=True)
class Aim:
    """Where a layer is compared with its original: nodes of either network, and which channels of the original."""

    theirs: Surroundings
    ours: Surroundings
    kept: Tensor | None
    """Channels of the original that the layer makes; None for all."""
    added: fx.Node | None
    """Node of the *converted* network that is added, where it runs before the layer does."""
    added_there: fx.Node | None
    """Else that of the original."""

    @staticmethod
    def of(pair: Pair, output: fx.Node, twin: fx.Node, at: fx.Node, kept: Tensor | None, compensate: bool) -> Aim:
        """``output`` of the converted network is to be as ``twin`` of the original; the layer begins at node ``at``."""
        theirs, ours = surroundings(pair.original, twin), surroundings(pair.converted, output)
        if theirs.form != ours.form:
            theirs, ours = bare(theirs), bare(ours)
        if not compensate:
            theirs, ours = without_addition(theirs), without_addition(ours)
        known = ours.other is not None and pair.second.index[ours.other] < pair.second.index[at]
        return Aim(theirs, ours, kept, ours.other if known else None, None if known else theirs.other)

    @property
    def needed(self) -> list[fx.Node]:
        """Nodes of the original whose values the fit asks for."""
        return [self.theirs.sum, *([self.added_there] if self.added_there is not None else [])]


class Targets:
    """The targets of one layer, batch by batch, at its positions."""

    def __init__(self, pair: Pair, aim: Aim, positions: Positions, norm: nn.Module | None, rectified: bool) -> None:
        self.positions, self.norm = positions, norm
        self.ceiling = aim.ours.ceiling if rectified and aim.theirs.ceiling == aim.ours.ceiling else None
        used = [*positions.batches, *positions.judged]
        self.sums = {b: self._picked(pair.first.values[b][aim.theirs.sum], b, aim.kept) for b in used}
        self.added = {b: self._added(pair, aim, b) for b in used}
        like = self.sums[used[0]]
        self.slope, self.offset = line(norm, like.shape[1], like)
        self.alive = self.slope.abs() > _DEAD * self.slope.abs().max()
        self._bent = self.sums

    def refresh(self) -> None:
        """Read the norm anew, for its mean has taken an intercept in."""
        like = next(iter(self.sums.values()))
        self.slope, self.offset = line(self.norm, like.shape[1], like)

    @property
    def weights(self) -> Tensor:
        """How much an error of each output counts, (n,): by the square of the norm's slope."""
        return torch.where(self.alive, self.slope.square(), 0.0)

    def outputs(self, batch: int) -> Tensor:
        """What the layer should give there, (N, n) in float64; zero for what its norm silences."""
        y = (self._bent[batch].double() - self.offset - self.added[batch]) / torch.where(self.alive, self.slope, 1.0)
        return torch.where(self.alive, y, 0.0)

    def bend(self, batch: int, y: Tensor) -> None:
        """Renew a batch's targets, given what the layer gives now, (N, n); nothing where no rectifier follows."""
        if self.ceiling is None:
            return
        if self._bent is self.sums:
            self._bent = dict(self.sums)
        now, wanted = self._sum(batch, y), self.sums[batch].double()
        bent = torch.where(wanted > 0, wanted, now.clamp_max(0))
        if self.ceiling < float("inf"):
            bent = torch.where(wanted < self.ceiling, bent, now.clamp_min(self.ceiling))
        self._bent[batch] = bent.to(self.sums[batch].dtype)

    def error(self, batch: int, y: Tensor) -> float:
        """Mean squared error behind the rectifier."""
        return float((self._shown(self._sum(batch, y)) - self._shown(self.sums[batch].double())).square().mean())

    @cached_property
    def variance(self) -> float:
        """Of what is wanted behind the rectifier, over all batches and as a mean over channels."""
        wanted = torch.cat([self._shown(sums.double()) for sums in self.sums.values()])
        return float(wanted.var(0, unbiased=False).mean())

    def _shown(self, sums: Tensor) -> Tensor:
        """What the rectifier lets pass."""
        return sums if self.ceiling is None else sums.clamp(0, self.ceiling)

    def _sum(self, batch: int, y: Tensor) -> Tensor:
        return self.slope * y.double() + self.offset + self.added[batch]

    def _picked(self, value: Any, batch: int, kept: Tensor | None) -> Tensor:
        picked = self.positions.values(value, batch)
        return picked if kept is None else picked[:, kept.to(picked.device)]

    def _added(self, pair: Pair, aim: Aim, batch: int) -> Tensor | float:
        if aim.added is not None:
            return self._picked(pair.second.values[batch][aim.added], batch, None)
        if aim.added_there is not None:
            return self._picked(pair.first.values[batch][aim.added_there], batch, aim.kept)
        return 0.0
