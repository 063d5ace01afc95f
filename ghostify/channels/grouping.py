"""What was followed, put in order: numbers that are tied, components, segments, and the coupling they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx

from ghostify.channels.coupling import Coupling, Segment, Vector, Weight
from ghostify.tracing import Traced

NONE = -1
"""The number of what is no channel: a constant, a map that belongs to all channels."""

Pairs = list[tuple[np.ndarray, np.ndarray]]


class Unreadable(Exception):
    """The channels cannot be followed; the message says where and through what, as the end of a sentence."""


@dataclass
class Use:
    """A parameter or buffer with the channels along one of its dimensions."""

    name: str
    """Qualified name."""
    dim: int
    channels: np.ndarray
    """A number per element along ``dim``; of a grouped filter's own inputs, numbers of the first group's."""
    entry: bool = False
    """Whether they are the channels of a block's input, read directly."""
    lanes: bool = False
    """Whether ``channels`` are the inputs of the first group alone, of which each group keeps as many."""


@dataclass
class Selection:
    """A buffer of indices, by which the code selects some of the channels of a tensor."""

    name: str
    """Qualified name."""
    channels: np.ndarray
    """The numbers of what is selected from, in order."""


@dataclass
class Read:
    """One use of a weight, in numbers; ``Weight`` tells the fields."""

    block: int
    out: np.ndarray
    reads: np.ndarray | None = None
    lanes: int = 1
    entry: bool = False
    area: int = 1
    positions: int = 0
    outputs: int = 0
    params: bool = True
    layer: str = ""


@dataclass
class Channels:
    """What was followed: numbers per node, the uses of every parameter, and the ties."""

    traced: Traced
    nodes: list[fx.Node]
    entry: fx.Node
    ids: dict[fx.Node, Any]
    """For each node a tensor of numbers, or a list of them where it gives several tensors."""
    uses: list[Use]
    selections: list[Selection]
    roots: np.ndarray
    """By number, the smallest number tied to it one by one; ``NONE`` at its own place (the last)."""
    components: np.ndarray
    """By number, the component: what is kept or dropped as one."""
    lane: np.ndarray
    """By number, the place within its group of a grouped convolution, or -1."""
    segment_of: dict[int, int]
    """By component, its segment."""
    coupling: Coupling
    ends: list[np.ndarray]
    """Numbers of the tensors between the blocks, as ``coupling.ends``."""
    members: list[np.ndarray]
    """Components of each segment, in the order of their first channel."""
    closed: tuple[str, ...] = ()
    """G-Ghost stages, which cut and join channels by numbers of their own; what they read and give is kept."""
    idle: tuple[str, ...] = ()
    """Modules of a whole network that ran in none of its runs; what they may read keeps its channels."""

    def strengths(self) -> Callable[[int], float]:
        """How strong a component is: the squared weights of all filters that make its channels."""
        score = np.zeros(len(self.roots))
        for use in self.uses:
            owner, _, name = use.name.rpartition(".")
            tensor = getattr(self.traced.part(owner), name)
            if use.dim == 0 and tensor.dim() > 1 and not tensor.is_meta:
                # filters of all layers that make a channel count: of a residual stream, those of every block that adds
                # to it
                norms = tensor.detach().double().flatten(1).square().sum(1).cpu().numpy()
                np.add.at(score, self.components[use.channels], norms)
        return lambda component: float(score[component])

    def width(self, node: fx.Node, kept: np.ndarray) -> int:
        """How many channels of a node's tensor are kept, along the one dimension in which they lie."""
        ids = self.ids[node]
        return max(int(kept[along(ids, dim)].sum()) for dim in range(ids.dim()) if not constant_along(ids, dim))

    def outputs_kept(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """By module with a weight, which of its outputs are ``kept``."""
        return {
            use.name.removesuffix(".weight"): np.flatnonzero(kept[use.channels])
            for use in self.uses
            if use.dim == 0 and use.name.endswith(".weight")
        }

    def kept(self, counts: Sequence[int], lanes: float = 1.0, rank: Callable[[int], float] | None = None) -> np.ndarray:
        """By number, whether it is kept, with so many components of each segment: the first, or those ranked highest.

        ``rank`` scores a component.  The last entry stands for ``NONE``, which is always kept.
        """
        chosen = np.zeros(len(self.roots), dtype=bool)
        for segment, (count, members) in enumerate(zip(counts, self.members, strict=True)):
            ordered = members if rank is None else np.array(sorted(members, key=lambda one: -rank(int(one))), dtype=int)
            picked = np.sort(ordered[:count])
            mask = np.isin(self.components, picked)
            width = self.coupling.segments[segment].lanes
            if width and lanes != 1.0:
                # of each group that is kept the same places go, because a grouped filter has one width for all groups
                mask &= self.lane[self.roots] < max(1, int(lanes * width))
            chosen |= mask
        # components in no segment were fixed from the beginning, and are kept whatever is asked for
        fixed = ~np.isin(self.components, np.fromiter(self.segment_of, dtype=int, count=len(self.segment_of)))
        chosen |= fixed
        chosen[NONE] = True
        return chosen


@dataclass
class Ties:
    """What following a part of a graph found out about its numbers."""

    count: int
    """How many numbers there are."""
    one_by_one: Pairs
    """Numbers that are the same channel."""
    grouped: Pairs
    """Numbers that are kept or dropped together: of one group of a grouped convolution, or of a norm."""
    lanes: Pairs
    """Numbers and their places within a group of a grouped convolution."""
    producers: list[np.ndarray]
    """Numbers of the tensors whose width may be chosen."""
    marks: list[np.ndarray]
    """Sets of numbers to be told apart: the pieces that code cuts a tensor into."""
    fixed: list[np.ndarray]
    """Numbers that stay."""
    through: list[np.ndarray]
    """Numbers of the tensors that no path goes around."""


class Resolved:
    """Components and segments."""

    def __init__(self, ties: Ties) -> None:
        self.ties = ties
        self.roots = _connected(ties.count, ties.one_by_one)
        self.lane = self._lanes()
        self.components = _connected(ties.count, [*ties.one_by_one, *ties.grouped])
        self.segment_of: dict[int, int] = {}
        self.members: list[np.ndarray] = []
        self._segment = np.full(ties.count + 1, NONE)
        self._vectors: dict[int, Vector] = {}
        self._divide()

    def coupling(
        self, reads: Iterable[Read], ends: Iterable[np.ndarray], shortcuts: Iterable[bool], ordered: bool
    ) -> Coupling:
        """The same in names and numbers."""
        lane = self.lane[self.roots]
        widths = np.zeros(self.ties.count + 1, dtype=int)
        np.maximum.at(widths, self.components, lane + 1)
        return Coupling(
            segments=tuple(self._segment_of(group, widths) for group in self.members),
            producers=tuple(dict.fromkeys(self._vector(numbers) for numbers in self.ties.producers)),
            weights=tuple(self._weight(read) for read in reads),
            ends=tuple(self._vector(numbers) for numbers in ends),
            shortcuts=tuple(shortcuts),
            ordered=ordered,
        )

    def _segment_of(self, group: np.ndarray, widths: np.ndarray) -> Segment:
        """The segment of these components; ``widths`` are lanes by component."""
        through = any(np.isin(group, self.components[numbers[numbers >= 0]]).any() for numbers in self.ties.through)
        return Segment(size=len(group), lanes=int(widths[group].max()), through=through)

    def _lanes(self) -> np.ndarray:
        lane = np.full(self.ties.count + 1, NONE)
        for numbers, places in self.ties.lanes:
            known = lane[self.roots[numbers]]
            if ((known >= 0) & (known != places)).any():
                raise Unreadable("two grouped convolutions share channels in different places of their groups")
            lane[self.roots[numbers]] = places
        return lane

    def _divide(self) -> None:
        """Components into segments, by where they occur: in the same tensors, as often."""
        ties, count = self.ties, self.ties.count
        fixed = {int(one) for numbers in ties.fixed for one in np.unique(self.components[numbers[numbers >= 0]])}
        # A sum of random salts, one for each tensor a component occurs in, times how often: two components get the same
        # sum (but by a chance of 2^-64) only if they occur in the same tensors as often, which makes them alike.
        signature = np.zeros(count, dtype=np.uint64)
        random = np.random.default_rng(0)
        for numbers in [*ties.producers, *ties.marks]:
            salt = random.integers(1, 2**63, dtype=np.uint64)
            inside = self.components[numbers[numbers >= 0]]
            signature += np.bincount(inside, minlength=count).astype(np.uint64) * salt
        ones = np.array([one for one in np.unique(self.components[:count]) if one not in fixed], dtype=int)
        if not len(ones):
            return
        _, first, group = np.unique(signature[ones], return_index=True, return_inverse=True)
        # segments are numbered by their first component, so that a plan does not depend on the salts
        order = np.argsort(np.argsort(first))
        self.segment_of = dict(zip(ones.tolist(), order[group].tolist(), strict=True))
        self._segment[ones] = order[group]
        self.members = [ones[order[group] == segment] for segment in range(len(first))]

    def _vector(self, numbers: np.ndarray) -> Vector:
        known = self._vectors.get(id(numbers))
        if known is None:
            known = self._vectors[id(numbers)] = self._made_vector(numbers)
        return known

    def _made_vector(self, numbers: np.ndarray) -> Vector:
        ones, times = np.unique(self.components[numbers[numbers >= 0]], return_counts=True)
        segments = self._segment[ones]
        parts = []
        for segment in np.unique(segments[segments >= 0]):
            each = times[segments == segment]
            if each.min() != each.max():
                raise Unreadable("channels of one kind occur unequally often in a tensor")
            parts.append((int(segment), int(each[0])))
        return Vector(fixed=int((numbers < 0).sum() + times[segments < 0].sum()), parts=tuple(parts))

    def _weight(self, read: Read) -> Weight:
        return Weight(
            block=read.block,
            out=self._vector(read.out),
            reads=self._vector(read.reads) if read.reads is not None else None,
            lanes=read.lanes,
            entry=read.entry,
            area=read.area,
            positions=read.positions,
            outputs=read.outputs,
            params=read.params,
            layer=read.layer,
        )


def _connected(count: int, pairs: Pairs) -> np.ndarray:
    """By number, the smallest number connected to it; one more entry at the end stands for ``NONE``."""
    label = np.arange(count + 1)
    if not pairs:
        return label
    # Connected components without a loop over numbers: each takes the smallest label among its neighbours, and labels
    # are followed to their own labels, until nothing changes; chains of ties halve at each step.
    left = np.concatenate([a for a, _ in pairs])
    right = np.concatenate([b for _, b in pairs])
    known = (left >= 0) & (right >= 0)
    left, right = left[known], right[known]
    while True:
        low = np.minimum(label[left], label[right])
        before = label.copy()
        np.minimum.at(label, label[left], low)
        np.minimum.at(label, label[right], low)
        np.minimum.at(label, left, low)
        np.minimum.at(label, right, low)
        while not np.array_equal(label, label[label]):
            label = label[label]
        if np.array_equal(before, label):
            return label


def constant_along(ids: Tensor, dim: int) -> bool:
    if ids.shape[dim] == 1 or ids.stride(dim) == 0:
        return True
    small = ids[tuple(slice(0, 1) if ids.stride(d) == 0 else slice(None) for d in range(ids.dim()))]
    return bool((small == small.narrow(dim, 0, 1)).all())


def along(ids: Tensor, dim: int) -> np.ndarray:
    """The numbers of a tensor along a dimension, at the first place of every other."""
    for other in range(ids.dim()):
        ids = ids if other == dim else ids.narrow(other, 0, 1)
    return ids.reshape(-1).numpy()
