"""What layers give at sampled positions, and what they should give there for sums to be as the original's.

    z = a·y + c + r       y: a layer's n outputs; a, c: its norm's line; r: what is added (``fitting/agenda/epilogue``)

Behind a rectifier targets of y are renewed as in a fit (``fitting/kinds/targets``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from ghostify.fitting.agenda.epilogue import Epilogue, epilogue, line
from ghostify.fitting.sensitivity import metric
from ghostify.leastsquares.moments import precision
from ghostify.module_calls import given_by
from ghostify.scanning import Site
from ghostify.tracing import Traced

_POSITIONS, _PER_OUTPUT = 8192, 2
"""Positions from all images together: at least so many, and so many for each output."""


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

    def to(self, like: Tensor) -> Affine:
        """The same in another's precision, where it is."""
        return Affine(self.matrix.to(like), self.offset.to(like), self.dim)


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

    @cached_property
    def basis(self) -> Tensor | None:
        """Orthonormal columns that span all that the outputs vary by, (n, N); None where N is not less than n."""
        if len(self.y) >= self.y.shape[1]:
            return None
        return torch.linalg.qr(self.centred.T).Q

    @cached_property
    def spanning(self) -> Tensor:
        """The outputs about their mean, in that basis: (N, k), with k the smaller of N and n."""
        return self.centred if self.basis is None else self.centred @ self.basis

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


def about(rows: Tensor, mean: Tensor) -> Tensor:
    """Rows (N, n) about their mean, in the precision that products of so many columns are taken in."""
    kind = precision(rows.shape[1])
    return rows.to(kind) - mean.to(kind)
