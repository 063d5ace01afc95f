"""Runs: blocks alike in a row, and the first block before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from ghostify.names import parent_of, within
from ghostify.running import is_conv, op_name
from ghostify.stages.flow import Flow
from ghostify.stages.pieces import Chain, Kinds, Span
from ghostify.stages.stage import MIN_BLOCKS, Shape

MAX_PERIOD = 3
_POINTWISE = "dense 1x1"


def runs(chain: Chain) -> list[list[Span]]:
    """Disjoint runs of at least three blocks, those that cover most pieces first, then the shorter period."""
    chosen: list[list[Span]] = []
    free = set(range(len(chain.pieces)))
    for _, _, first, blocks in sorted(_candidates(chain), key=lambda candidate: candidate[:3]):
        # a run may do without its entry, if another run has taken that already
        entry = len(blocks[0]) if blocks[0][-1] < first else 0
        if entry and not free.issuperset(blocks[0]):
            blocks = blocks[1:]
        pieces = {piece for block in blocks for piece in block}
        if len(blocks) >= MIN_BLOCKS and pieces <= free:
            free -= pieces
            chosen.append([_joined([chain.pieces[piece] for piece in block]) for block in blocks])
    return chosen


def _candidates(chain: Chain) -> Iterator[tuple[int, int, int, list[range]]]:
    """(minus the pieces covered, period, first piece of the run, pieces of each block), the entry among the blocks."""
    for period in range(1, MAX_PERIOD + 1):
        lengths: dict[int, int] = {}
        groups = {first: _group(chain, first, period) for first in range(len(chain.pieces) - period + 1)}
        # from the end, so that the length of the run that goes on after a group is known when the group is met
        for first in reversed(groups):
            group, after = groups[first], groups.get(first + period)
            if group is not None and _is_block(chain, group) and not _repeats(chain, first, period):
                continues = first + period in lengths and after is not None and _alike(chain, group, after)
                lengths[first] = 1 + (lengths[first + period] if continues else 0)
        for first, length in lengths.items():
            blocks = [range(first + i * period, first + (i + 1) * period) for i in range(length)]
            entry = _entry(chain, first, groups[first])
            blocks = [entry, *blocks] if entry else blocks
            # sorted by these: the most pieces first, then the shorter period, then the earlier start
            yield -sum(map(len, blocks)), period, first, blocks


def _group(chain: Chain, first: int, size: int) -> Span | None:
    """Pieces ``first`` on, ``size`` of them, as one; None if something lies between them."""
    pieces = chain.pieces[first : first + size]
    return _joined(pieces) if all(a.end == b.start for a, b in pairwise(pieces)) else None


def _joined(pieces: list[Span]) -> Span:
    return Span(pieces[0].start, pieces[-1].core, pieces[-1].end, sum((piece.kinds for piece in pieces), Counter()))


def _is_block(chain: Chain, group: Span) -> bool:
    """One map in, one of the same shape out (channels first), and a spatial convolution at that resolution."""
    shape = chain.shapes[group.end]
    spatial = any("x" in kind and set(kind.split()[1].split("x")) != {"1"} for kind in group.kinds)
    if not spatial or len(shape) < 4 or chain.shapes[group.start] != shape:
        return False
    nodes = chain.nodes(group.start, group.end)
    return chain.flow.written.isdisjoint(nodes) and _is_resolution(chain.flow, nodes, shape[2:])


def _repeats(chain: Chain, first: int, period: int) -> bool:
    """Whether a block of several pieces is a smaller one several times over."""
    pieces = chain.pieces[first : first + period]
    shapes = {chain.shapes[i] for piece in pieces for i in (piece.start, piece.end)}
    return period > 1 and len(shapes) == 1 and all(piece.kinds == pieces[0].kinds for piece in pieces)


def _is_resolution(flow: Flow, region: list[int], maps: Shape) -> bool:
    return any(flow.shape(i)[2:] == maps and is_conv(op_name(flow.traced, flow.nodes[i])) for i in region)


def _alike(chain: Chain, one: Span, other: Span) -> bool:
    return one.end == other.start and chain.shapes[one.end] == chain.shapes[other.end] and one.kinds == other.kinds


def _entry(chain: Chain, first: int, block: Span | None) -> range | None:
    """The fewest pieces before piece ``first`` that match the block's convolutions."""
    flow = chain.flow
    for size in range(1, min(first, 2 * MAX_PERIOD) + 1):
        group = _group(chain, first - size, size)
        if group is None or block is None or group.end != block.start:
            return None
        if group.kinds == block.kinds or (size == 1 and _matches(group.kinds, block.kinds)):
            readable = flow.written.isdisjoint(chain.nodes(group.start, group.end)) and chain.shapes[group.start]
            return range(first - size, first) if readable and not _is_stem_apart(chain, group, block) else None
    return None


def _is_stem_apart(chain: Chain, entry: Span, block: Span) -> bool:
    """Whether an entry is the network's first layer, outside the module that the block lies in."""
    flow = chain.flow
    return chain.at[entry.start] not in flow.fed and not within(
        flow.home(chain.nodes(entry.start, entry.core)), parent_of(flow.home(chain.nodes(block.start, block.core)))
    )


def _matches(entry: Kinds, block: Kinds) -> bool:
    """Whether an entry has the block's convolutions, and beyond them fewer again and one projection by its shortcut."""
    extra = entry - block
    # one projection in the shortcut may be there beyond the block's own convolutions, of a kind the block has not
    foreign = [kind for kind in extra.elements() if kind not in block]
    projected = len(foreign) <= 1 and all(kind.startswith("dense") for kind in foreign)
    return block <= entry and projected and extra.total() - max(len(foreign), extra[_POINTWISE] > 0) < block.total()


def fitted(chain: Chain, runs: list[list[Span]]) -> Iterator[list[Span]]:
    """Each run with its weightless ends fitted to the modules that hold it."""
    end = 0
    for spans in sorted(runs, key=lambda spans: spans[0].start):
        spans = _trimmed(chain, spans)
        spans[0] = _led(chain, spans[0], end)
        end = spans[-1].end
        yield spans


def _trimmed(chain: Chain, spans: list[Span]) -> list[Span]:
    """With the last block's weightless end cut where its module ends, else where the module around the stage does."""
    *others, last = spans
    flow, home = chain.flow, chain.flow.home(chain.nodes(spans[0].start, last.core))
    ends = [i for i in range(last.core, last.end + 1) if chain.shapes[i] == chain.shapes[last.core]]
    whole = [end for end in ends if len(region := chain.nodes(last.start, end)) > 1 and flow.exact(region)]
    around = [end for end in ends if within(flow.home(chain.nodes(last.start, end)), home)]
    return [*others, replace(last, end=max(whole or around))]


def _led(chain: Chain, block: Span, free: int) -> Span:
    """With the weightless start of its module (a norm before the convolutions and the shortcut) if that is free."""
    for start in range(block.start - 1, free - 1, -1):
        if chain.kinds[start + 1]:
            break
        if len(chain.shapes[start]) > 2 and chain.flow.exact(chain.nodes(start, block.end)):
            return replace(block, start=start)
    return block
