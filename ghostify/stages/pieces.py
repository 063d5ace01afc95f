"""Pieces: regions that belong together, with the convolutions in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import fx

from ghostify.running import groups_of, is_conv, is_transposed, op_name, weight_node, weight_shape
from ghostify.stages.flow import Flow
from ghostify.stages.stage import Shape
from ghostify.tracing import Traced

_PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__imul__", "__rmul__"})

Kinds = Counter[str]


@dataclass
class Span:
    """From position ``start`` of a chain (the entry, outside) to ``end`` (the exit); weightless after ``core``."""

    start: int
    core: int
    end: int
    kinds: Kinds


class Chain:
    """A chain with what its regions are; region i lies between positions i - 1 and i."""

    def __init__(self, flow: Flow, at: list[int]) -> None:
        self.flow = flow
        self.at = at
        self.shapes = [flow.shape(index) for index in at]
        self.regions = [[], *(flow.between(a, b) for a, b in pairwise(at))]
        self.kinds = [kinds_of(flow, region, shape) for region, shape in zip(self.regions, self.shapes, strict=True)]
        self.pieces = self._pieces()

    def nodes(self, start: int, end: int) -> list[int]:
        return [index for region in self.regions[start + 1 : end + 1] for index in region]

    def _pieces(self) -> list[Span]:
        pieces: list[Span] = []
        for i in range(1, len(self.at)):
            previous = pieces[-1] if pieces and self.shapes[pieces[-1].core] == self.shapes[i - 1] else None
            if not self.kinds[i]:
                continue
            # a gate has weights of its own, but scales the piece before it and is no step of its own
            if previous and self._is_gate(i):
                previous.core = i
            # a depthwise convolution alone does half of a separable one; what follows is the other half
            elif previous and all(kind.startswith("depthwise") for kind in previous.kinds):
                previous.core, previous.kinds = i, previous.kinds + self.kinds[i]
            else:
                pieces.append(Span(i - 1, i, i, self.kinds[i]))
        self._share_out_weightless(pieces)
        return pieces

    def _share_out_weightless(self, pieces: list[Span]) -> None:
        """The regions between pieces join the one before while they keep its shape, the one after if that gives its."""
        free = 0
        # a piece may reach as far as the next one begins, the last as far as the chain
        limits = [*(piece.start for piece in pieces), len(self.at) - 1][1:]
        for piece, limit in zip(pieces, limits, strict=True):
            out = self.shapes[piece.core]
            # what gives another shape than it takes may undo what ran before it (padding, a permutation): then the
            # piece begins where the shape was the same
            if self.shapes[piece.start] != out:
                leads = [i for i in range(free, piece.start) if self.shapes[i] == out]
                inseparable = not self.shapes[piece.start] or self._is_padding(free, piece.start)
                piece.start = max(leads, default=free if inseparable else piece.start)
            piece.end = free = max(i for i in range(piece.core, limit + 1) if self.shapes[i] == out)

    def _is_padding(self, start: int, end: int) -> bool:
        ops = (op_name(self.flow.traced, self.flow.nodes[index]) for index in self.nodes(start, end))
        return all(op.startswith("pad") or "Pad" in op for op in ops)

    def _is_gate(self, i: int) -> bool:
        """Whether region i multiplies its entry by something computed from it."""
        exit = self.flow.nodes[self.at[i]]
        product = op_name(self.flow.traced, exit) in _PRODUCTS
        return product and self.at[i - 1] in self.flow.before[self.at[i]] and self.shapes[i - 1] == self.shapes[i]


def kinds_of(flow: Flow, region: Iterable[int], out: Shape) -> Kinds:
    """The convolutions and linear layers of a region, without those on pooled maps (the inside of an SE gate)."""
    kinds: Kinds = Counter()
    for index in region:
        node = flow.nodes[index]
        if node.op not in ("call_module", "call_function"):
            continue
        name, shape = op_name(flow.traced, node), flow.shape(index)
        if name == "linear" and (len(shape) > 2 or len(out) == 2):
            kinds[name] += 1
        # on a map of one pixel, a convolution is the inside of a gate, unless all maps here are of one pixel
        elif is_conv(name) and len(shape) == len(out) and (math.prod(shape[2:]) > 1 or math.prod(out[2:]) == 1):
            kinds.update(_conv_kind(flow.traced, node, name))
    return kinds


def _conv_kind(traced: Traced, node: fx.Node, name: str) -> Iterator[str]:
    """``dense 3x3`` and the like; nothing for a fixed filter (a blur)."""
    source = weight_node(node) if node.op != "call_module" else None
    # a filter that is a buffer does not learn: a blur, which makes no block
    if source is not None and source.op == "get_attr" and not source.meta.get("parameter"):
        return
    weight = weight_shape(traced, node)
    if is_transposed(name):
        kind = "transposed"
    elif groups_of(traced, node) == 1:
        kind = "dense"
    else:
        kind = "depthwise" if weight[1] == 1 else "grouped"
    yield f"{kind} {'x'.join(map(str, weight[2:]))}"
