"""How much of an error the layers behind make good, once they are fitted to what they then read.

    compensation = harm with every later layer answering / harm with all as they were

A fit goes layer by layer, so an error near the image meets many layers that answer it, and one at the end none.  Each
answers by combinations of its own outputs (``answering``), on images other than those that harm is measured on.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from ghostify.harm.answering import answering
from ghostify.harm.rows import Affine, Call, Rows, positions, sampled
from ghostify.harm.walk import Changes, Walk

_LEAST = 1e-4
"""The least that is left of an error: one that vanishes is below what few images can tell."""


class Sums:
    """What the original's sums are at sampled positions of every call of a layer, over the images of a fit."""

    def __init__(self, calls: Sequence[Call], batches: Sequence[int]) -> None:
        self.calls, self.batches = calls, batches
        self._kept: dict[tuple[fx.Node, int], Tensor] = {}

    def note(self, walk: Walk) -> None:
        """Run the original, batch by batch, and keep what is needed of it; the walk stands where it stood."""
        nodes = {call.around.sum for call in self.calls}
        with walk.changed({}), walk.keeping(nodes):
            for batch in self.batches:
                walk.advance(len(walk.nodes), [batch])
                for call in self.calls:
                    value = walk.values[batch][call.around.sum]
                    self._kept[call.node, batch] = self._rows(call, value, batch)
                walk.values[batch].clear()

    def rows(self, call: Call, walk: Walk) -> Rows:
        """What a call gives where the walk stands, behind its sum, and what it should add up to."""
        y, now = (self._now(call, walk, node) for node in (call.node, call.around.sum))
        wanted = torch.cat([self._kept[call.node, batch] for batch in self.batches])
        slope = call.line(y)[0].to(y)
        # What is added is what the sum is more than the output, whichever way it came.
        return Rows(y, wanted, now - slope * y, slope, call.around.ceiling)

    def rows_of_original(self, call: Call, walk: Walk) -> Rows:
        """The same where nothing is changed and the walk stands behind the call."""
        y = self._now(call, walk, call.node)
        wanted = torch.cat([self._kept[call.node, batch] for batch in self.batches])
        slope = call.line(y)[0].to(y)
        return Rows(y, wanted, wanted - slope * y, slope, call.around.ceiling)

    def _now(self, call: Call, walk: Walk, node: fx.Node) -> Tensor:
        return torch.cat([self._rows(call, walk.values[batch][node], batch) for batch in self.batches])

    def _rows(self, call: Call, value: Tensor, batch: int) -> Tensor:
        n = value.shape[call.dim]
        images = len(value) * len(self.batches)
        return sampled(value, call.dim, math.ceil(positions(n) / images), batch)


class Answers:
    """The layers behind a change, each of which answers it."""

    def __init__(self, walk: Walk, sums: Sums, held: Sequence[int]) -> None:
        self.walk, self.sums, self.held = walk, sums, held

    def outputs(self, changes: Changes) -> list[list[Tensor]]:
        """What the network gives for the images held out where every later layer answers these changes."""
        behind = _behind(self.walk, changes)
        # A classifier has a row for each image alone, too few to answer by.
        calls = [call for call in self.sums.calls if call.node in behind and not isinstance(call.module, nn.Linear)]
        # Both branches of a block may end in one sum, where each answers what the other left.
        together: dict[fx.Node, list[Call]] = {}
        for call in sorted(calls, key=lambda call: self.walk.index[call.around.sum]):
            together.setdefault(call.around.sum, []).append(call)
        with self.walk.changed(changes):
            for node, own in together.items():
                self._answer(node, own)
            return self.walk.to_the_end(self.held)

    def _answer(self, node: fx.Node, calls: Sequence[Call]) -> None:
        """Let the calls that add up to a node's value answer."""
        walk, batches = self.walk, [*self.sums.batches, *self.held]
        with walk.keeping({node, *(call.node for call in calls)}):
            walk.advance(walk.index[node] + 1, batches)
            for call in calls:
                rows = self.sums.rows(call, walk)
                answer = answering(rows, call.dim)
                if answer is None:
                    continue
                more = _difference(answer, rows.slope)
                # The sum was added up already, so it takes in by how much the answer differs.
                for batch in batches:
                    values = walk.values[batch]
                    values[node] = values[node] + more(values[call.node])


def _difference(answer: Affine, slope: Tensor) -> Affine:
    """By how much a sum changes with a layer's answer: a·((B − I)·y + b)."""
    eye = torch.eye(len(slope), dtype=slope.dtype, device=slope.device)
    return Affine(slope[:, None] * (answer.matrix - eye), slope * answer.offset, answer.dim)


def _behind(walk: Walk, changes: Changes) -> set[fx.Node]:
    """The nodes that read a changed value, directly or not."""
    found: set[fx.Node] = set()
    for node in walk.nodes:
        if any(source in changes or source in found for source in node.all_input_nodes):
            found.add(node)
    return found - set(changes)


class Depth:
    """Compensation by place in the network: measured at some places, and between these as they suggest."""

    def __init__(self, measured: Mapping[int, float]) -> None:
        """``measured``: by index of a node."""
        self.places = sorted(measured)
        self.logs = [math.log(max(measured[place], _LEAST)) for place in self.places]

    def at(self, place: int) -> float:
        """In logarithms, because errors are made good by factors."""
        if not self.places:
            return 1.0
        spans = list(pairwise(zip(self.places, self.logs, strict=True)))
        at = bisect(self.places, place)
        if at == 0 or at == len(self.places) or not spans:
            return math.exp(self.logs[min(at, len(self.places) - 1)])
        (left, low), (right, high) = spans[at - 1]
        return math.exp(low + (high - low) * (place - left) / (right - left))
