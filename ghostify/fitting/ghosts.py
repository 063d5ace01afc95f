"""Fitting a C-Ghost module: its primary filters, then the cheap operations on what those give.

With y the original's n maps at the targets' scale, Y' = W ∗ x the m intrinsic maps of the converted network's input x:

    primary      W: the m intrinsic maps by least squares (``layers``); or, where a full pointwise convolution can turn
                 any m maps into any others, the m-dimensional part of all n maps' least squares that matters most
                 (reduced rank regression), in the basis in which the first m maps are themselves
    depthwise    k_j = (R_i + ρ r̄ I)⁻¹ c_ij                    R_i = cov(shifts of Y'_i), c_ij = cov(those, y_j)
    pointwise    both at once: with S = cov(Y'), X_i = cov(shifts of Y'_i, Y'), c_j = cov(Y', y_j)
                 k_j = (R_i − X_i S⁻¹ X_iᵀ)⁻¹ (c_ij − X_i S⁻¹ c_j),   P_j = S⁻¹ (c_j − X_iᵀ k_j)
                 of low rank: P cut to rank r in the metric of S, then k_j anew

Behind a rectifier, targets are renewed and all of it is done again, some times.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghostify.fitting.layers import ROUNDS, Input, LayerFit, has_constant, put, shift_mean, weight_of
from ghostify.fitting.moments import RIDGES, Moments, ridge, solve, spanning
from ghostify.fitting.targets import Pair, Targets
from ghostify.ghosts import CGhost, CGhostLinear, intrinsic_maps


def layout(n: int, s: int, groups: int = 1) -> Tensor:
    """(s, m): the output that map i of part t of a C-Ghost module becomes, -1 where it is sliced away.

    Part 0 is the primary convolution's.  Outputs lie group by group, in each group part by part.
    """
    each, width = intrinsic_maps(n, s, groups) // groups, n // groups
    t, g, i = torch.meshgrid(*(torch.arange(size) for size in (s, groups, each)), indexing="ij")
    place = t * each + i
    return torch.where(place < width, g * width + place, -1).flatten(1)


class GhostFit:
    """One C-Ghost module of linear parts, its inputs and its targets."""

    def __init__(self, pair: Pair, ghost: CGhost, inputs: Input, targets: Targets, start: Tensor, joint: bool) -> None:
        """``start``: the original's filters (n, …); ``joint``: whether intrinsic maps serve all outputs."""
        self.pair, self.ghost, self.targets, self.norm = pair, ghost, targets, targets.norm
        self.inputs: Input = (lambda b: inputs(b)[:, :, None, None]) if isinstance(ghost, CGhostLinear) else inputs
        self.parts = layout(ghost.out_channels, ghost.s, ghost.groups).to(start.device)
        if ghost.order is not None:
            self.parts = torch.where(self.parts >= 0, ghost.order.argsort()[self.parts.clamp_min(0)], -1)
        self.primary, *self.cheap = (part for part in (ghost.primary, *ghost.cheap) if isinstance(part, nn.Conv2d))
        self.constant = has_constant(self.primary, self.norm)
        self.unknowns = weight_of(self.primary).shape[2]
        self.ghosts = self.parts[1:].flatten()[self.parts[1:].flatten() >= 0]
        """The outputs that are ghosts, part by part."""
        full = ghost.groups == 1 and isinstance(ghost.pointwise, nn.Conv2d)
        self.joint = joint and full
        self.start = start.double().flatten(1)[None]
        if not self.joint:
            self.start = self.start[0, self.parts[0]].unflatten(0, (self.primary.groups, -1))
        self.offset = torch.zeros(ghost.out_channels, dtype=torch.float64, device=start.device)
        """What is added to each output: by the norm, or already in the biases."""

    def fit(self) -> float:
        """Fit the module in place; the strength of the ridge on its primary filters."""
        found = solve(*self._moments(), self.start, weights=self._weights(), constant=self.constant)
        s = found.moments.features(self.constant)
        self._put_primary(s, found.weight, found.bias)
        self._fit_cheap()
        strength = found.ridge if found.ridge < float("inf") else RIDGES[-1]
        for _ in range(ROUNDS if self.targets.ceiling is not None else 0):
            crossed = self._renewed()
            weight = ridge(s, crossed.crossed(self.constant), self.start, strength)
            self._put_primary(s, weight, crossed.intercept(weight) if self.constant else None)
            self._fit_cheap()
        if self.primary.bias is None and self.constant:
            with torch.no_grad():
                shift_mean(self.norm, self.offset)
            self.offset.zero_()
            self.targets.refresh()
        return found.ridge

    def outputs(self, batch: int) -> Tensor:
        """What the module as it is gives at the positions, the offset included: (N, n)."""
        y = self.targets.positions.values(CGhost.forward(self.ghost, self.inputs(batch)), batch).double()
        return y + self.offset if self.primary.bias is None else y

    # -- primary -----------------------------------------------------------------------------------------------

    def _moments(self) -> tuple[Moments, Moments]:
        seen, held = Moments(), Moments()
        for batch in range(self.pair.batches):
            (held if self.pair.is_held(batch) else seen).add(self._patches(batch), self._wanted(batch))
        return seen.reduced(), held.reduced()

    def _renewed(self) -> Moments:
        crossed = Moments(squares=False)
        for batch in range(self.pair.batches):
            self.targets.bend(batch, self.outputs(batch))
            crossed.add(self._patches(batch), self._wanted(batch))
        return crossed.reduced()

    def _patches(self, batch: int) -> Tensor:
        return self.targets.positions.patches(self.inputs(batch), self.primary, batch)

    def _wanted(self, batch: int) -> Tensor:
        """(N, g, n/g) of all outputs, or of the intrinsic ones alone."""
        y = self.targets.outputs(batch)
        return y[:, None] if self.joint else y[:, self.parts[0]].unflatten(1, self.start.shape[:2])

    def _weights(self) -> Tensor:
        weights = self.targets.weights
        return weights[None] if self.joint else weights[self.parts[0]].unflatten(0, self.start.shape[:2])

    def _put_primary(self, s: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write the primary filters, given the solution for what ``_wanted`` is."""
        m = self.primary.out_channels
        if self.joint:
            weight = spanning(s[0], weight[0], self.targets.weights, m)[None, self.parts[0]]
            bias = None if bias is None else bias[:, self.parts[0]]
        put(self.primary, weight, bias if self.primary.bias is not None else None, self.norm)
        if bias is not None:
            self.offset[self.parts[0]] = bias.flatten()

    # -- cheap operations --------------------------------------------------------------------------------------

    def _fit_cheap(self) -> None:
        own, shared = (Moments(), Moments()), (Moments(), Moments())
        for batch in range(self.pair.batches):
            side = int(self.pair.is_held(batch))
            v = self.targets.positions.shifts(self.primary(self.inputs(batch)), self.ghost.d, batch).double()
            t = self.targets.outputs(batch)
            own[side].add(v, self._spread(t))
            if self.ghost.pointwise is not None:
                ghosts = t[:, self.ghosts]
                centre = v[:, :, v.shape[2] // 2]
                shared[side].add(centre[:, None], torch.cat([v.flatten(1), ghosts], 1)[:, None])
        seen, held = (part.reduced() for part in own)
        if self.ghost.pointwise is None:
            self._put_depthwise(seen, held)
        else:
            self._put_both(seen, held, *(part.reduced() for part in shared))

    def _put_depthwise(self, seen: Moments, held: Moments) -> None:
        start = torch.stack([conv.weight.detach().double().flatten(1) for conv in self.cheap], 1)
        weights = self._spread(self.targets.weights[None])[0]
        found = solve(seen, held, torch.zeros_like(start), weights=weights, constant=self.constant)
        self._put_cheap(found.weight, found.bias)

    def _put_cheap(self, weight: Tensor, bias: Tensor | None) -> None:
        """Write depthwise filters (m, s−1, d·d) and intercepts (m, s−1)."""
        with torch.no_grad():
            for t, conv in enumerate(self.cheap):
                conv.weight.copy_(weight[:, t].reshape(conv.weight.shape))
                if bias is None:
                    continue
                if conv.bias is not None:
                    conv.bias.copy_(bias[:, t])
                there = self.parts[t + 1] >= 0
                self.offset[self.parts[t + 1][there]] = bias[:, t][there]

    def _put_both(self, seen: Moments, held: Moments, shared: Moments, shared_held: Moments) -> None:
        tried = [_Both(self, seen, shared, strength) for strength in RIDGES[:6]]
        if held.count:
            both = min(tried, key=lambda one: one.error(held, shared_held))
        else:
            both = tried[_MIDDLE]
        both = _Both(self, seen.plus(held), shared.plus(shared_held), both.strength)
        _put_pointwise(self.ghost.pointwise, both.factors)
        self._put_cheap(self._by_map(both.taps), self._by_map(both.bias[:, None])[:, :, 0] if self.constant else None)

    def _spread(self, values: Tensor) -> Tensor:
        """Values by output, (N, n) → of the ghosts by intrinsic map, (N, m, s−1); zero where there is no output."""
        index = self.parts[1:].T
        return torch.where(index >= 0, values[:, index.clamp_min(0)], 0.0)

    def _by_map(self, values: Tensor) -> Tensor:
        """By ghost (n−m, D) → by intrinsic map and part (m, s−1, D); zeros where there is no ghost."""
        m, parts = self.parts.shape[1], self.parts.shape[0] - 1
        filled = values.new_zeros(parts * m, values.shape[1])
        filled[: len(values)] = values
        return filled.unflatten(0, (parts, m)).transpose(0, 1)


_MIDDLE = 3


class _Both:
    """Depthwise taps (n−m, d·d) and pointwise weights P (n−m, m) that are best together at one ridge strength."""

    def __init__(self, fit: GhostFit, own: Moments, shared: Moments, strength: float) -> None:
        self.strength, self.constant = strength, fit.constant
        m, ghosts = fit.primary.out_channels, fit.ghost.out_channels - fit.primary.out_channels
        self.taps_each = fit.ghost.d**2
        self.map = torch.arange(ghosts, device=shared.mean_u.device) % m
        part = torch.arange(ghosts, device=shared.mean_u.device) // m
        s, r, x, c, ct = self._blocks(own, shared, m, part)
        scale = s.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        eye = torch.eye(m, dtype=s.dtype, device=s.device)
        factor = _factored(s + strength * scale * eye, scale)
        around = [tap for tap in range(self.taps_each) if tap != self.taps_each // 2]
        self.taps = torch.zeros(ghosts, self.taps_each, dtype=s.dtype, device=s.device)
        solved_c = torch.cholesky_solve(ct.T, factor)  # (m, ghosts)
        if around:
            xs, rs, cs = x[:, around], r[:, around][:, :, around], c[:, around]
            solved_x = torch.cholesky_solve(xs.flatten(0, 1).T, factor).T.reshape(xs.shape)
            inner = rs - solved_x @ xs.mT
            inner = inner + strength * rs.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)[:, None, None] * torch.eye(
                len(around), dtype=s.dtype, device=s.device
            )
            right = cs - torch.einsum("gam,mg->ga", xs[self.map], solved_c)
            self.taps[:, around] = torch.linalg.solve(inner[self.map], right)
            p = solved_c.T - torch.einsum("gam,ga->gm", solved_x[self.map], self.taps[:, around])
        else:
            p = solved_c.T
        self.factors: list[Tensor] = [p]
        rank = fit.ghost.rank if isinstance(fit.ghost.pointwise, nn.Sequential) else 0
        if rank:
            self.factors = _cut(s, p, fit.targets.weights[fit.ghosts], rank)
            p = self.factors[1] @ self.factors[0]
            loaded = r + strength * r.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)[:, None, None] * torch.eye(
                self.taps_each, dtype=s.dtype, device=s.device
            )
            self.taps = torch.linalg.solve(loaded[self.map], c - torch.einsum("gam,gm->ga", x[self.map], p))
        self.pointwise = p
        self.bias = self._intercept(own, shared, part)
        self._weights, self._part, self._m = fit.targets.weights[fit.ghosts], part, m

    def error(self, own: Moments, shared: Moments) -> float:
        """Weighted mean squared error, from the moments of what was held out."""
        s, r, x, c, ct = self._blocks(own, shared, self._m, self._part)
        p, k = self.pointwise, self.taps
        quadratic = ((p @ s) * p).sum(1) + (torch.einsum("gab,gb->ga", r[self.map], k) * k).sum(1)
        quadratic = quadratic + 2 * (torch.einsum("gam,gm->ga", x[self.map], p) * k).sum(1)
        variance = shared.tt[0, self._m * self.taps_each :] / shared.count
        if not self.constant:
            variance = variance + shared.mean_t[0, self._m * self.taps_each :].square()
        error = variance - 2 * ((p * ct).sum(1) + (k * c).sum(1)) + quadratic
        if self.constant:
            error = error + (self._intercept(own, shared, self._part) - self.bias).square()
        return float((error * self._weights).mean())

    def _blocks(
        self, own: Moments, shared: Moments, m: int, part: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """S (m, m), R (m, d², d²), X (m, d², m), c_ij (n−m, d²) and c_j (n−m, m)."""
        crossed = shared.crossed(self.constant)[0]
        x = crossed[: m * self.taps_each].unflatten(0, (m, self.taps_each))
        c = own.crossed(self.constant)[self.map, part]
        return shared.features(self.constant)[0], own.features(self.constant), x, c, crossed[m * self.taps_each :]

    def _intercept(self, own: Moments, shared: Moments, part: Tensor) -> Tensor:
        mean = own.mean_t[self.map, part] - (self.taps * own.mean_u[self.map]).sum(1)
        return mean - self.pointwise @ shared.mean_u[0]


def _cut(s: Tensor, p: Tensor, weights: Tensor, rank: int) -> list[Tensor]:
    """P (n−m, m) cut to a rank in the metric of S: the factors B (r, m) and A (n−m, r) of P = A·B."""
    scale = weights.double().clamp_min(torch.finfo(torch.float64).tiny).sqrt()[:, None]
    _, vectors = torch.linalg.eigh((scale * p) @ s @ (scale * p).T)
    leading = vectors[:, -rank:]
    return [leading.T @ (scale * p), leading / scale]


def _factored(matrix: Tensor, scale: Tensor) -> Tensor:
    """The Cholesky factor of a covariance, with as much more on its diagonal as that takes."""
    more = 1e-12
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return factor
        matrix = matrix + more * scale * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        more *= 10


def _put_pointwise(pointwise: nn.Module | None, factors: list[Tensor]) -> None:
    convs = [part for part in (pointwise or nn.Identity()).modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        for conv, factor in zip(convs, factors, strict=True):
            conv.weight.copy_(factor[:, :, None, None])
