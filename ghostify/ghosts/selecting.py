"""Channels put in an order, on maps of any memory format.

torch's ``index_select`` gives up ``channels_last`` (and is several times slower on it than on rows of channels), and so
does concatenation by groups.  These functions ask their maps for the format, which ``torch.fx`` cannot trace: who uses
one calls ``torch.fx.wrap`` on its name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def selected(x: Tensor, indices: Tensor, dim: int = 1) -> Tensor:
    """The channels, which lie along ``dim``, that ``indices`` name: (N, c, H, W), (n,) → (N, n, H, W)"""
    if not _channels_last(x, dim):
        return x.index_select(dim, indices)
    end = x.dim() - 1  # told by its number: an exporter may write -1 into a file as it is
    last = x.movedim(dim, end)
    return last.flatten(0, -2).index_select(1, indices).unflatten(0, last.shape[:-1]).movedim(end, dim)


class FirstChannels(nn.Module):
    """The first ``width`` channels: (N, c, H, W) → (N, width, H, W)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.narrow(1, 0, self.width)

    def extra_repr(self) -> str:
        return str(self.width)


def interleaved(maps: list[Tensor], groups: int, dim: int, width: int | None = None) -> Tensor:
    """Tensors whose channels, along ``dim``, come in groups, concatenated group by group: s times (N, g·m, H, W) →
    (N, g·s·m, H, W), or (N, g·width, H, W) where each group is sliced.
    """
    # Told by their numbers, as above.
    place, end = dim % maps[0].dim(), maps[0].dim() - 1
    if _channels_last(maps[0], place):
        return _interleaved([y.movedim(place, end) for y in maps], groups, end, width).movedim(end, place)
    return _interleaved(maps, groups, place, width)


def _interleaved(maps: list[Tensor], groups: int, dim: int, width: int | None) -> Tensor:
    """``dim`` counts from the left."""
    merged = torch.cat([y.unflatten(dim, (groups, -1)) for y in maps], dim + 1)
    return (merged if width is None else merged.narrow(dim + 1, 0, width)).flatten(dim, dim + 1)


def _channels_last(x: Tensor, dim: int) -> bool:
    """Whether the channels are next to each other in memory, and not because there is nothing else."""
    return x.stride(dim) == 1 and not x.is_contiguous()
