"""Coupling: the channels of a part of a network as numbers, and what the part costs with some of them left out.

Channels that can only be kept or dropped together (the two sides of an addition, a group of a grouped convolution)
are one *component*.  Components that occur in the same places are alike, and a *segment* is all that are: of a segment
only the number kept matters for the cost.  A *vector* is the channels of one tensor, told by segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost

Lanes = float | Sequence[float]
"""Share of a group that grouped convolutions keep: of all segments, or of each."""


class Vector(BaseModel):
    """The channels of one tensor: some that are always kept, and so many per component of some segments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed: int = 0
    parts: tuple[tuple[int, int], ...] = ()
    """(segment, channels per component)"""


class Segment(BaseModel):
    """Components that are alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    """Number of components."""
    lanes: int = 0
    """Channels of a component on either side of the grouped convolution that ties them; 0 where none does."""
    through: bool = False
    """Whether a tensor holds them that no path goes around: all that comes later is computed from it alone."""


class Weight(BaseModel):
    """One use of a parameter: what it counts is the product of its sides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: int
    """Which of the blocks followed it belongs to, from 0."""
    out: Vector
    reads: Vector | None = None
    """Channels one filter reads; None for depthwise and grouped filters and for vectors (a norm's, a bias)."""
    lanes: int = 1
    """Channels one filter of a grouped convolution reads, where ``reads`` is None."""
    entry: bool = False
    """Whether it reads the block's input itself."""
    area: int = 1
    """Size of the kernel, k·k'."""
    positions: int = 0
    """Output positions each weight is multiplied at; 0 where nothing is multiplied and accumulated."""
    outputs: int = 0
    """Output positions that are activations in the papers' sense (a convolution's); 0 for what is none."""
    params: bool = True
    """Whether its parameters count here; not where another use has counted them."""
    layer: str = ""
    """The module that was called or, of a function, that holds the parameter (of the root, the parameter itself); none
    for a product of two tensors."""

    @cached_property
    def segments(self) -> frozenset[int]:
        """Those that it makes or reads channels of."""
        return frozenset(segment for side in (self.out, self.reads) if side for segment, _ in side.parts)


class Coupling(BaseModel):
    """A run of blocks with the segments of channels they share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    segments: tuple[Segment, ...]
    producers: tuple[Vector, ...]
    """Every tensor whose width may be chosen: of the input, and of each convolution or linear layer."""
    weights: tuple[Weight, ...]
    ends: tuple[Vector, ...]
    """The tensors between the blocks: the input of the first, then the output of each."""
    shortcuts: tuple[bool, ...] = ()
    """For each block, whether anything but convolutions and linear layers reads its input."""
    ordered: bool = False
    """Whether a filter slides over the channels, which works with the first of them only."""

    def width(self, vector: Vector, kept: Sequence[int] | None = None, lanes: Lanes = 1.0) -> int:
        """Channels of ``vector`` with so many components of each segment kept, and of a group so large a share."""
        return vector.fixed + sum(
            self._channels(segment, each, lanes) * (self.segments[segment].size if kept is None else kept[segment])
            for segment, each in vector.parts
        )

    def keep(self, target: Callable[[int], int], lanes: float = 1.0, apart: bool = False, step: int = 1) -> list[int]:
        """How many components of each segment to keep, that a tensor of w channels keeps about ``target(w)``.

        Narrow tensors choose first; of a wider one that holds their channels too, the rest is shared out evenly.  With
        ``apart``, channels that are always kept count for nothing: w are the others.  Something is kept of each
        segment; where that makes a tensor wider than its target, it is rounded up to a multiple of ``step``.
        """
        kept: dict[int, int] = {}
        for vector in sorted(self.producers, key=self.width):
            # what narrower tensors have decided already; the rest of the target is for the segments still free
            known = sum(self._channels(s, each, lanes) * kept[s] for s, each in vector.parts if s in kept)
            free = [(s, each) for s, each in vector.parts if s not in kept]
            stays = vector.fixed if apart else 0
            wanted = target(self.width(vector) - stays) + stays
            least = vector.fixed + known + sum(self._channels(s, each, lanes) for s, each in free)
            # one component of each free segment is the least; a target below that is raised, in steps of a legal width
            if wanted < least:
                wanted = min(self.width(vector), math.ceil((least - stays) / step) * step + stays)
            left = wanted - vector.fixed - known
            whole = self.width(Vector(parts=tuple(free)))
            for segment, each in free:
                size = self.segments[segment].size
                # in integers and rounded down, so that the shares together never exceed the target
                share = left * size * each // (whole * max(1, self._channels(segment, each, lanes)))
                kept[segment] = min(size, max(1, share))
        return [kept.get(index, segment.size) for index, segment in enumerate(self.segments)]

    def cost(self, block: int, kept: Sequence[int], lanes: Lanes = 1.0) -> Cost:
        """What a block costs with so many components of each segment kept."""
        return self.cost_of(self._of_block(block), kept, lanes)

    def widened(self, block: int, kept: Sequence[int], lanes: Lanes = 1.0) -> Cost:
        """What a block costs that reads all channels of its input where a convolution does, and else is thin."""
        weights = self._of_block(block)
        return self._cost(
            weights, lambda vector: self.width(vector, kept, lanes), lambda vector: self.width(vector), lanes
        )

    def narrowed(self, block: int, kept: Sequence[int], lanes: Lanes = 1.0) -> Cost:
        """What a block costs that reads a thin input where a convolution does, and else has its full width."""
        weights = self._of_block(block)
        return self._cost(
            weights, lambda vector: self.width(vector), lambda vector: self.width(vector, kept, lanes), 1.0
        )

    def shared(
        self, shares: Sequence[float], lanes: Sequence[float], weights: Sequence[Weight] | None = None
    ) -> tuple[float, float]:
        """MACs and parameters where of each segment so large a share is kept, unrounded; of some ``weights`` or all."""
        macs, params = 0.0, 0.0
        for weight in self.weights if weights is None else weights:
            each = weight.lanes * self._group_share(weight, lanes)
            size = self._share(weight.out, shares) * weight.area
            size *= each if weight.reads is None else self._share(weight.reads, shares)
            macs += size * weight.positions
            params += size * weight.params
        return macs, params

    def cost_of(self, weights: Sequence[Weight], kept: Sequence[int], lanes: Lanes = 1.0) -> Cost:
        """What some of the weights cost with so many components of each segment kept."""
        return self._cost(weights, lambda vector: self.width(vector, kept, lanes), None, lanes)

    def of_layer(self, name: str) -> list[Weight]:
        """The uses of a layer's parameters, that of its filters first."""
        return [weight for weight in self.weights if weight.layer == name]

    def touching(self, segments: Collection[int]) -> list[Weight]:
        """The weights that make or read channels of some segments."""
        return [weight for weight in self.weights if not weight.segments.isdisjoint(segments)]

    def _of_block(self, block: int) -> list[Weight]:
        return [weight for weight in self.weights if weight.block == block]

    def _cost(
        self,
        weights: Sequence[Weight],
        of: Callable[[Vector], int],
        of_entry: Callable[[Vector], int] | None,
        lanes: Lanes,
    ) -> Cost:
        params, macs, acts = 0, 0, 0
        for weight in weights:
            out = of(weight.out)
            read = (of_entry or of) if weight.entry else of
            each = read(weight.reads) if weight.reads else self.lanes_read(weight, lanes)
            size = out * each * weight.area
            params += size * weight.params
            macs += size * weight.positions
            acts += out * weight.outputs
        return Cost(params=params, macs=macs, acts=acts)

    def _share(self, vector: Vector, shares: Sequence[float]) -> float:
        """Channels of ``vector`` with so large a share of each segment."""
        return vector.fixed + sum(
            shares[segment] * each * self.segments[segment].size for segment, each in vector.parts
        )

    def lanes_read(self, weight: Weight, lanes: Lanes) -> int:
        """Channels a filter of a grouped convolution reads with such a share of each group kept."""
        return max(1, int(self._group_share(weight, lanes) * weight.lanes))

    def _group_share(self, weight: Weight, lanes: Lanes) -> float:
        """The share of a group that a weight keeps; 1 where it makes no channels of groups that may be thinned."""
        grouped = (segment for segment, _ in weight.out.parts if self.segments[segment].lanes)
        segment = next(grouped, None)
        return 1.0 if segment is None else _of_segment(segment, lanes)

    def _channels(self, segment: int, each: int, lanes: Lanes) -> int:
        return max(1, int(_of_segment(segment, lanes) * each)) if self.segments[segment].lanes else each


def _of_segment(segment: int, lanes: Lanes) -> float:
    return lanes[segment] if isinstance(lanes, Sequence) else lanes
