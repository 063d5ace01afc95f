"""Fitting a C-Ghost module: its primary filters, then the cheap operations on what those give.

With y the original's n maps at the targets' scale, Y' = W ∗ x the m intrinsic maps of the converted network's input x:

    primary      W: the m intrinsic maps by least squares (``layers``); or, where a full pointwise convolution can turn
                 any m maps into any others, the m-dimensional part of all n maps' least squares that matters most
                 (reduced rank regression), in the basis in which the first m maps are themselves
    depthwise    k_j = (R_i + ρ r̄ I)⁻¹ c_ij    R_i = cov(shifts of Y'_i), c_ij = cov(those, y_j)
    pointwise    with the depthwise filters, at once (``pointwise``)

Where another norm follows every call, each takes intercepts of its own (``intercepts``); what is squared is taken about
the means of each place then, and the ghosts' means are set once their filters are.

Behind a rectifier, targets are renewed and all of it is done again, some times.  A primary convolution that prepares
its filters in a forward of its own (``own_forwards``) keeps them: its maps are given the right means, where an
intercept has a place to go to, and the cheap operations are fitted to what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghostify.fitting.kinds.features import Features, Input, Kept
from ghostify.fitting.kinds.intercepts import Intercepts
from ghostify.fitting.kinds.least_squares import ROUNDS, FiltersFit, put
from ghostify.fitting.kinds.targets import Targets
from ghostify.ghosts import CGhost, CGhostLinear, intrinsic_maps
from ghostify.ghosts.c_ghost import linear_maps
from ghostify.ghosts.narrowing import Conv, dimensions
from ghostify.leastsquares.moments import MIXING, RIDGES, Moments, Normal, serving, solve, within
from ghostify.leastsquares.own_forwards import settable
from ghostify.leastsquares.pointwise import Blocks, Both
from ghostify.leastsquares.sampling import Block
from ghostify.leastsquares.standardised import standardises

_FEW = 16384
_PER_UNKNOWN = 32
"""Positions that cheap operations are fitted to: so many, and so many for each unknown."""


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


def cheap_unknowns(ghost: CGhost) -> int:
    """What is unknown of the cheap operations that make one ghost map."""
    filters = int(ghost.d ** dimensions(ghost.primary)) if len(ghost.cheap) else 0
    return filters + (0 if ghost.pointwise is None else ghost.m)


def solved_for(layer: nn.Module) -> bool:
    """Whether the filters of a primary convolution (of a layer that is to become one) are solved for, or stay."""
    return isinstance(layer, nn.Linear) or settable(layer).filters or standardises(layer)


class GhostFit(FiltersFit):
    """One C-Ghost module of linear parts, its inputs and its targets, over all its calls."""

    def __init__(self, ghost: CGhost, inputs: Input, targets: Targets, start: Tensor, joint: bool) -> None:
        """``start``: the original's filters (n, …); ``joint``: whether intrinsic maps serve all outputs."""
        self.ghost = ghost
        self.inputs: Input = (lambda b: linear_maps(inputs(b))) if isinstance(ghost, CGhostLinear) else inputs
        self.parts = layout(ghost.out_channels, ghost.s, ghost.groups, ghost.m).to(start.device)
        if ghost.order is not None:
            # A module that selects gives place p of what is concatenated as output argsort(order)[p].
            self.parts = torch.where(self.parts >= 0, ghost.order.argsort()[self.parts.clamp_min(0)], -1)
        self.primary, *self.cheap = (part for part in (ghost.primary, *ghost.cheap) if isinstance(part, Conv))
        self.dimensions, self.settable = dimensions(self.primary), solved_for(self.primary)
        self.intercepts = Intercepts([self.primary] * len(targets.takers), targets.takers)
        super().__init__(targets, self.intercepts.of)
        self.constant = self.intercepts.there
        self.ghosts = self.parts[1:].flatten()[self.parts[1:].flatten() >= 0]
        """The outputs that are ghosts, part by part."""
        freely = ghost.operation.mixes_freely(ghost.out_channels, ghost.m)
        self.joint = joint and freely and self.settable
        trained = start.double().flatten(1).unflatten(0, (self.primary.groups, -1))
        layers = [self.primary] * len(targets.takers)
        self.basis = Features(layers, self.inputs, targets.samples, trained)
        self.start = self.basis.start
        if not self.joint:
            self.start = self.start.flatten(0, 1)[self.parts[0]].unflatten(0, (self.primary.groups, -1))
        shape = self.intercepts.count, ghost.out_channels
        self.offset = torch.zeros(shape, dtype=torch.float64, device=start.device)
        """What is added to each output, by place: by the norm, or already in the biases."""
        self.few = max(_FEW, _PER_UNKNOWN * cheap_unknowns(ghost))
        self._maps = Kept()

    def fit(self) -> float:
        """Fit the module in place; the strength of the ridge on its primary filters, infinite where they stay."""
        rounds = ROUNDS if self.targets.rectified else 0
        ridge = self._fit_all(rounds) if self.settable else self._fit_rest(rounds)
        if self.primary.bias is None and self.constant:
            self.intercepts.put(list(self.offset))
            self.offset.zero_()
            self.targets.refresh()
        return ridge

    def _fit_all(self, rounds: int) -> float:
        found, everything = self.solved()
        s = found.normal.s
        self._put_primary(s, found.weight, everything)
        self._fit_cheap()
        # Filters carried over may do best, and yet renewed targets want others: then by the strongest ridge to them.
        normal = found.normal if found.ridge < float("inf") else Normal(s, self.start, RIDGES[-1])
        for _ in range(rounds):
            for block in self.targets.samples.blocks:
                self.targets.bend(block, self.outputs(block))
            crossed = self.crossed()
            self._put_primary(s, normal.solve(within(crossed).crossed(self.constant)), crossed)
            self._fit_cheap()
        return found.ridge

    def _fit_rest(self, rounds: int) -> float:
        """Fit what is not a primary filter."""
        for again in range(1 + rounds):
            for block in self.targets.samples.blocks if again else ():
                self.targets.bend(block, self.outputs(block))
            self._put_means()
            self._fit_cheap()
        return float("inf")

    def outputs(self, block: Block) -> Tensor:
        """What the module as it is gives at the positions, the offset included: (N, n)."""
        v = self._maps.of(block, self._shifts)
        maps = v[:, :, v.shape[2] // 2]
        y = v.new_zeros(len(v), self.ghost.out_channels)
        y[:, self.parts[0]] = maps
        for part, conv in zip(self.parts[1:], self.cheap, strict=False):  # a pointwise one alone has no filters
            made = torch.einsum("nma,ma->nm", v, conv.weight.flatten(1))
            made = made if conv.bias is None else made + conv.bias
            y[:, part[part >= 0]] = made[:, part >= 0]
        if self.ghost.pointwise is not None:
            # Positions as images of one pixel, so that the module's own convolution is run, whatever its form.
            pixels = maps.reshape(*maps.shape, *[1] * self.dimensions)
            y[:, self.ghosts] += self.ghost.pointwise(pixels).flatten(1)
        return y.double() + self.offset[self.places[block.call]] if self.primary.bias is None else y.double()

    # -- primary -----------------------------------------------------------------------------------------------

    def _shifts(self, block: Block) -> Tensor:
        return self.targets.samples.shifts(self.primary(self.inputs(block)), self.ghost.d, block)

    def grouped(self, values: Tensor) -> Tensor:
        """Values by output, (…, n), as those of the outputs that are solved for: all, or the intrinsic ones alone."""
        return values[..., None, :] if self.joint else values[..., self.parts[0]].unflatten(-1, self.start.shape[:2])

    def _put_primary(self, s: Tensor, weight: Tensor, moments: Sequence[Moments]) -> None:
        """Write the primary filters, given the solution for what is ``wanted``, and its moments by place."""
        if self.joint:
            weight = serving(s[0], weight[0], self.targets.weights, self.parts[0])[None]
        weight = self.alive(weight)
        # All n rows were served; those of intrinsic maps are the filters, and cheap operations make the others.
        weight = self.reached(weight[:, self.parts[0]] if self.joint else weight)
        biases = self.intercepts_of([self._intrinsic(one) for one in moments], weight) or []
        put(self.primary, self.basis.filters(weight))
        for place, bias in enumerate(biases):
            self.offset[place, self.parts[0]] = bias.flatten()
        if self.primary.bias is not None and biases:
            self.intercepts.put([biases[0].flatten()])
        self._maps.forget()

    def _intrinsic(self, moments: Moments) -> Moments:
        """The moments of the intrinsic maps' targets."""
        return moments.of_targets(self.parts[0]) if self.joint else moments

    def _put_means(self) -> None:
        """Write the intercepts with which filters that stay give the intrinsic maps their means."""
        if not self.constant or not settable(self.primary).bias:
            return
        every = [Moments(squares=False) for _ in range(self.intercepts.count)]
        for block in self.targets.samples.blocks:
            maps = self._maps.of(block, self._shifts)
            wanted = self.targets.outputs(block)[:, self.parts[0]]
            every[self.places[block.call]].add(maps[:, :, maps.shape[2] // 2, None], wanted[:, :, None])
        moments = [one.reduced() for one in every]
        alive = self.targets.alive[self.parts[0]]
        shifts = [torch.where(alive, (one.mean_t - one.mean_u)[:, 0], 0.0) for one in moments]
        if self.primary.bias is None:
            self.offset[:, self.parts[0]] = torch.stack(shifts)
            return
        with torch.no_grad():
            self.primary.bias.add_(shifts[0].to(self.primary.bias.dtype))
        self._maps.forget()

    # -- cheap operations --------------------------------------------------------------------------------------

    def _fit_cheap(self) -> None:
        count = self.intercepts.count
        own, shared = ([[Moments() for _ in range(count)] for _ in range(2)] for _ in range(2))
        for block in self.targets.samples.blocks:
            side, place = int(self.targets.is_held(block)), self.places[block.call]
            few = self.targets.samples.rows(self.few, block)
            v = self._maps.of(block, self._shifts)[few].double()
            t = self.targets.outputs(block)[few]
            # By map: its d² shifts with the ghosts that are made of it, so each system has d² unknowns.
            own[side][place].add(v, self._spread(t))
            if self.ghost.pointwise is not None:
                ghosts = t[:, self.ghosts]
                centre = v[:, :, v.shape[2] // 2]
                shared[side][place].add(centre[:, None], torch.cat([v.flatten(1), ghosts], 1)[:, None])
        seen, held = (within([one.reduced() for one in side]) for side in own)
        if self.ghost.pointwise is None:
            self._put_depthwise(seen, held)
        else:
            self._put_both(seen, held, *(within([one.reduced() for one in side]) for side in shared))
        if count > 1:
            self._put_means_of_ghosts()

    def _put_means_of_ghosts(self) -> None:
        """Write the intercepts with which the ghosts' means are right in every place."""
        self.offset[:, self.ghosts] = 0
        every = [Moments(squares=False) for _ in range(self.intercepts.count)]
        for block in self.targets.samples.blocks:
            given, wanted = self.outputs(block)[:, self.ghosts], self.targets.outputs(block)[:, self.ghosts]
            every[self.places[block.call]].add(given[:, :, None], wanted[:, :, None])
        moments = [one.reduced() for one in every]
        self.offset[:, self.ghosts] = torch.stack([(one.mean_t - one.mean_u)[:, 0] for one in moments])

    def _put_depthwise(self, seen: Moments, held: Moments) -> None:
        start = torch.stack([conv.weight.detach().double().flatten(1) for conv in self.cheap], 1)
        weights = self._spread(self.targets.weights[None])[0]
        # The ridge leads to zero, for a ghost's filter has no trained one to be held to.
        found = solve(seen, held, torch.zeros_like(start), weights=weights, constant=self.constant)
        self._put_depthwise_weights(found.weight, found.bias)

    def _put_depthwise_weights(self, weight: Tensor, bias: Tensor | None) -> None:
        """Write depthwise filters (m, s−1, d·d) and intercepts (m, s−1)."""
        with torch.no_grad():
            for t, conv in enumerate(self.cheap):
                conv.weight.copy_(weight[:, t].reshape(conv.weight.shape))
                if bias is None:
                    continue
                if conv.bias is not None:
                    conv.bias.copy_(bias[:, t])
                there = self.parts[t + 1] >= 0
                self.offset[:, self.parts[t + 1][there]] = bias[:, t][there]

    def _put_both(self, seen: Moments, held: Moments, shared: Moments, shared_held: Moments) -> None:
        area = self.ghost.d**self.dimensions

        def solved(own: Moments, others: Moments, strength: float) -> Both:
            blocks = Blocks.of(own, others, area, self.constant)
            return Both(blocks, strength, self.targets.weights[self.ghosts], self._rank, filters=bool(self.cheap))

        judge = Blocks.of(*((held, shared_held) if held.count else (seen, shared)), area, self.constant)
        # Mixtures with large entries cancel each other, and the first step of training would tell them apart.
        tried = [solved(seen, shared, strength) for strength in MIXING]
        sound = [one for one in tried if one.sound] or tried[-1:]
        strength = min(sound, key=lambda one: one.error(judge)).strength
        both = solved(seen.plus(held), shared.plus(shared_held), strength)
        self._put_pointwise(both.factors)
        if self.cheap:
            bias = self._by_map(both.bias[:, None])[:, :, 0] if self.constant else None
            self._put_depthwise_weights(self._by_map(both.taps), bias)
        elif self.constant:
            self._put_bias_of_pointwise(both.bias)

    @property
    def _rank(self) -> int:
        """The rank of the pointwise convolution; 0 for a full one."""
        return self.ghost.rank if isinstance(self.ghost.pointwise, nn.Sequential) else 0

    def _put_pointwise(self, factors: list[Tensor]) -> None:
        """Write P, or B and A of P = A·B."""
        assert self.ghost.pointwise is not None
        convs = [part for part in self.ghost.pointwise.modules() if isinstance(part, Conv)]
        with torch.no_grad():
            for conv, factor in zip(convs, factors, strict=True):
                conv.weight.copy_(factor.reshape(conv.weight.shape))

    def _put_bias_of_pointwise(self, bias: Tensor) -> None:
        """Write the ghosts' intercepts (n−m,) where there are no filters to have them."""
        *_, last = (part for part in self.ghost.pointwise.modules() if isinstance(part, Conv))  # type: ignore[union-attr]
        if last.bias is not None:
            with torch.no_grad():
                last.bias.copy_(bias)
        self.offset[:, self.ghosts] = bias

    def _spread(self, values: Tensor) -> Tensor:
        """Values by output, (N, n) → of the ghosts by intrinsic map, (N, m, s−1); zero where there is no output."""
        index = self.parts[1:].T
        return torch.where(index >= 0, values[:, index.clamp_min(0)], 0.0)

    def _by_map(self, values: Tensor) -> Tensor:
        """By ghost (n−m, D) → by intrinsic map and part (m, s−1, D); zeros where there is no ghost."""
        m, parts = self.parts.shape[1], self.parts.shape[0] - 1
        # Only the last part may be short, so ghosts fill the grid from its beginning.
        filled = values.new_zeros(parts * m, values.shape[1])
        filled[: len(values)] = values
        return filled.unflatten(0, (parts, m)).transpose(0, 1)
