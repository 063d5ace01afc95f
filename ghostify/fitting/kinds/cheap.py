"""Fitting the cheap operations of a C-Ghost module, once its intrinsic maps Y' stand.

    depthwise    k_j = (R_i + ρ r̄ I)⁻¹ c_ij    R_i = cov(shifts of Y'_i), c_ij = cov(those, y_j)
    pointwise    with the depthwise filters, at once (``leastsquares.pointwise``)

Where another norm follows every call, each takes intercepts of its own (``intercepts``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghostify.fitting.kinds.features import Input, Kept
from ghostify.fitting.kinds.intercepts import Intercepts
from ghostify.fitting.kinds.least_squares import ROUNDS, LeastSquares, Sums, times
from ghostify.fitting.kinds.targets import Targets
from ghostify.ghosts import CGhost
from ghostify.ghosts.narrowing import Conv, dimensions
from ghostify.leastsquares.moments import MIXING, Moments, within
from ghostify.leastsquares.pointwise import Blocks, Both
from ghostify.leastsquares.sampling import Block

_FEW = 4096
_PER_UNKNOWN = 32
"""Positions that cheap operations are fitted to: so many, and so many for each unknown, for their systems are small."""


class CheapFit(Sums):
    """What makes the ghosts of a module, its intrinsic maps and its targets, over all its calls."""

    def __init__(self, ghost: CGhost, maps: Input, targets: Targets, intercepts: Intercepts, outputs: Tensor) -> None:
        """``maps``: the intrinsic maps of each block; ``targets``: of all the module's outputs; ``outputs``: those that
        ghosts become, -1 for one that is sliced away."""
        few = targets.samples.fewer(max(_FEW, _PER_UNKNOWN * cheap_unknowns(ghost)))
        super().__init__(targets.of(outputs, few), intercepts.of)
        self.ghost, self.maps, self.intercepts, self.outputs = ghost, maps, intercepts, outputs
        self.constant = intercepts.there
        self._kept = Kept()

    def read(self, block: Block) -> Tensor:
        """The neighbourhoods in every intrinsic map, (N, m, d²)."""
        return self._kept.of(block, lambda at: self.targets.samples.shifts(self.maps(at), self.ghost.d, at))

    @property
    def _area(self) -> int:
        """d², the size of a depthwise filter."""
        return int(self.ghost.d ** dimensions(self.ghost.primary))

    def put_filters(self, taps: Tensor, biases: Tensor | None) -> None:
        """Write depthwise filters (m, s−1, d²), and their biases (m, s−1) where they have any."""
        with torch.no_grad():
            for part, conv in enumerate(self.ghost.cheap):
                assert isinstance(conv, Conv)
                conv.weight.copy_(taps[:, part].reshape(conv.weight.shape))
                if conv.bias is not None and biases is not None:
                    conv.bias.copy_(biases[:, part])

    def put_offsets(self, biases: Sequence[Tensor]) -> None:
        """Write intercepts by place, each in the order of ``outputs``, into the norms where the module has no bias."""
        if getattr(self.ghost.primary, "bias", None) is None:
            self.intercepts.put(biases, self.outputs)


def cheap_unknowns(ghost: CGhost) -> int:
    """What is unknown of the cheap operations that make one ghost map."""
    filters = int(ghost.d ** dimensions(ghost.primary)) if len(ghost.cheap) else 0
    return filters + (0 if ghost.pointwise is None else ghost.m)


class DepthwiseFit(CheapFit, LeastSquares):
    """Depthwise filters alone: an intrinsic map and the ghosts that are made of it are a system of d² unknowns."""

    def __init__(self, ghost: CGhost, maps: Input, targets: Targets, intercepts: Intercepts, parts: Tensor) -> None:
        """``parts`` (s−1, m): the output that each ghost becomes."""
        super().__init__(ghost, maps, targets, intercepts, parts.T.flatten())
        # The ridge leads to zero, for a ghost's filter has no trained one to be held to.
        self.start = torch.zeros(*parts.T.shape, self._area, dtype=torch.float64, device=parts.device)

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        self.put_filters(weight, None if biases is None else biases[0])
        if biases is not None:
            self.put_offsets([bias.flatten() for bias in biases])


class BothFit(CheapFit):
    """A pointwise convolution over all intrinsic maps, with or without depthwise filters beside it."""

    def __init__(self, ghost: CGhost, maps: Input, targets: Targets, intercepts: Intercepts, parts: Tensor) -> None:
        """``parts`` (s−1, m): the output that each ghost becomes."""
        super().__init__(ghost, maps, targets, intercepts, parts[parts >= 0])
        self._part, self._map = (parts >= 0).nonzero(as_tuple=True)
        """(n−m,) each: the filter that makes a ghost, and the map it is made of."""
        self._shape = parts.T.shape

    def fit(self) -> float:
        seen, held = ((self.summed(side, self.rows), self.summed(side, self._all_rows)) for side in self.sides())
        strength = self._strength(self._blocks(*seen), self._blocks(*(held if held[0][0].count else seen)))
        own, shared = (
            [one.plus(other) for one, other in zip(*pair, strict=True)] for pair in zip(seen, held, strict=True)
        )
        blocks = self._blocks(own, shared)
        both = self._solved(blocks, strength)
        for _ in range(ROUNDS if self.targets.rectified else 0):
            self._bend(both, self._biases(both, own))
            # The maps stay the same, so only what has the ghosts in it is summed anew.
            own, mixed = self.crossed(), self.summed(self.targets.samples.blocks, self._mixed_rows, squares=False)
            blocks = blocks.renewed(within(own), within(mixed), self.constant)
            both = self._solved(blocks, strength)
        self._put(both, self._biases(both, own))
        return strength

    def grouped(self, values: Tensor) -> Tensor:
        """Values by ghost (…, n−m) as those of the ghosts of each map, (…, m, s−1); zero where there is none."""
        filled = values.new_zeros(*values.shape[:-1], *self._shape)
        filled[..., self._map, self._part] = values
        return filled

    def _mixed_rows(self, block: Block) -> tuple[Tensor, Tensor]:
        """All intrinsic maps with all ghosts, of a block."""
        return self._centres(self.read(block))[:, None], self.targets.outputs(block)[:, None]

    def _all_rows(self, block: Block) -> tuple[Tensor, Tensor]:
        """All intrinsic maps with their shifts and all ghosts, of a block."""
        maps, ghosts = self._mixed_rows(block)
        return maps, torch.cat([self.read(block).flatten(1)[:, None], ghosts], 2)

    def _blocks(self, own: Sequence[Moments], shared: Sequence[Moments]) -> Blocks:
        return Blocks.of(within(own), within(shared), self._area, self.constant)

    def _solved(self, blocks: Blocks, strength: float) -> Both:
        return Both(blocks, strength, self.targets.weights, self._rank, filters=len(self.ghost.cheap) > 0)

    def _strength(self, blocks: Blocks, judge: Blocks) -> float:
        """Of the ridges with which no map is multiplied by too much, that which does best on what was held out."""
        # Mixtures with large entries cancel each other, and the first step of training would tell them apart.
        tried = [self._solved(blocks, strength) for strength in MIXING]
        sound = [one for one in tried if one.sound] or tried[-1:]
        return min(sound, key=lambda one: one.error(judge)).strength

    @property
    def _rank(self) -> int:
        """The rank of the pointwise convolution; 0 for a full one."""
        return self.ghost.rank if isinstance(self.ghost.pointwise, nn.Sequential) else 0

    def _made(self, both: Both, v: Tensor) -> Tensor:
        """The ghosts (N, n−m) of neighbourhoods (N, m, d²), without intercepts."""
        filtered = times(self.grouped(both.taps.T).movedim(0, 2), v)[:, self._map, self._part]
        return filtered + self._centres(v).double() @ both.pointwise.T

    def _centres(self, v: Tensor) -> Tensor:
        """The maps as they are, (N, m), of neighbourhoods."""
        return v[:, :, v.shape[2] // 2]

    def _biases(self, both: Both, own: Sequence[Moments]) -> list[Tensor]:
        """The intercept (n−m,) of each place, from the means there; zeros where there is no place for any."""
        if not self.constant:
            return [torch.zeros_like(both.bias)] * len(own)
        means = ((one.mean_t[self._map, self._part], self._made(both, one.mean_u[None])[0]) for one in own)
        return [wanted - given for wanted, given in means]

    def _bend(self, both: Both, biases: Sequence[Tensor]) -> None:
        """Renew the targets, given what the ghosts are now."""
        for block in self.targets.samples.blocks:
            self.targets.bend(block, self._made(both, self.read(block)) + biases[self.places[block.call]])

    def _put(self, both: Both, biases: Sequence[Tensor]) -> None:
        """Write the filters and P, or B and A of P = A·B, and the intercepts."""
        assert self.ghost.pointwise is not None
        convs = [part for part in self.ghost.pointwise.modules() if isinstance(part, Conv)]
        with torch.no_grad():
            for conv, factor in zip(convs, both.factors, strict=True):
                conv.weight.copy_(factor.reshape(conv.weight.shape))
            if convs[-1].bias is not None:  # where there are no filters to have it
                convs[-1].bias.copy_(biases[0])
        self.put_filters(self.grouped(both.taps.T).movedim(0, 2), self.grouped(biases[0]))
        if self.constant:
            self.put_offsets(biases)
