"""Fitting a C-Ghost module: its primary filters, then the cheap operations on what those give.

With y the original's n maps at the targets' scale, Y' = W ∗ x the m intrinsic maps of the converted network's input x:

    primary      W: the m intrinsic maps by least squares (``least_squares``); or, where a full pointwise convolution
                 can turn any m maps into any others, the m-dimensional part of all n maps' least squares that matters
                 most (reduced rank regression), in the basis in which the first m maps are themselves (``serving``):

                 A V, of rank m       V: the primary filters, A: the identity in their rows and P in the others J
                 P = C_J Vᵀ (V S Vᵀ + ρ ḡ I)⁻¹        S = cov(u), C = cov(y, u), u: what a filter reads

    cheap        the ghosts by least squares on the maps that these filters give (``cheap``)

Behind a rectifier targets are renewed, first those of the primary filters, then those of the cheap operations, for
what a ghost misses changes no intrinsic map.  A primary convolution that prepares its filters in a forward of its own
(``own_forwards``) keeps them: its maps are given the right means, where an intercept has a place to go to, and the
cheap operations are fitted to what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghostify.fitting.kinds.cheap import BothFit, DepthwiseFit
from ghostify.fitting.kinds.features import Features, Input
from ghostify.fitting.kinds.intercepts import Intercepts
from ghostify.fitting.kinds.least_squares import ROUNDS, FiltersFit, put
from ghostify.fitting.kinds.targets import Targets
from ghostify.ghosts import CGhost, CGhostLinear, intrinsic_maps
from ghostify.ghosts.c_ghost import linear_maps
from ghostify.ghosts.narrowing import Conv
from ghostify.leastsquares.moments import RIDGES, Normal, Solution, mixing, serving
from ghostify.leastsquares.own_forwards import settable
from ghostify.leastsquares.sampling import Block
from ghostify.leastsquares.standardised import standardises


def layout(n: int, s: int, groups: int = 1, m: int | None = None) -> Tensor:
    """(s, m): the output that map i of part t of a C-Ghost module becomes, -1 where it is sliced away.

    Part 0 is the primary convolution's.  Outputs lie group by group, in each group part by part.  Where ``m`` is set
    there are as many parts as n outputs need, s at least.
    """
    each, width = (intrinsic_maps(n, s, groups) if m is None else m) // groups, n // groups
    parts = max(s, math.ceil(width / each))
    t, g, i = torch.meshgrid(*(torch.arange(size) for size in (parts, groups, each)), indexing="ij")
    place = t * each + i
    return torch.where(place < width, g * width + place, -1).flatten(1)


def solved_for(layer: nn.Module) -> bool:
    """Whether the filters of a primary convolution (of a layer that is to become one) are solved for, or stay."""
    return isinstance(layer, nn.Linear) or settable(layer).filters or standardises(layer)


class PrimaryFit(FiltersFit):
    """The primary filters of one C-Ghost module of linear parts, over all its calls."""

    def __init__(self, ghost: CGhost, inputs: Input, targets: Targets, start: Tensor, joint: bool) -> None:
        """``start``: the original's filters (n, …); ``joint``: whether intrinsic maps serve all outputs."""
        assert isinstance(ghost.primary, Conv)
        self.ghost, self.primary, self.inputs, self.whole = ghost, ghost.primary, inputs, targets
        parts = layout(ghost.out_channels, ghost.s, ghost.groups, ghost.m).to(start.device)
        if ghost.order is not None:
            # A module that selects gives place p of what is concatenated as output argsort(order)[p].
            parts = torch.where(parts >= 0, ghost.order.argsort()[parts.clamp_min(0)], -1)
        self.intrinsic, self.parts = parts[0], parts[1:]
        self.ghosts = self.parts[self.parts >= 0]
        """The outputs that are ghosts, part by part."""
        self.joint = joint and ghost.operation.mixes_freely(ghost.out_channels, ghost.m) and solved_for(self.primary)
        self.intercepts = Intercepts([self.primary] * len(targets.takers), targets.takers)
        super().__init__(targets if self.joint else targets.of(self.intrinsic), self.intercepts.of)
        self.constant = self.intercepts.there
        self.as_maps: Input = (lambda block: linear_maps(inputs(block))) if isinstance(ghost, CGhostLinear) else inputs
        """What the primary convolution reads of each block."""
        trained = start.double().flatten(1).unflatten(0, (self.primary.groups, -1))
        self.basis = Features([self.primary] * len(targets.takers), self.as_maps, targets.samples, trained)
        self.start = self.basis.start
        if not self.joint:
            self.start = self.start.flatten(0, 1)[self.intrinsic].unflatten(0, (self.primary.groups, -1))

    def attainable(self, weight: Tensor, s: Tensor, c: Tensor) -> Tensor:
        if not self.joint:
            return self.reached(self.alive(weight))
        nearest = serving(s[0], weight[0], self.targets.metric, self.intrinsic)
        basis = self.reached(self.alive(nearest[None])[:, self.intrinsic])[0]
        # Silenced and rescaled filters are not those that ``serving`` mixed, so the mix is solved for again.
        self.mix = mixing(basis @ s[0] @ basis.T, c[0, self.ghosts] @ basis.T)
        found = torch.empty_like(nearest)
        found[self.intrinsic], found[self.ghosts] = basis, self.mix @ basis
        return found[None]

    def renewing(self, found: Solution) -> Normal:
        """As above; filters carried over may do best and yet renewed targets want others, by the strongest ridge."""
        return super().renewing(found) or Normal(found.normal.s, self.start, RIDGES[-1])

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        put(self.primary, self.basis.filters(weight[:, self.intrinsic] if self.joint else weight, self.intrinsic))
        if biases is not None:
            own = [bias[0, self.intrinsic] if self.joint else bias.flatten() for bias in biases]
            self.intercepts.put(own, self.intrinsic)

    def outputs(self, block: Block) -> Tensor:
        """What the module as it is gives at the positions: (N, n)."""
        return self.whole.samples.values(self.ghost(self.inputs(block)), block).double()


class GhostFit(PrimaryFit):
    """The primary filters, then the depthwise filters or those and a pointwise convolution."""

    def fit(self) -> float:
        """Fit the module in place; the strength of the ridge on its primary filters, infinite where they stay."""
        ridge = super().fit() if solved_for(self.primary) else self._fit_means()
        self.basis.forget()  # what follows keeps the maps, and both would decide how much memory a fit takes
        kind = DepthwiseFit if self.ghost.pointwise is None else BothFit
        kind(self.ghost, self._maps, self.whole, self.intercepts, self.parts).fit()
        self.whole.refresh()
        return ridge

    def _maps(self, block: Block) -> Tensor:
        """The intrinsic maps of a block, (B, m, …)."""
        maps: Tensor = self.primary(self.as_maps(block))
        return maps

    def _fit_means(self) -> float:
        """Write the intercepts with which filters that stay give the intrinsic maps their means."""
        if not self.constant or not settable(self.primary).bias:
            return float("inf")
        shifts = self._missed_means()
        for _ in range(ROUNDS if self.targets.rectified else 0):
            for block in self.targets.samples.blocks:
                self.targets.bend(block, self._given(block)[:, :, 0] + shifts[self.places[block.call]])
            shifts = self._missed_means()
        own = 0 if self.primary.bias is None else self.primary.bias
        self.intercepts.put([own + shift for shift in shifts], self.intrinsic)
        return float("inf")

    def _missed_means(self) -> list[Tensor]:
        """By place, how far the means of the intrinsic maps are from those wanted, (m,)."""

        def rows(block: Block) -> tuple[Tensor, Tensor]:
            return self._given(block), self.targets.outputs(block)[:, :, None]

        moments = self.summed(self.targets.samples.blocks, rows, squares=False)
        return [torch.where(self.targets.alive, (one.mean_t - one.mean_u)[:, 0], 0.0) for one in moments]

    def _given(self, block: Block) -> Tensor:
        """The intrinsic maps at a block's positions, each a group of one feature: (N, m, 1)."""
        return self.targets.samples.values(self._maps(block), block)[:, :, None]
