"""Trained filters carried over into cheap operations, in closed form and without images.

a depthwise filter begins with the tap that brings the intrinsic filter nearest to the one it stands for
a pointwise convolution begins as the mixture of the intrinsic filters that is nearest to those it stands for
"""

from __future__ import annotations

import torch
from torch import Tensor


def projection(filters: Tensor, onto: Tensor) -> Tensor:
    """Row by row ``⟨w, v⟩ / ⟨v, v⟩``: (m, …), (m, …) → (m,); 1 where the intrinsic filter is zero."""
    # In half precision sums of squares overflow, or vanish.
    wide = torch.promote_types(filters.dtype, torch.float32)
    w, v = filters.flatten(1).to(wide), onto.flatten(1).to(wide)
    norm = torch.einsum("mi,mi->m", v, v)
    return torch.where(norm > 0, torch.einsum("mi,mi->m", w, v) / norm.clamp_min(1e-30), 1.0).to(filters.dtype)


def mixture(filters: Tensor, of: Tensor) -> Tensor:
    """The P nearest to filters ≈ P · of: (g, …), (m, …) → (g, m), in float64.

    A small ridge keeps it finite where filters are alike, or zero, or as many as their unknowns.
    """
    # The products take all the time and lose less in single precision than the ridge does; the solve is in double.
    wide = torch.promote_types(filters.dtype, torch.float32)
    w, v = filters.to(wide).flatten(1), of.to(wide).flatten(1)
    gram = (v @ v.T).double()
    ridge = gram.diagonal().mean().clamp_min(1e-30) * 1e-4
    eye = torch.eye(len(v), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * eye, (v @ w.T).double()).T


def factors(p: Tensor, rank: int) -> list[Tensor]:
    """[P], or for a rank above 0 the factors [B, A] of the A·B of that rank nearest to P."""
    if rank == 0:
        return [p]
    left, values, right = torch.linalg.svd(p, full_matrices=False)
    return [right[:rank], left[:, :rank] * values[:rank]]
