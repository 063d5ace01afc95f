"""Blocks: which segments of channels lie inside one block, for each block to be narrowed by itself.

Segments are of one block when a weight reads the one and makes the other (the two inner widths of a bottleneck, an
expanded width and that of its gate), or when one layer makes both.  The channels of a residual stream are no segments
where it is kept, so that the branches around it fall apart.  A tensor that no path goes around is the way from one
block to the next: in a chain of layers each segment is a block of its own, and so is the stem of a residual network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from ghostify.channels.coupling import Coupling
from ghostify.names import common, within


class InnerBlock(NamedTuple):
    """The channels inside one block of a network, in names and numbers."""

    name: str
    """The module that holds all that makes or reads them and no other block, else the layer that makes the first."""
    makers: tuple[str, ...]
    """By segment, the layer that makes its channels."""
    segments: tuple[int, ...]
    """In the order in which they are made."""
    layers: tuple[str, ...]
    """Every layer that makes or reads them."""


def inner_blocks(coupling: Coupling) -> list[InnerBlock]:
    """The blocks of a network whose coupling was followed as a whole, in the order in which they run."""
    makers = _makers(coupling)
    groups: dict[int, list[int]] = {}
    for segment, label in _labels(coupling, makers).items():
        groups.setdefault(label, []).append(segment)
    found = [_block(coupling, makers, segments) for segments in groups.values()]
    return [block._replace(name=_name(block, found)) for block in found]


def _makers(coupling: Coupling) -> dict[int, str]:
    """By segment, the layer of the first weight that makes its channels, in the order in which they run."""
    makers: dict[int, str] = {}
    for weight in coupling.weights:
        for segment, _ in weight.out.parts:
            makers.setdefault(segment, weight.layer)
    return makers


def _labels(coupling: Coupling, makers: dict[int, str]) -> dict[int, int]:
    """By segment, in the order in which they are made, the label of its block."""
    labels = {segment: segment for segment in makers}
    for one, other in _together(coupling, makers):
        old, new = labels[one], labels[other]
        labels = {segment: new if label == old else label for segment, label in labels.items()}
    return labels


def _together(coupling: Coupling, makers: dict[int, str]) -> Iterator[tuple[int, int]]:
    """Pairs of segments that lie in one block."""
    first: dict[str, int] = {}
    for segment, maker in makers.items():
        yield segment, first.setdefault(maker, segment)
    for weight in coupling.weights:
        made, read = (_around(coupling, side.parts if side else ()) for side in (weight.out, weight.reads))
        yield from product(made, read)


def _around(coupling: Coupling, parts: Sequence[tuple[int, int]]) -> list[int]:
    """The segments that some path goes around."""
    return [segment for segment, _ in parts if not coupling.segments[segment].through]


def _block(coupling: Coupling, makers: dict[int, str], segments: Sequence[int]) -> InnerBlock:
    layers = dict.fromkeys(weight.layer for weight in coupling.touching(segments) if weight.layer)
    alone = coupling.segments[segments[0]].through
    name = makers[segments[0]] if alone else common(layers)
    return InnerBlock(name, tuple(makers[segment] for segment in segments), tuple(segments), tuple(layers))


def _name(block: InnerBlock, blocks: Sequence[InnerBlock]) -> str:
    """A block's name, where it names a module and no other block lies in that; else its first layer's."""
    others = (maker for other in blocks if other is not block for maker in other.makers)
    if not block.name or any(within(maker, block.name) for maker in others):
        return block.makers[0]
    return block.name
