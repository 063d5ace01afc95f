"""The least squares between a layer's n outputs and what they should be, solved again as targets are renewed.

    y ← B y + b           B = I + cov(t − y, u) (cov(u) + ρ s̄ I)⁻¹ Qᵀ        u = Qᵀ (y − E y), with Q (n, k)

A layer that is fitted anew may give any linear map of what it reads.  Those that are combinations of what it gives
already cost n² products a position, whatever it reads (asymmetric response reconstruction: Zhang et al. 2015), and say
as much about what can be made good as is needed here.

Fewer positions than outputs, as behind the last strides, span fewer dimensions: Q is a basis of these, and all squares
and cubes are of k in place of n.  Otherwise Q is the identity.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ghostify.harm.rows import Affine, Rows, about
from ghostify.leastsquares.moments import RIDGES, Moments, best_strength, factored, squared

_SEEN = 3 / 4
"""The share of the positions that solves are made of where others choose how strong a ridge is."""
_JUDGES = 64
"""Outputs by which it is chosen, evenly spread over all of them."""
_ROUNDS = 1
"""How often targets are renewed in an answer.  Three times, as in a fit, moves few harms by over 3 %, none by 7."""


class Regression:
    """Maps of a call's outputs, each at the price of one product over its rows; what is squared is factored once."""

    def __init__(self, rows: Rows, strength: float) -> None:
        """``strength``: ρ, of the ridge that leads to the identity."""
        self.rows, self.strength = rows, strength

    @cached_property
    def _factor(self) -> Tensor:
        u = self.rows.spanning
        return factored(squared(u[None]).double() / len(u), self.strength)[0]

    def nearest(self, now: Affine | None, dim: int) -> Affine:
        """The map whose outputs come nearest to what is wanted, given what they are ``now``."""
        rows = self.rows
        # What differs is small beside the outputs, so that single precision loses less of it.
        differs = rows.targets(now) - rows.y
        mean = differs.mean(0, dtype=torch.float64)
        crossed = (about(differs, mean).T @ rows.spanning).double() / len(differs)
        more = torch.cholesky_solve(crossed.T, self._factor).T
        more = more if rows.basis is None else more @ rows.basis.double().T
        matrix = more + torch.eye(len(mean), dtype=more.dtype, device=more.device)
        return Affine(matrix, mean - more @ rows.mean, dim)


def answering(rows: Rows, dim: int) -> Affine | None:
    """How a layer's outputs answer an error of what it reads: the map of them that comes nearest to what is wanted.

    None where no map is nearer, on positions that it was not made of, than what the layer gives by itself.
    """
    strength = _strength(rows)
    if strength is None:
        return None
    found = Regression(rows, strength)
    now = found.nearest(None, dim)
    for _ in range(_ROUNDS if rows.ceiling is not None else 0):
        now = found.nearest(now, dim)
    return now


def _strength(rows: Rows) -> float | None:
    """The ridge with which a solve of most of the rows does best on the others, by some of the outputs."""
    n = rows.y.shape[1]
    judges = torch.arange(0, n, -(-n // _JUDGES), device=rows.y.device)
    differs = (rows.targets(None) - rows.y)[:, judges]
    count = int(_SEEN * len(differs))
    seen, held = Moments(), Moments()
    seen.add(rows.spanning[:count, None], differs[:count, None])
    held.add(rows.spanning[count:, None], differs[count:, None])
    start = torch.zeros(1, len(judges), rows.spanning.shape[1], dtype=torch.float64, device=rows.y.device)
    index, before, error = best_strength(seen, held, start, rows.slope[judges].square().double()[None])
    return RIDGES[index] if error <= before else None
