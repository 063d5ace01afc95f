"""What layers give at sampled positions, and the least squares between n outputs that a rectifier may follow.

    z = a·y + c + r       y: a layer's n outputs; a, c: its norm's line; r: what is added (``fitting/agenda/epilogue``)
    y ← B y + b           B (n, n)

A layer that is fitted anew may give any linear map of what it reads.  Those that are combinations of what it gives
already cost n² products a position, whatever it reads (asymmetric response reconstruction: Zhang et al. 2015), and say
as much about what can be made good as is needed here.  Behind a rectifier targets are renewed as in a fit
(``fitting/kinds/targets``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from ghostify.fitting.agenda.epilogue import Epilogue, epilogue, line
from ghostify.fitting.kinds.least_squares import ROUNDS
from ghostify.fitting.sensitivity import metric
from ghostify.leastsquares.moments import Moments, Normal, Solution, precision, solve
from ghostify.module_calls import given_by
from ghostify.scanning import Site
from ghostify.tracing import Traced

_POSITIONS, _PER_OUTPUT = 8192, 2
"""Positions from all images together: at least so many, and so many for each output."""
_SEEN = 3 / 4
"""The share of the positions that solves are made of where others choose how strong a ridge is."""


@dataclass(frozen=True)
class Affine:
    """Another linear map of some channels: y ← B y + b, along one dimension of a tensor."""

    matrix: Tensor
    """B (n, n)."""
    offset: Tensor
    """b (n,)."""
    dim: int
    """1, or the last (-1)."""

    def __call__(self, value: Tensor) -> Tensor:
        matrix, offset = self.matrix.to(value), self.offset.to(value)
        if self.dim == -1 or value.dim() == 2:
            return value @ matrix.T + offset
        # Where channels come before positions, moving them behind would take longer than the product.
        return (matrix @ value.flatten(2) + offset[:, None]).view(value.shape)


class Call:
    """One call of a layer, and what follows it up to where its output is bent."""

    def __init__(self, traced: Traced, layer: nn.Module, node: fx.Node, given: Sequence[fx.Node]) -> None:
        """``node`` is what gives this call's outputs; ``given``, what gives those of all the layer's calls."""
        self.node, self.module = node, layer
        self.around: Epilogue = epilogue(traced, node, given)
        norms = (self.around.norm, self.around.amplifier)
        self.norm, self.amplifier = (None if norm is None else traced.leaf(norm) for norm in norms)

    @classmethod
    def all_of(cls, traced: Traced, site: Site) -> list[Call]:
        """The calls of a site in the order they ran, whether its layer is torch's own or of a class of its own."""
        given = [node for name in site.names for node in given_by(traced, name)]
        return [cls(traced, traced.part(site.name), node, given) for node in given]

    @property
    def dim(self) -> int:
        """The dimension of its output's channels."""
        return -1 if isinstance(self.module, nn.Linear) else 1

    def line(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """a and c, (n,) each."""
        return line(self.norm, y.shape[1], y)

    def metric(self, y: Tensor, sensitivity: Tensor | None) -> Tensor:
        """How much errors of the outputs count, (n, n), given what errors of their sums do; without, (n,) by the norms'
        slopes.
        """
        slope = self.line(y)[0]
        own = (slope * line(self.amplifier, y.shape[1], y)[0]).square()
        return own if sensitivity is None else metric(own, slope[:, None] * sensitivity * slope)


@dataclass(frozen=True)
class Rows:
    """A call's outputs at N positions, and the sums they should add up to."""

    y: Tensor
    """(N, n)."""
    wanted: Tensor
    """z (N, n), the original's."""
    added: Tensor | float
    """c + r there."""
    slope: Tensor
    """a (n,)."""
    ceiling: float | None
    """Where a rectifier cuts sums off above; None where none reads them alone."""

    @cached_property
    def mean(self) -> Tensor:
        """Of the outputs, (n,), in float64."""
        return self.y.mean(0, dtype=torch.float64)

    @cached_property
    def centred(self) -> Tensor:
        """The outputs about their mean, (N, n), as products with them are taken."""
        return about(self.y, self.mean)

    def targets(self, now: Affine | None) -> Tensor:
        """What the layer should give, (N, n), given what it gives ``now``; as if nothing bent it, where None."""
        z = self.wanted
        if now is not None and self.ceiling is not None:
            given = self.slope * (self.y @ now.matrix.T.to(self.y) + now.offset.to(self.y)) + self.added
            # What the rectifier hides in both networks is no error.
            z = torch.where(z > 0, z, given.clamp_max(0))
            if self.ceiling < float("inf"):
                z = torch.where(self.wanted < self.ceiling, z, given.clamp_min(self.ceiling))
        alive = self.slope != 0
        return torch.where(alive, (z - self.added) / torch.where(alive, self.slope, 1.0), self.y)


def positions(n: int) -> int:
    """How many positions of n outputs are worth having."""
    return max(_POSITIONS, _PER_OUTPUT * n)


def sampled(value: Tensor, dim: int, each: int, seed: int) -> Tensor:
    """Rows of what stands at random positions, ``each`` of every image: (N, n)."""
    value = value.movedim(dim, -1)
    flat = value.flatten(1, -2) if value.dim() > 2 else value[:, None]
    chosen = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))[:each]
    return flat[:, chosen.to(value.device)].flatten(0, 1)


def answering(rows: Rows, dim: int) -> Affine:
    """How a layer's outputs answer an error of what it reads: the map of them that comes nearest to what is wanted."""
    seen, held = _moments(rows, rows.targets(None), _SEEN)
    eye = torch.eye(rows.y.shape[1], dtype=torch.float64, device=rows.y.device)[None]
    found = solve(seen, held, eye, weights=rows.slope.square()[None])
    return _renewed(rows, found, dim)


def _renewed(rows: Rows, found: Solution, dim: int) -> Affine:
    """The same once targets behind a rectifier were renewed."""
    assert found.bias is not None, "a constant is fitted"
    now = Affine(found.weight[0], found.bias[0], dim)
    if rows.ceiling is None or found.ridge == float("inf"):
        return now
    for _ in range(ROUNDS):
        now = nearest(rows, found.normal, now, dim)
    return now


def nearest(rows: Rows, normal: Normal, now: Affine | None, dim: int) -> Affine:
    """The map whose outputs come nearest to what is wanted, given what they are ``now``."""
    targets = rows.targets(now)
    mean = targets.mean(0, dtype=torch.float64)
    # The outputs were centred and factored once, so that a turn costs one product over the rows.
    crossed = (about(targets, mean).T @ rows.centred).double() / len(targets)
    weight = normal.solve(crossed[None])[0]
    return Affine(weight, mean - weight @ rows.mean, dim)


def about(rows: Tensor, mean: Tensor) -> Tensor:
    """Rows (N, n) about their mean, in the precision that products of so many columns are taken in."""
    kind = precision(rows.shape[1])
    return rows.to(kind) - mean.to(kind)


def _moments(rows: Rows, targets: Tensor, share: float) -> tuple[Moments, Moments]:
    """Moments of outputs and targets over the first share of the rows, and over the others."""
    first, count = Moments(), int(share * len(targets))
    first.add(rows.y[:count, None], targets[:count, None])
    others = Moments()
    if count < len(targets):
        others.add(rows.y[count:, None], targets[count:, None])
    return first, others
