"""Fitting a C-Ghost module whose ghosts a full pointwise convolution makes by itself: a layer of m dimensions.

    y ≈ W u + b       W = A V, of rank m       V: the primary filters, A: the identity in their rows and P in the others

Any m maps that span the same space serve as well, so W is the reduced rank regression of all n outputs, in the basis in
which the intrinsic maps are themselves (``serving``).  All of it comes of the moments of what the layer reads, and no
map is looked at again: with S = cov(u) and C = cov(y, u),

    P = C_J Vᵀ (V S Vᵀ + ρ ḡ I)⁻¹        for the ghosts J
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghostify.fitting.kinds.features import Features, Input
from ghostify.fitting.kinds.ghosts import layout, solved_for
from ghostify.fitting.kinds.intercepts import Intercepts
from ghostify.fitting.kinds.least_squares import FiltersFit, put
from ghostify.fitting.kinds.targets import Targets
from ghostify.ghosts import CGhost, CGhostLinear
from ghostify.ghosts.c_ghost import linear_maps
from ghostify.ghosts.narrowing import Conv
from ghostify.leastsquares.moments import RIDGES, Normal, Solution, mixing, serving
from ghostify.leastsquares.sampling import Block


def is_mixed_alone(ghost: CGhost) -> bool:
    """Whether a full pointwise convolution, and nothing else, makes the ghosts of intrinsic maps that can be set."""
    return isinstance(ghost.pointwise, Conv) and not len(ghost.cheap) and solved_for(ghost.primary)


class PointwiseFit(FiltersFit):
    """One such module, its inputs and its targets, over all its calls."""

    def __init__(self, ghost: CGhost, inputs: Input, targets: Targets, start: Tensor) -> None:
        """``start``: the original's filters (n, …)."""
        self.intercepts = Intercepts([ghost.primary] * len(targets.takers), targets.takers)
        super().__init__(targets, self.intercepts.of)
        self.ghost, self.inputs, self.constant = ghost, inputs, self.intercepts.there
        outputs = layout(ghost.out_channels, ghost.s, ghost.groups, ghost.m).to(start.device)
        if ghost.order is not None:
            outputs = torch.where(outputs >= 0, ghost.order.argsort()[outputs.clamp_min(0)], -1)
        self.intrinsic, ghosts = outputs[0], outputs[1:].flatten()
        self.ghosts = ghosts[ghosts >= 0]
        read: Input = (lambda block: linear_maps(inputs(block))) if isinstance(ghost, CGhostLinear) else inputs
        layers = [ghost.primary] * len(targets.takers)
        self.basis = Features(layers, read, targets.samples, start.double().flatten(1)[None])
        self.start = self.basis.start

    def attainable(self, weight: Tensor, s: Tensor, c: Tensor) -> Tensor:
        nearest = serving(s[0], weight[0], self.targets.weights, self.intrinsic)
        basis = self.reached(self.alive(nearest[None])[:, self.intrinsic])[0]
        # Silenced and rescaled filters are not those that ``serving`` mixed, so the mix is solved for again.
        self.mix = mixing(basis @ s[0] @ basis.T, c[0, self.ghosts] @ basis.T)
        found = torch.empty_like(nearest)
        found[self.intrinsic], found[self.ghosts] = basis, self.mix @ basis
        return found[None]

    def renewing(self, found: Solution) -> Normal:
        """As above; the trained filters are more than there may be, so they never stay."""
        return super().renewing(found) or Normal(found.normal.s, self.start, RIDGES[-1])

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        put(self.ghost.primary, self.basis.filters(weight[:, self.intrinsic]))
        pointwise = self.ghost.pointwise
        assert isinstance(pointwise, Conv)
        with torch.no_grad():
            pointwise.weight.copy_(self.mix.reshape(pointwise.weight.shape))
        if biases is None:
            return
        if pointwise.bias is None:
            self.intercepts.put([bias.flatten() for bias in biases])
            self.targets.refresh()
            return
        own, others = biases[0][0, self.intrinsic], biases[0][0, self.ghosts]
        self.intercepts.put([own])
        with torch.no_grad():
            pointwise.bias.copy_(others - self.mix @ own)  # ghosts are made of maps that have theirs

    def outputs(self, block: Block) -> Tensor:
        """What the module as it is gives at the positions: (N, n)."""
        return self.targets.samples.values(self.ghost(self.inputs(block)), block).double()
