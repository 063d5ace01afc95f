"""What one layer of the converted network is fitted to: the original's sums at sampled positions.

    z = a·y + b + r     y: the layer's output, a and b: its norm's line, r: what the converted network adds
    y ← (z − b − r)/a   the target of the layer, by call: every call has a norm and an addition of its own

Behind a rectifier only what is positive counts: with z* the original's sum and ẑ the present one, the target is z*
where z* > 0 and min(ẑ, 0) elsewhere.  Fitting to that and renewing it in turns never raises
Σ_{z* > 0} (ẑ − z*)² + Σ_{z* ≤ 0} max(ẑ, 0)² (after Zhang et al. 2015, who bound a rectifier's error so).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.fitting.agenda.aims import Aim
from ghostify.fitting.agenda.epilogue import line
from ghostify.fitting.networks import Networks
from ghostify.leastsquares.sampling import Block, Samples

_DEAD = 1e-4
"""A norm's slope below this share of its largest leaves its channel out of the fit."""


class Targets:
    """The targets of one layer, block by block, at its positions."""

    def __init__(
        self,
        networks: Networks,
        aims: Sequence[Aim],
        samples: Samples,
        norms: Sequence[nn.Module | None],
        rectified: bool,
        amplifiers: Sequence[nn.Module | None] | None = None,
    ) -> None:
        """``aims``, and ``norms`` before and ``amplifiers`` behind the rectifier: by call."""
        self.networks, self.aims, self.samples, self.norms = networks, aims, samples, norms
        self.takers = norms
        """The norms whose means may take an intercept in, by call."""
        # Where the two networks have different activations, sums are compared as they are.
        self.ceilings = [
            aim.ours.ceiling if rectified and aim.theirs.ceiling == aim.ours.ceiling else None for aim in aims
        ]
        used = [*samples.blocks, *samples.judged]
        self.sums = {block: self._sums(block) for block in used}
        self.added = {block: self._added(block) for block in used}
        self.slopes: list[Tensor] = []
        self.offsets: list[Tensor] = []
        self.refresh()
        self._alive = [slope.abs() > _DEAD * slope.abs().max() for slope in self.slopes]
        self.alive = torch.stack(self._alive).any(0)
        """The outputs that any norm lets through."""
        self._bent = self.sums
        width, like = len(self.alive), next(iter(self.sums.values()))
        self.amplified = [line(norm, width, like)[0] for norm in amplifiers or [None] * len(aims)]
        """By call, the slopes behind the rectifier."""

    def refresh(self) -> None:
        """Read the norms anew, for a mean has taken an intercept in."""
        like = next(iter(self.sums.values()))
        lines = [line(norm, like.shape[1], like) for norm in self.norms]
        self.slopes, self.offsets = [slope for slope, _ in lines], [offset for _, offset in lines]

    @property
    def rectified(self) -> bool:
        """Whether a rectifier follows any call, so that targets are worth renewing."""
        return any(ceiling is not None for ceiling in self.ceilings)

    @property
    def weights(self) -> Tensor:
        """How much an error of each output counts, (n,): by the square of the slopes of the norms before and behind the
        rectifier, a mean over the calls."""
        slopes = [own * after for own, after in zip(self.slopes, self.amplified, strict=True)]
        return torch.where(self.alive, torch.stack(slopes).square().mean(0), 0.0)

    def is_held(self, block: Block) -> bool:
        return self.networks.is_held(block.batch)

    def outputs(self, block: Block) -> Tensor:
        """What the layer should give there, (N, n) in float64; zero for what its norm silences."""
        alive, slope, offset = self._alive[block.call], self.slopes[block.call], self.offsets[block.call]
        # A silenced channel has a slope near zero, and z/a would be anything at all.
        y = (self._bent[block].double() - offset - self.added[block]) / torch.where(alive, slope, 1.0)
        return torch.where(alive, y, 0.0)

    def bend(self, block: Block, y: Tensor) -> None:
        """Renew a block's targets, given what the layer gives now, (N, n); nothing where no rectifier follows."""
        ceiling = self.ceilings[block.call]
        if ceiling is None:
            return
        if self._bent is self.sums:
            # The sums themselves stay: errors are measured by them.
            self._bent = dict(self.sums)
        now, wanted = self._sum(block, y), self.sums[block].double()
        bent = torch.where(wanted > 0, wanted, now.clamp_max(0))
        if ceiling < float("inf"):
            bent = torch.where(wanted < ceiling, bent, now.clamp_min(ceiling))
        self._bent[block] = bent.to(self.sums[block].dtype)

    def error(self, block: Block, y: Tensor) -> float:
        """Mean squared error behind the rectifier."""
        now, wanted = self._sum(block, y), self.sums[block].double()
        return float((self._shown(now, block) - self._shown(wanted, block)).square().mean())

    @cached_property
    def variance(self) -> float:
        """Of what is wanted behind the rectifier, over all blocks and as a mean over channels."""
        wanted = torch.cat([self._shown(sums.double(), block) for block, sums in self.sums.items()])
        return float(wanted.var(0, unbiased=False).mean())

    def _shown(self, sums: Tensor, block: Block) -> Tensor:
        """What the rectifier lets pass."""
        ceiling = self.ceilings[block.call]
        return sums if ceiling is None else sums.clamp(0, ceiling)

    def _sum(self, block: Block, y: Tensor) -> Tensor:
        return self.slopes[block.call] * y.double() + self.offsets[block.call] + self.added[block]

    def _sums(self, block: Block) -> Tensor:
        aim = self.aims[block.call]
        return self._picked(self.networks.original.values[block.batch][aim.theirs.sum], block, aim.kept)

    def _added(self, block: Block) -> Tensor | float:
        aim = self.aims[block.call]
        if aim.added is not None:
            return self._picked(self.networks.converted.values[block.batch][aim.added], block, None)
        if aim.added_there is not None:
            return self._picked(self.networks.original.values[block.batch][aim.added_there], block, aim.kept)
        return 0.0

    def _picked(self, value: Any, block: Block, kept: Tensor | None) -> Tensor:
        picked = self.samples.values(value, block)
        return picked if kept is None else picked[:, kept.to(picked.device)]
