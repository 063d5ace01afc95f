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
from ghostify.fitting.norms import Statistics
from ghostify.fitting.sensitivity import metric
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
        outputs: Tensor | None = None,
    ) -> None:
        """``aims``, and ``norms`` before and ``amplifiers`` behind the rectifier: by call.

        ``outputs``: those of the layer's that these are the targets of, -1 for one that nobody reads; None for all.
        """
        self.networks, self.aims, self.samples, self.norms = networks, aims, samples, norms
        self.amplifiers, self.rectifies, self._index = amplifiers or [None] * len(aims), rectified, outputs
        self.takers = norms
        """The norms whose means may take an intercept in, by call."""
        # Where the two networks have different activations, sums are compared as they are.
        self.ceilings = [
            aim.ours.ceiling if rectified and aim.theirs.ceiling == aim.ours.ceiling else None for aim in aims
        ]
        used = [*samples.blocks, *samples.judged]
        self.sums = {block: self._sums(block) for block in used}
        self.added = {block: self._added(block) for block in used}
        self._like = next(iter(self.sums.values())) if used else self._of_nothing()
        self.slopes: list[Tensor] = []
        self.offsets: list[Tensor] = []
        self.refresh()
        self._alive = [self._lets_through(norm) for norm in norms]
        self.alive = torch.stack(self._alive).any(0)
        """The outputs that any norm lets through."""
        self.sensitivity: Tensor | None = None
        """How much errors of the sums matter to what the network gives, (n, n), where that is known."""
        self._bent = self.sums
        self.amplified = [self._line(norm)[0] for norm in self.amplifiers]
        """By call, the slopes behind the rectifier."""

    def of(self, outputs: Tensor, samples: Samples | None = None) -> Targets:
        """The targets of some outputs, -1 for one that nobody reads; at other samples, if given.

        They are renewed by themselves, and begin with the original's sums and the norms as they are now.
        """
        samples = samples or self.samples
        some = Targets(self.networks, self.aims, samples, self.norms, self.rectifies, self.amplifiers, outputs)
        some.takers = self.takers
        return some

    def refresh(self) -> None:
        """Read the norms anew, for a mean has taken an intercept in."""
        lines = [self._line(norm) for norm in self.norms]
        self.slopes, self.offsets = [slope for slope, _ in lines], [offset for _, offset in lines]

    def _line(self, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
        """a and b of a norm, for the chosen outputs."""
        if norm is None:
            return line(None, self._like.shape[1], self._like)
        slope, offset = line(norm, self._like.shape[1], self._like)
        return self._chosen(slope), self._chosen(offset)

    def _lets_through(self, norm: nn.Module | None) -> Tensor:
        """By chosen output, whether a norm lets it through, and anybody reads it."""
        slope = line(norm, self._like.shape[1], self._like)[0].abs()
        through = slope > _DEAD * slope.max()
        if self._index is None:
            return through
        return (self._index >= 0) if norm is None else self._chosen(through) & (self._index >= 0)

    def _chosen(self, values: Tensor) -> Tensor:
        """Values of all outputs (…, n) as those of the chosen ones; of one that nobody reads, anything."""
        return values if self._index is None else values[..., self._index.clamp_min(0)]

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

    @property
    def metric(self) -> Tensor:
        """How much errors of the outputs count together, (n, n); where norms alone tell, ``weights``."""
        if self.sensitivity is None:
            return self.weights
        slope = torch.where(self.alive, torch.stack(self.slopes).mean(0), 0.0)
        return metric(self.weights, slope[:, None] * self.sensitivity * slope)

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
        wanted = Statistics()
        for block, sums in self.sums.items():
            wanted(self._shown(sums, block))
        return float(wanted.reduced().variance.mean())

    def _shown(self, sums: Tensor, block: Block) -> Tensor:
        """What the rectifier lets pass."""
        ceiling = self.ceilings[block.call]
        return sums if ceiling is None else sums.clamp(0, ceiling)

    def _sum(self, block: Block, y: Tensor) -> Tensor:
        return self.slopes[block.call] * y.double() + self.offsets[block.call] + self.added[block]

    def _of_nothing(self) -> Tensor:
        """The sums of a process that has none of these blocks: (0, n)."""
        kept = self.aims[0].kept
        width = self.samples.width if kept is None else len(kept)
        place = next(self.networks.converted.root.parameters()).device
        return torch.empty(0, width if self._index is None else len(self._index), device=place)

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
        return self._chosen(picked if kept is None else picked[:, kept.to(picked.device)])
