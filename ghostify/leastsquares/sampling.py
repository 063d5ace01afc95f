"""Positions at which layers are compared, and what layers read and give there, as rows of a matrix.

convolution   (B, C, H, W), P positions of the output's map  →  values (B·P, C), patches (B·P, g, C/g·k·k')
linear layer  (B, …, C)                                      →  rows (P, C), (P, 1, C)
its ghost     (B, H, W, C), P positions of the map           →  values (B·P, C), and of its own maps as a convolution

Maps have one dimension, (B, C, L), two, or three, (B, C, T, H, W); k·k' stands for all of a kernel's sizes.

A layer that a network calls more than once meets every batch as often, perhaps with maps of other sizes: a ``Block`` is
one batch as one call meets it, and every call has positions of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostify.ghosts.narrowing import Conv, has_own_forward
from ghostify.leastsquares.own_forwards import call_of

_WORK = 1e10
"""Multiply-accumulates spent on one layer's moments, unless its unknowns want more positions."""
_LEAST, _MOST = 8192, 65536
"""Positions, from all images together."""
_PER_UNKNOWN = 4
_SPARSE = 3
"""Of what is computed to be sampled from, at most one in so many positions is used, where there are enough."""
_VALUES = 2**24
"""Target values kept at a time."""


def positions_wanted(features: int, targets: int) -> int:
    """How many positions are worth having for so many features and targets of one system."""
    worth = int(_WORK / (features * (features + targets)))
    return min(_MOST, max(_LEAST, _PER_UNKNOWN * features, min(worth, _VALUES // max(1, targets))))


class Positions:
    """Random positions of one layer's output, others in every batch, the same whenever asked for."""

    def __init__(
        self,
        shape: Sequence[int],
        wanted: int,
        batches: int,
        seed: int,
        channels: int,
        held: int = 0,
        most: float = math.inf,
        judged: int = 0,
    ) -> None:
        """``shape``: of a batch's output; ``channels``: its dimension of them, 1 of maps, 3 where they come last, -1 of
        linear layers.

        Of large maps, some of the ``batches`` are enough, and no more than ``most`` are used, at least one of which
        is of the last ``held``.  Behind them come ``judged`` others, of which as large a share is used.
        """
        self.last = channels == 3
        if self.last:
            shape = (shape[0], shape[3], *shape[1:3])
        self.maps = channels in (1, 3)
        self.width = shape[1] if self.maps else shape[-1]
        self.size = tuple(shape[2:]) if self.maps else ()
        rows = math.prod(self.size if self.maps else shape[:-1])
        images = shape[0] if self.maps else 1
        self.batches = _enough(batches, held, min(most, _SPARSE * wanted / (rows * images)))
        """The batches that are used to fit."""
        self.judged = list(range(batches, batches + math.ceil(judged * len(self.batches) / batches)))
        """The batches that are used to judge by."""
        self.each = min(rows, math.ceil(wanted / (len(self.batches) * images)))
        generator = torch.Generator().manual_seed(seed)
        # Drawn for all batches, also those not used: what is drawn for one must not depend on how many are.
        self.chosen = [torch.randperm(rows, generator=generator)[: self.each] for _ in range(batches + judged)]
        self.total = self.each * images * len(self.batches)

    def fewer(self, wanted: int) -> Positions:
        """Those of these that make up ``wanted`` positions from all batches, as many of every image; all of few."""
        some = copy.copy(self)
        some.each = min(self.each, math.ceil(wanted * self.each / self.total))
        some.chosen = [chosen[: some.each] for chosen in self.chosen]
        some.total = self.total // self.each * some.each
        return some

    def values(self, x: Tensor, batch: int) -> Tensor:
        """What stands there: (N, C)."""
        index = self.chosen[batch].to(x.device)
        if not self.maps:
            return x.reshape(-1, x.shape[-1])[index]
        x = x[:, :, None, None] if x.dim() == 2 else x.permute(0, 3, 1, 2) if self.last else x
        return _channels_last(x).index_select(1, index).flatten(0, 1)

    def patches(self, x: Tensor, layer: nn.Module, batch: int) -> Tensor:
        """What ``layer`` reads for it: (N, g, D), in the order of its weight's dimensions."""
        if isinstance(layer, nn.Linear):
            return self.values(x, batch)[:, None]
        assert isinstance(layer, Conv)
        places = self._places(batch, x.device)
        corners = [place * step for place, step in zip(places, layer.stride, strict=True)]
        taps = window(padded(x, layer), corners, layer.kernel_size, layer.dilation)
        # (B, P, C, k·k') → (B·P, g, C/g·k·k'): a group's channels with their taps, as a filter's weights lie.
        return taps.reshape(-1, layer.groups, taps.shape[2] // layer.groups * taps.shape[3])

    def shifts(self, y: Tensor, d: int, batch: int) -> Tensor:
        """The neighbourhood in every map of ``y``, d wide each way and zero outside of it: (N, C, d·d)."""
        dimensions = len(self.size)
        around = F.pad(y, (d // 2,) * (2 * dimensions))
        return window(around, self._places(batch, y.device), (d,) * dimensions, (1,) * dimensions).flatten(0, 1)

    def _places(self, batch: int, device: torch.device) -> Sequence[Tensor]:
        """The coordinates of the positions, (P,) by dimension of the map."""
        return torch.unravel_index(self.chosen[batch].to(device), self.size)


def _enough(batches: int, held: int, enough: float) -> list[int]:
    """``enough`` of the batches, in the proportion in which some are held out: two at least that are not, and one.

    Whoever wants fewer gets some of the same, so that the others need not be run yet.
    """
    free = batches - held
    count = min(free, max(2, math.ceil(enough * free / batches)))
    order = torch.randperm(free, generator=torch.Generator().manual_seed(0)).tolist()
    return [*sorted(order[:count]), *range(batches - math.ceil(held * count / free), batches)]


class Block(NamedTuple):
    """One batch as one call of a layer meets it."""

    batch: int
    call: int = 0


class Samples:
    """Positions of all calls of a layer, block by block."""

    def __init__(self, calls: Sequence[Positions], own: Collection[int] | None = None) -> None:
        """``own``: the batches that this process has; None for all."""
        self.calls, self.own = calls, own
        self._meant: Collection[int] = range(len(calls))
        self.total = sum(call.total for call in calls)
        """Positions of all processes."""
        self.blocks = self._mine([call.batches for call in calls])
        """Those that the fit is made of, or some of it is chosen by."""
        self.judged = self._mine([call.judged for call in calls])
        """Those that it is judged by."""

    @property
    def started(self) -> list[int]:
        """The batches of any block."""
        return sorted({block.batch for block in (*self.blocks, *self.judged)})

    def of_calls(self, calls: Collection[int]) -> Samples:
        """Those of some calls alone."""
        some = copy.copy(self)
        some._meant = calls
        some.blocks = [block for block in self.blocks if block.call in calls]
        some.judged = [block for block in self.judged if block.call in calls]
        some.total = sum(self.calls[call].total for call in calls)
        return some

    def fewer(self, wanted: int) -> Samples:
        """Those of these that make up ``wanted`` positions from all blocks; all of few."""
        some = copy.copy(self)
        some.calls = [call.fewer(math.ceil(wanted / len(self.calls))) for call in self.calls]
        some.total = sum(some.calls[call].total for call in self._meant)
        return some

    @property
    def first(self) -> Block:
        """The first block of all, be it this process's or another's."""
        return min(Block(self.calls[call].batches[0], call) for call in self._meant)

    @property
    def width(self) -> int:
        """The channels of what stands at a position."""
        return self.calls[0].width

    def _mine(self, batches: Sequence[Sequence[int]]) -> list[Block]:
        return [block for block in _blocks(batches) if self.own is None or block.batch in self.own]

    def each(self, block: Block) -> int:
        """How many positions every image of a block has."""
        return self.calls[block.call].each

    def values(self, x: Tensor, block: Block) -> Tensor:
        """What stands at a block's positions: (N, C)."""
        return self.calls[block.call].values(x, block.batch)

    def patches(self, x: Tensor, layer: nn.Module, block: Block) -> Tensor:
        """What ``layer`` reads for them: (N, g, D)."""
        return self.calls[block.call].patches(x, layer, block.batch)

    def shifts(self, y: Tensor, d: int, block: Block) -> Tensor:
        """Their neighbourhoods, d wide each way: (N, C, d·d)."""
        return self.calls[block.call].shifts(y, d, block.batch)


def _blocks(batches: Sequence[Sequence[int]]) -> list[Block]:
    """Blocks batch by batch, given the batches of every call."""
    used = sorted({batch for own in batches for batch in own})
    return [Block(batch, call) for batch in used for call, own in enumerate(batches) if batch in own]


def padded(x: Tensor, conv: Conv) -> Tensor:
    """The input as the convolution sees it, padding and all else that a forward of its own prepares it by included."""
    if has_own_forward(conv):
        call = call_of(conv, x)
        # A convolution names its padding from the first dimension on, ``F.pad`` from the last.
        return F.pad(call.input, [side for size in reversed(call.padding) for side in (size, size)])
    sides = list(conv._reversed_padding_repeated_twice)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, sides, mode=mode) if any(sides) else x


_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolved(x: Tensor, layer: nn.Module, filters: Tensor) -> Tensor:
    """What ``layer`` would give for x with other ``filters`` (of one shape with its own, be they more) and no bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, filters)
    assert isinstance(layer, Conv)
    convolve = _CONVOLVE[len(layer.kernel_size)]
    return convolve(padded(x, layer), filters, None, layer.stride, 0, layer.dilation, layer.groups)


def window(x: Tensor, corners: Sequence[Tensor], kernel: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(B, C, H, W) at windows with their first corners at P places, (P,) by dimension → (B, P, C, k·k')."""
    # A window is its first corner and the same steps from there everywhere: one index over flattened pixels each.
    pixels = _channels_last(x)
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(2, x.dim())]
    first = torch.stack([corner * stride for corner, stride in zip(corners, strides, strict=True)]).sum(0)
    steps = [spread * stride for spread, stride in zip(dilation, strides, strict=True)]
    offsets = product(*(range(0, size * step, step) for size, step in zip(kernel, steps, strict=True)))
    taps = [pixels.index_select(1, first + sum(offset)) for offset in offsets]
    return taps[0][..., None] if len(taps) == 1 else torch.stack(taps, 3)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C): so that what stands at a position lies together, and is fetched as one."""
    return x.movedim(1, -1).contiguous().flatten(1, -2)
