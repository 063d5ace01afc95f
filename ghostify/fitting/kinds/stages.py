"""Fitting the ghosts of a G-Ghost stage: the cheap operation and the mix operation at once.

    z ≈ C ∗ Y1 + W · [pooled Y1, pooled thin outputs] + b        z: the original's last sums at the ghost channels

One least squares over both kinds of features, each scaled to unit variance so that one ridge serves both.  A mix
operation of two layers is left as it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.fitting.agenda.epilogue import line
from ghostify.fitting.kinds.features import Input, Kept
from ghostify.fitting.kinds.intercepts import shift_mean
from ghostify.fitting.kinds.least_squares import LeastSquares, times
from ghostify.fitting.kinds.targets import Targets
from ghostify.ghosts import GGhostStage
from ghostify.leastsquares.sampling import Block
from ghostify.processes import present


class StageFit(LeastSquares):
    """The ghosts of one stage."""

    def __init__(
        self, stage: GGhostStage, base: Input, pooled: Callable[[Block], Sequence[Tensor]], targets: Targets
    ) -> None:
        """``base``: what the cheap operation reads; ``pooled``: the maps that the mix operation pools."""
        super().__init__(targets, [0] * len(targets.aims))
        self.base, self.pooled, self._kept = base, pooled, Kept()
        self.conv: Any = stage.cheap[0] if isinstance(stage.cheap, nn.Sequential) else None
        self.norm: Any = stage.cheap[1] if isinstance(stage.cheap, nn.Sequential) else None
        self.fc: Any = stage.mix.fc if stage.mix is not None and stage.mix.layers == 1 else None
        self.constant = self.fc is not None or self.norm is not None
        # Pixels and pooled means differ in scale by far, and one ridge is to hold both as tightly.
        rows = self._first_rows()
        deviation = rows.double().std(0, unbiased=False)
        # What hardly varies is noise, and in units of its own deviation it would count as much as the rest.
        self.scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, deviation.max().clamp_min(1e-12))
        self.start = (self._now() * self.scale)[None]

    def _first_rows(self) -> Tensor:
        """The features of the first block, (N, D), which one of the processes has."""
        samples, features = self.targets.samples, self._now().shape[1]
        own = (
            self._raw(samples.first).double() if samples.first in samples.blocks else self._now().new_zeros(0, features)
        )
        return present().joined(own, [features])

    def read(self, block: Block) -> Tensor:
        return self._kept.of(block, lambda block: (self._raw(block) / self.scale.float())[:, None])

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        weight = weight[0] / self.scale
        convolved = self._convolved
        # Weights are in the scale of the sums; behind the norm, the convolution's count by its slope.
        slope, offset = line(self.norm, len(weight), weight)
        bias = weight.new_zeros(1, len(weight)) if biases is None else biases[0]
        with torch.no_grad():
            if self.conv is not None:
                self.conv.weight.copy_((weight[:, :convolved] / slope[:, None]).reshape(self.conv.weight.shape))
            if self.fc is not None:
                self.fc.weight.copy_(weight[:, convolved:])
                self.fc.bias.copy_(bias[0] - offset)
            else:
                shift_mean(self.norm, (bias[0] - offset) / slope)

    def outputs(self, block: Block) -> Tensor:
        """What cheap and mix operation together give at the positions: (N, ghosts)."""
        offset = line(self.norm, self.start.shape[1], self.start)[1]
        y = times(self._now()[None], self._raw(block)[:, None]).flatten(1) + offset
        return y if self.fc is None else y + self.fc.bias.detach()

    @property
    def _convolved(self) -> int:
        """Features of the cheap operation."""
        return 0 if self.conv is None else self.conv.weight[0].numel()

    def _now(self) -> Tensor:
        """The weights as they are, (ghosts, D), in the scale of the sums."""
        parts = []
        if self.conv is not None:
            slope = line(self.norm, len(self.conv.weight), self.conv.weight)[0]
            parts.append(slope[:, None] * self.conv.weight.detach().double().flatten(1))
        if self.fc is not None:
            parts.append(self.fc.weight.detach().double())
        return torch.cat(parts, 1)

    def _raw(self, block: Block) -> Tensor:
        """(N, D), unscaled."""
        parts = []
        samples = self.targets.samples
        if self.conv is not None:
            parts.append(samples.patches(self.base(block), self.conv, block)[:, 0])
        if self.fc is not None:
            # Pooled maps have one value an image, and rows lie image by image.
            means = torch.cat([maps.mean((2, 3)) for maps in self.pooled(block)], 1)
            parts.append(means.repeat_interleave(samples.each(block), 0))
        return torch.cat(parts, 1)
