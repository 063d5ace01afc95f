"""Following channels through a recorded graph: which must be kept or dropped together, and what reads and makes them.

Every channel of every tensor gets a number, and the numbers travel: each node of the graph has a tensor of them, of
the shape of its value.  Operations that move values (views, permutations, splits, concatenations, shuffles) are simply
run on the numbers.  Operations that combine values channel by channel (additions, products, depthwise convolutions,
norms) tie numbers together; convolutions and linear layers read numbers and give new ones.  An operation that none
of this describes stops the reading, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ghostify.channels.grouping import (
    NONE,
    Channels,
    Read,
    Resolved,
    Ties,
    Unreadable,
    along,
    constant_along,
)
from ghostify.channels.idle import exposed, idle_modules, outermost, seen_in
from ghostify.channels.moves import Moves
from ghostify.channels.numbering import argument, lies_along, shape_of, unspread
from ghostify.channels.operations import (
    CREATIONS,
    MOVES,
    NORMS,
    PADS,
    POINTWISE,
    PRODUCTS,
    REDUCTIONS,
    SOFTMAX,
    SPATIAL,
    SUMS,
)
from ghostify.ghosts import CGhost, GGhostStage
from ghostify.running import groups_of, is_conv, is_transposed, op_name, weight_node, weight_shape
from ghostify.tracing import Traced, other_runs


def follow(
    traced: Traced,
    blocks: Sequence[Sequence[fx.Node]],
    entry: fx.Node | None = None,
    fixed: Iterable[fx.Node] = (),
    *,
    sums: bool = False,
) -> Channels:
    """The channels of ``blocks`` of nodes (each reads what the one before gives), from ``entry`` on, which may be
    thinned; without an entry the inputs of the network keep all their channels, and so do the ``fixed`` nodes.  With
    ``sums``, so does every channel that is added to another (of a shortcut, of a layer beside it; a parameter is none).

    Without an entry the blocks are the whole network, which may do other things than on its example: its other runs are
    followed with it, and what modules may read that ran in none of them stays.

    Raises ``Unreadable``.
    """
    fixed = list(fixed)
    if entry is not None:
        return _Follower(traced, entry, sums).followed(blocks, fixed)
    others: list[Traced] = []
    for run in other_runs(traced):
        with suppress(Unreadable):  # that run's code is then met by what is checked when the network is rewritten
            _Follower(traced, entry, sums).followed(blocks, fixed, [*others, run])
            others.append(run)
    return _Follower(traced, entry, sums).followed(blocks, fixed, others)


class _Follower(Moves):
    """One pass over the nodes."""

    def followed(
        self, blocks: Sequence[Sequence[fx.Node]], fixed: Iterable[fx.Node], others: Sequence[Traced] = ()
    ) -> Channels:
        ends = self._follow_blocks(blocks)
        # other runs come last, so that the numbers of the first one, and its costs, are what they are without them
        for run in others:
            self._follow_run(run)
        idle = idle_modules(self.whole, others) if self.entry is None else []
        closed = [names[0] for module, names in self.whole.names.items() if isinstance(module, GGhostStage)]
        if self.entry is None:  # a G-Ghost stage cuts and joins its channels by numbers of its own
            fixed = [*fixed, *seen_in(self.whole, others, closed), *exposed(self.whole, others, idle)]
        kept = [numbers for node in fixed for numbers in self._numbers(node)] + self.stays
        nodes = [node for nodes in blocks for node in nodes]
        through = [numbers for node in self._passages(nodes) for numbers in self._numbers(node)]
        resolved = Resolved(
            Ties(self.count, self.ties, self.groups, self.lanes, self.producers, self.marks, kept, through)
        )
        return Channels(
            traced=self.whole,
            nodes=nodes,
            entry=self.entry if self.entry is not None else nodes[0],
            ids=self.ids,
            uses=list(self.uses.values()),
            selections=list(self.selections.values()),
            roots=resolved.roots,
            components=resolved.components,
            lane=resolved.lane,
            segment_of=resolved.segment_of,
            coupling=resolved.coupling(self.reads, ends, self.shortcuts, self.ordered),
            ends=ends,
            members=resolved.members,
            closed=tuple(closed),
            idle=tuple(outermost(self.whole, idle)),
        )

    def _follow_blocks(self, blocks: Sequence[Sequence[fx.Node]]) -> list[np.ndarray]:
        """The numbers between the blocks; none without an entry."""
        ends = []
        if self.entry is not None:
            shape = shape_of(self.entry)
            self.ids[self.entry] = self._spread(self._fresh(shape[1]), shape, 1)
            # the input of the first block is an end like any output of a block: its width is chosen with theirs
            ends.append(self._vector(self.entry, self.entry, 1))
        for self.block, nodes in enumerate(blocks):
            self.shortcuts.append(False)
            for node in nodes:
                self._step(node)
            if self.entry is not None:
                self.block_entry = nodes[-1]
                ends.append(self._vector(nodes[-1], nodes[-1], 1))
        return ends

    def _follow_run(self, run: Traced) -> None:
        """Another run of the network, which ties the channels of its weights as it uses them and costs nothing."""
        self.traced, self.costs_count = run, False
        (output,) = (node for node in run.graph.nodes if node.op == "output")
        for node in run.graph.nodes:
            self._step(node)
        self.stays += [numbers for node in output.all_input_nodes for numbers in self._numbers(node)]

    def _passages(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """The nodes that no path goes around: once one has run, no earlier value is read any more.

        Of a part of a network none, because what is read behind it is not known.
        """
        values = [node for node in nodes if node.users and not self._is_constant(node)]
        if self.entry is not None:
            return []
        # a node is passed by no path if all values made before it are read by it at the latest: one sweep in the order
        # of running, with the latest reader met so far, finds them all
        place = {node: index for index, node in enumerate(nodes)}
        last = {node: max(place.get(user, len(nodes)) for user in node.users) for node in values}
        passed, latest = [], -1
        for node in values:
            if latest <= place[node]:  # what ran before is read by this node at the latest
                passed.append(node)
            latest = max(latest, last[node])
        return passed

    def _numbers(self, node: fx.Node) -> list[np.ndarray]:
        """The channels of each tensor of a node's value."""
        return [np.unique(unspread(ids)) for ids in self._all_ids(node)]

    # -- one node ----------------------------------------------------------------------------------------------

    def _step(self, node: fx.Node) -> None:
        if node.op == "output":
            return
        if node.op == "placeholder":
            self.ids[node] = torch.full((1,) * len(shape_of(node)), NONE).expand(shape_of(node))
            return
        if node.op == "get_attr":
            return  # read where it is used
        name = op_name(self.traced, node)
        if all(map(self._is_constant, node.all_input_nodes)):
            # what is computed from weights alone is no stream of the network; additions to it tie nothing that must
            # stay
            self.constants.add(node)
        self._note_shortcut(node, name)
        try:
            self.ids[node] = self._result(node, name)
        except Unreadable:
            raise
        except Exception as problem:
            text = " ".join(str(problem).split())[:120]
            raise self._stop(node, f"cannot be followed ({type(problem).__name__}: {text})") from problem

    def _result(self, node: fx.Node, name: str) -> Any:
        if is_conv(name):
            return self._conv(node, name)
        if name == "linear":
            return self._linear(node)
        if name in NORMS:
            return self._norm(node, name)
        if name in POINTWISE:
            return self._pointwise(node, name)
        if name in SPATIAL:
            return self._spatial(node)
        if name in REDUCTIONS:
            return self._reduced(node, name)
        if name in SOFTMAX:
            return self._softmax(node, name)
        if name in PADS or name.endswith(("Pad1d", "Pad2d", "Pad3d")):
            return self._padded(node)
        if name in CREATIONS and not node.all_input_nodes:
            return torch.full((1,) * len(shape_of(node)), NONE).expand(shape_of(node))
        if name in MOVES:
            return self._moved(node, name)
        if name in ("prelu", "PReLU"):
            return self._prelu(node)
        if name in PRODUCTS:
            return self._product(node)
        raise self._stop(node, "ties channels in a way that cannot be followed")

    def _note_shortcut(self, node: fx.Node, name: str) -> None:
        weighted = name == "linear" or (is_conv(name) and not self._is_grouped(node, name))
        if self.block_entry in node.all_input_nodes and not weighted:
            self.shortcuts[-1] = True

    # -- convolutions and linear layers ------------------------------------------------------------------------

    def _is_grouped(self, node: fx.Node, name: str) -> bool:
        return self._filters(node, name)[1] > 1

    def _filters(self, node: fx.Node, name: str) -> tuple[tuple[int, ...], int, bool]:
        """(weight shape, groups, transposed) of a convolution."""
        if node.op != "call_module" and weight_node(node) is None:
            raise self._stop(node, "has no weight that can be followed")
        return weight_shape(self.traced, node), groups_of(self.traced, node), is_transposed(name)

    def _conv(self, node: fx.Node, name: str) -> Tensor:
        shape, groups, transposed = self._filters(node, name)
        source = node.all_input_nodes[0]
        out_shape = shape_of(node)
        weight, bias = self._parameters(node)
        if len(out_shape) != len(shape):
            raise self._stop(node, "is given an image without a batch")
        # one filter of one channel over rows whose last dimension are channels: it slides over them (ECA)
        if shape[:2] == (1, 1) and not constant_along(self._ids(source, node), -1):
            return self._along_channels(node, source, weight, bias, shape)
        inputs = self._vector(source, node, 1)
        maps = math.prod(out_shape) // out_shape[1]
        sides = {"area": math.prod(shape[2:]), "positions": maps, "outputs": maps}
        if transposed and groups > 1:
            raise self._stop(node, "is a grouped transposed convolution")
        if groups == 1:
            out = self._made(weight, 1 if transposed else 0, out_shape[1])
            self._use(weight, 0 if transposed else 1, inputs, entry=source is self.block_entry)
            if transposed:
                sides["positions"] = math.prod(shape_of(source)) // shape_of(source)[1]
            self._read(node, weight, out, reads=inputs, **sides)
        elif shape[1] == 1 and groups == len(inputs):
            # depthwise: each output is the input it is a filter of, under the same number
            out = np.repeat(inputs, out_shape[1] // groups)
            self._use(weight, 0, out)
            self._read(node, weight, out, **sides)
        else:
            out = self._made(weight, 0, out_shape[1])
            # groups are cut in the order of the channels, so a row of the reshaped numbers is a group
            self._grouped(inputs.reshape(groups, -1), out.reshape(groups, -1))
            self._use(weight, 1, inputs.reshape(groups, -1)[0], lanes=True)
            self._use(weight, 0, out)
            self._read(node, weight, out, lanes=shape[1], **sides)
        self._vector_parameter(node, bias, out)
        return self._spread(out, out_shape, 1)

    def _along_channels(self, node: fx.Node, source: fx.Node, weight: str, bias: str, shape: tuple[int, ...]) -> Tensor:
        """A filter that slides over the channels (efficient channel attention): each stays itself.

        With some dropped, the others have other neighbours; where the first are kept, what is past the end was zero.
        """
        ids = self._ids(source, node)
        if shape_of(node) != shape_of(source) or not lies_along(ids, -1):
            raise self._stop(node, "slides over the channels and makes fewer")
        self.ordered = True
        channels, one, area = along(ids, ids.dim() - 1), np.array([NONE]), math.prod(shape[2:])
        maps = math.prod(shape_of(node)) // len(channels)
        layer = self._layer(node, weight)
        self._count(Read(self.block, channels, area=area, positions=maps, outputs=maps, params=False, layer=layer))
        for name, size in ((weight, area), (bias, 1)):
            if name and name not in self.counted:
                self.counted.add(name)
                self._count(Read(self.block, one, area=size, layer=layer))
        return ids

    def _linear(self, node: fx.Node) -> Tensor:
        source = node.all_input_nodes[0]
        inputs = self._vector(source, node, len(shape_of(source)) - 1)
        out_shape = shape_of(node)
        weight, bias = self._parameters(node)
        out = self._made(weight, 0, out_shape[-1])
        self._use(weight, 1, inputs, entry=source is self.block_entry)
        self._read(node, weight, out, reads=inputs, positions=math.prod(out_shape[:-1]))
        self._vector_parameter(node, bias, out)
        return self._spread(out, out_shape, len(out_shape) - 1)

    def _grouped(self, inputs: np.ndarray, out: np.ndarray) -> None:
        """Every group of a grouped convolution is one component; where both sides are alike, places in it are lanes."""
        for side in (inputs, out):
            self.groups.append((np.repeat(side[:, 0], side.shape[1]), side.ravel()))
            if inputs.shape == out.shape:
                self.lanes.append((side.ravel(), np.tile(np.arange(side.shape[1]), side.shape[0])))
        # what a group reads and what it makes go together: tying the first of each ties them all
        self.groups.append((inputs[:, 0], out[:, 0]))

    # -- norms -------------------------------------------------------------------------------------------------

    def _norm(self, node: fx.Node, name: str) -> Tensor:
        source = node.all_input_nodes[0]
        ids, kind = self._ids(source, node), NORMS[name]
        shape = shape_of(source)
        if kind == "layer":
            return self._layer_norm(node, ids, shape)
        channels = self._vector(source, node, 1)
        for parameter in self._parameters_and_buffers(node, len(channels)):
            self._vector_parameter(node, parameter, channels)
        if kind == "group":
            groups = self._group_count(node)
            if groups > 1:
                # statistics of a group norm are taken over whole groups, so a group is kept or dropped as one
                side = channels.reshape(groups, -1)
                self.groups.append((np.repeat(side[:, 0], side.shape[1]), side.ravel()))
        return ids

    def _layer_norm(self, node: fx.Node, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        varying = [dim for dim in range(len(shape)) if not constant_along(ids, dim)]
        normalized = self.traced.leaf(node).normalized_shape if node.op == "call_module" else argument(node, 1, "")
        dims = 1 if isinstance(normalized, int) else len(normalized)  # type: ignore[arg-type]
        if varying and varying != [len(shape) - 1]:
            raise self._stop(node, "normalises other dimensions than the channels")
        if varying and dims != 1:
            raise self._stop(node, "normalises several dimensions at once")
        if varying:
            channels = self._vector(node.all_input_nodes[0], node, len(shape) - 1)
            for parameter in self._parameters(node):
                self._vector_parameter(node, parameter, channels)
        return ids

    def _group_count(self, node: fx.Node) -> int:
        if node.op == "call_module":
            return int(self.traced.leaf(node).num_groups)  # type: ignore[arg-type]
        return int(argument(node, 1, "num_groups"))

    # -- channel by channel ------------------------------------------------------------------------------------

    def _pointwise(self, node: fx.Node, name: str) -> Any:
        first, *others = node.all_input_nodes
        result = self._operand(first, node)
        for other in others:
            operand, known = self._operand(other, node), len(self.ties)
            result = self._tied(result, operand)
            streams = not (self._is_constant(first) or self._is_constant(other) or self._in_ghost(node))
            if self.sums and name in SUMS and streams:
                # the ties made by this addition alone: they are what is added to something else
                self.stays += [side for pair in self.ties[known:] for side in pair]
        return result.expand(shape_of(node)) if result.shape != shape_of(node) else result

    def _in_ghost(self, node: fx.Node) -> bool:
        """Whether a node is code of a ghost module, whose maps are sums and no stream that goes around it."""
        return isinstance(self.traced.part(str(node.meta["module"])), CGhost)

    def _product(self, node: fx.Node) -> Tensor:
        """A matrix product over positions (attention over the map): rows of one, columns of the other."""
        a, b = (self._ids(source, node) for source in node.all_input_nodes)
        if min(a.dim(), b.dim()) < 2 or not (constant_along(a, -1) and constant_along(b, -2)):
            raise self._stop(node, "sums over the channels")
        out = self._tied(a.narrow(-1, 0, 1), b.narrow(-2, 0, 1)).expand(shape_of(node))
        varying = [dim for dim in range(out.dim()) if not constant_along(out, dim)]
        if len(varying) > 1:
            raise self._stop(node, "has channels along several dimensions")
        channels = along(out, varying[0]) if varying else np.array([NONE])
        positions = math.prod(shape_of(node)) * a.shape[-1] // len(channels)
        self._count(Read(self.block, channels, positions=positions, params=False))
        return out

    def _prelu(self, node: fx.Node) -> Tensor:
        source = node.all_input_nodes[0]
        weight = self._parameters(node)[0]
        if self._size(node, weight) > 1:
            self._vector_parameter(node, weight, self._vector(source, node, 1))
        else:
            self._vector_parameter(node, weight, np.array([NONE]))
        return self._ids(source, node)

    def _spatial(self, node: fx.Node) -> Tensor:
        """Pools, interpolation: each channel's map becomes another map."""
        source = node.all_input_nodes[0]
        return self._spread(self._vector(source, node, 1), shape_of(node), 1)

    def _padded(self, node: fx.Node) -> Tensor:
        """Padding of maps changes no channel; padding of channels adds constant ones, which occupy their own place."""
        source = node.all_input_nodes[0]
        ids, before, after = self._ids(source, node), shape_of(source), shape_of(node)
        varying = [dim for dim in range(len(before)) if not constant_along(ids, dim)]
        grown = [dim for dim in varying if before[dim] != after[dim]]
        if not grown:
            for dim in range(len(before)):
                if dim not in varying:
                    ids = ids.narrow(dim, 0, 1)
            return ids.expand(after)
        if varying != grown or len(grown) > 1:
            raise self._stop(node, "pads channels and more at once")
        (dim,) = grown
        pads = argument(node, 1, "pad")
        # F.pad counts dimensions from the last one, two numbers for each
        low = int(pads[2 * (len(before) - 1 - dim)])
        high = after[dim] - before[dim] - low
        inner = self._vector(source, node, dim)
        return self._spread(
            np.concatenate([self._fresh(low, chosen=False), inner, self._fresh(high, chosen=False)]), after, dim
        )

    def _reduced(self, node: fx.Node, name: str) -> Tensor:
        source = node.all_input_nodes[0]
        ids = self._ids(source, node)
        place = 2 if name == "norm" else 1
        dims = argument(node, place, "dim")
        keepdim = bool(argument(node, place + 1, "keepdim") or False)
        if dims is None:
            raise self._stop(node, "sums over all channels")
        listed = [dims] if isinstance(dims, int) else list(dims)
        reduced = sorted({dim % ids.dim() for dim in listed})
        others = [dim for dim in range(ids.dim()) if dim not in reduced and not constant_along(ids, dim)]
        # from the last dimension on, because those behind a dimension that is taken away move up
        for dim in reversed(reduced):
            if not constant_along(ids, dim):
                if not others:
                    return torch.full((1,) * len(shape_of(node)), NONE).expand(shape_of(node))
                for index in range(1, ids.shape[dim]):
                    self._tied(ids.narrow(dim, 0, 1), ids.narrow(dim, index, 1))
            ids = ids.narrow(dim, 0, 1)
            ids = ids if keepdim else ids.squeeze(dim)
        return ids.expand(shape_of(node))

    def _softmax(self, node: fx.Node, name: str) -> Tensor:
        source = node.all_input_nodes[0]
        ids = self._ids(source, node)
        dim: Any = self.traced.leaf(node).dim if node.op == "call_module" else argument(node, 1, "dim")
        if dim is None:
            raise self._stop(node, "is a softmax over a dimension that it does not name")
        if not constant_along(ids, dim) and lies_along(ids, dim):
            return self._shares(node, ids)
        for index in range(1, ids.shape[dim]) if not constant_along(ids, dim) else ():
            self._tied(ids.narrow(dim, 0, 1), ids.narrow(dim, index, 1))
        return ids

    def _shares(self, node: fx.Node, ids: Tensor) -> Tensor:
        """A softmax over the channels: each is a share of all, which grows where another is dropped, so all stay."""
        if self.entry is not None:
            raise self._stop(node, "is a softmax over the channels")
        self.stays.append(np.unique(unspread(ids)))
        return ids
