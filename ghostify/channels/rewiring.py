"""A block as a small graph of its own, where its module tree cannot say what is needed.

A block that reads more channels than it passes on needs a projection on its shortcut, and a shortcut is no module: it
is an operand of an addition in some forward.  Here the recorded nodes of the block become a ``GraphModule`` whose
calls are the block's own modules, thinned, as large as possible (a norm with its activation, a gate), so that modes
and statistics stay theirs.  Sizes that the code wrote out (``split(x, 26, 1)``) are brought in line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ghostify.channels.grouping import Channels, constant_along
from ghostify.channels.numbering import from_parameters
from ghostify.channels.operations import CUTS, MOVES
from ghostify.channels.thinning import sliced, thinned
from ghostify.names import common, parent_of, within
from ghostify.running import REPEATED, agree, groups_of, is_conv, op_name, seed

PROJECTION = "projection"


def rewired(
    channels: Channels,
    nodes: Sequence[fx.Node],
    kept: np.ndarray,
    entry: np.ndarray | None = None,
    projection: nn.Module | None = None,
) -> fx.GraphModule:
    """The block of these nodes with the ``kept`` channels; ``entry`` as for ``thinned``.

    With a ``projection``, convolutions read the block's input and everything else reads it projected.
    """
    return _Rewiring(channels, nodes, kept, entry, projection).module()


class _Rewiring:
    def __init__(
        self,
        channels: Channels,
        nodes: Sequence[fx.Node],
        kept: np.ndarray,
        entry: np.ndarray | None,
        projection: nn.Module | None,
    ) -> None:
        self.channels, self.nodes, self.kept, self.entry = channels, nodes, kept, entry
        self.projection = projection
        inside = set(nodes)
        self.source = next(
            n for node in nodes for n in node.all_input_nodes if n not in inside and not from_parameters(n)
        )
        self.prefix = common(str(node.meta["module"]) for node in nodes)
        if any(node.op == "call_module" and node.target == self.prefix for node in nodes):
            self.prefix = parent_of(self.prefix)  # a block that is one layer
        self.units = self._units()
        self.attributes: dict[str, Any] = {}
        self.memo = sliced(channels, kept, entry)

    def module(self) -> fx.GraphModule:
        graph = fx.Graph()
        value: dict[fx.Node, fx.Node] = {self.source: graph.placeholder("x")}
        direct = value[self.source]
        if self.projection is not None:
            self.attributes[PROJECTION] = self.projection
            projected = graph.call_module(PROJECTION, (direct,))
        else:
            projected = direct
        for node in self.nodes:
            # a unit is called once, where its last node stands; its other nodes are inside that call
            unit = self.units.get(node)
            if unit is not None and node is not unit[1][-1]:
                continue
            reading = unit[1] if unit else [node]
            value[self.source] = direct if self._reads_by_weights(reading) else projected
            value[node] = self._unit(graph, value, *unit) if unit else self._single(graph, value, node)
        graph.output(value[self.nodes[-1]])
        # calls that only moved channels were replaced by one selection, and nobody reads them any more
        for node in reversed(list(graph.nodes)):
            if not node.users and node.op not in ("output", "placeholder"):
                graph.erase_node(node)
        return fx.GraphModule(self.attributes, graph, class_name="RewiredBlock")

    def _unit(self, graph: fx.Graph, value: dict[fx.Node, fx.Node], name: str, nodes: list[fx.Node]) -> fx.Node:
        (read,) = self._read_by(nodes)
        relative = self._relative(name)
        module = self.channels.traced.part(name)
        self.attributes.setdefault(relative, thinned(self.channels, module, self.kept, self.entry))
        return graph.call_module(relative, (value[read],))

    def _single(self, graph: fx.Graph, value: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
        for source in node.all_input_nodes:
            if source not in value and source.op != "get_attr":  # computed from parameters alone
                value[source] = self._single(graph, value, source)
            elif source not in value:
                tensor = self.channels.traced.tensor(source)
                relative = self._relative(str(source.target))
                small = self.memo.get(id(tensor), tensor)
                copied = nn.Parameter(small.detach().clone()) if isinstance(small, nn.Parameter) else small.clone()
                self.attributes.setdefault(relative, copied)
                value[source] = graph.get_attr(relative)
        gathered = self._gathered(graph, value, node)
        if gathered is not None:
            return gathered
        copy = graph.node_copy(node, lambda n: value[n])
        if node.op == "call_module":
            copy.target = self._relative(str(node.target))
            leaf = self.channels.traced.leaf(node)
            self.attributes.setdefault(copy.target, thinned(self.channels, leaf, self.kept, self.entry))
        self._resize(node, copy)
        return copy

    # -- sizes -------------------------------------------------------------------------------------------------

    def _gathered(self, graph: fx.Graph, value: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node | None:
        """A row of moves (view, transpose, view: a shuffle) that only changes which channel stands where, as one
        selection of channels; whatever sizes the moves wrote out are gone with them."""
        origin = node
        while self._only_moves(origin) and origin is not self.source:
            origin = origin.all_input_nodes[0]
        if origin is node or origin not in value or not (self._lies_along_channels(node, origin)):
            return None
        before, after = (self._numbers(n) for n in (origin, node))
        # each number that is kept has an index before the moves, and the order of numbers after them is the selection
        place = {number: index for index, number in enumerate(n for n in before if self.kept[n])}
        name = f"{node.name}_channels"
        self.attributes[name] = torch.tensor([place[n] for n in after if self.kept[n]])
        return graph.call_function(torch.index_select, (value[origin], 1, graph.get_attr(name)))

    def _only_moves(self, node: fx.Node) -> bool:
        name = op_name(self.channels.traced, node)
        moves = name in MOVES or name == "contiguous"
        return node.op in ("call_function", "call_method") and moves and len(node.all_input_nodes) == 1

    def _lies_along_channels(self, *nodes: fx.Node) -> bool:
        """Whether the values are maps of one size with their channels along dimension 1 alone, each its own."""
        ids = [found for node in nodes if isinstance(found := self.channels.ids.get(node), Tensor) and found.dim() > 2]
        if len(ids) < len(nodes) or len({one.shape[2:] for one in ids}) > 1:
            return False
        return all((dim == 1) != constant_along(one, dim) for one in ids for dim in range(one.dim()))

    def _numbers(self, node: fx.Node) -> list[int]:
        ids: Tensor = self.channels.ids[node]
        numbers: list[int] = ids[0].flatten(1)[:, 0].tolist()
        return numbers

    def _resize(self, node: fx.Node, copy: fx.Node) -> None:
        """Sizes of pieces as they are with the kept channels."""
        name = op_name(self.channels.traced, node)
        if name in ("split", "split_with_sizes") and isinstance(self.channels.ids[node], list):
            dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            sizes = [self._along(piece, int(dim)) for piece in self.channels.ids[node]]  # type: ignore[arg-type]
            copy.args, copy.kwargs = (copy.args[0], sizes, dim), {}
        elif name in ("view", "reshape") and from_parameters(node):
            ids = self.channels.ids[node]
            copy.args = (copy.args[0], *(self._along(ids, dim) for dim in range(ids.dim())))
        elif name in ("__getitem__", "getitem") and isinstance(node.args[1], tuple):
            whole = self.channels.ids[node.all_input_nodes[0]]
            if isinstance(whole, Tensor):
                index = tuple(self._slice(whole, dim, part) for dim, part in enumerate(node.args[1]))
                copy.args = (copy.args[0], index)

    def _slice(self, ids: Tensor, dim: int, part: Any) -> Any:
        if not isinstance(part, slice) or part.step not in (None, 1) or constant_along(ids, dim):
            return part
        start, stop, _ = part.indices(ids.shape[dim])
        return slice(self._along(ids.narrow(dim, 0, start), dim), self._along(ids.narrow(dim, 0, stop), dim))

    def _along(self, ids: Tensor, dim: int) -> int:
        """How much is kept of a tensor along a dimension."""
        if ids.shape[dim] == 0 or constant_along(ids, dim):
            return int(ids.shape[dim])
        for other in range(ids.dim()):
            if other != dim % ids.dim():
                ids = ids.narrow(other, 0, 1)
        return int(self.kept[ids.reshape(-1).numpy()].sum())

    # -- units ---------------------------------------------------------------------------------------------------

    def _units(self) -> dict[fx.Node, tuple[str, list[fx.Node]]]:
        """For each node in a module that can be called whole, that module and its nodes."""
        units: dict[fx.Node, tuple[str, list[fx.Node]]] = {}
        for node in self.nodes:
            if node in units:
                continue
            for name in self._between(str(node.meta["module"])):
                nodes = [n for n in self.nodes if within(str(n.meta["module"]), name)]
                if self._is_unit(nodes):
                    units |= dict.fromkeys(nodes, (name, nodes))
                    break
        return units

    def _between(self, name: str) -> list[str]:
        """The modules around ``name`` and itself, strictly inside the block, the outermost first."""
        parts = name.split(".") if name else []
        start = self.prefix.count(".") + 2 if self.prefix else 1
        return [".".join(parts[:end]) for end in range(start, len(parts) + 1)]

    def _read_by(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """What nodes read from outside, parameters apart."""
        inside = set(nodes)
        read = (n for node in nodes for n in node.all_input_nodes if n not in inside and not from_parameters(n))
        return list(dict.fromkeys(read))

    def _is_unit(self, nodes: list[fx.Node]) -> bool:
        inside = set(nodes)
        read = self._read_by(nodes)
        used = [n for n in nodes if any(user not in inside and _matters(user) for user in n.users)]
        whole = len(nodes) < len(self.nodes) and len(read) == 1 and used == [nodes[-1]]
        if not whole or any(op_name(self.channels.traced, n) in CUTS for n in nodes):
            return False
        readers = [n for n in nodes if self.source in n.all_input_nodes]
        # with a projection, a module that reads the input both ways cannot be called with one of them
        return self.projection is None or len({self._reads_by_weights([n]) for n in readers}) < 2

    def _reads_by_weights(self, nodes: list[fx.Node]) -> bool:
        """Whether what reads the block's input among these are convolutions and linear layers over all channels."""
        readers = [n for n in nodes if self.source in n.all_input_nodes]
        return bool(readers) and all(self._is_weighted(n) for n in readers)

    def _is_weighted(self, node: fx.Node) -> bool:
        name = op_name(self.channels.traced, node)
        if not is_conv(name):
            return name == "linear"
        return groups_of(self.channels.traced, node) == 1

    def _relative(self, name: str) -> str:
        return name.removeprefix(f"{self.prefix}.") if self.prefix else name


def _matters(node: fx.Node) -> bool:
    """Whether a value goes anywhere: that of an ``nn.Identity``, which is its input, does not."""
    return bool(node.users) or node.op == "output"


def stands_in(block: nn.Module, graph: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a ``graph`` recorded in evaluation does what its ``block`` does, in training and at other sizes, too.

    It does not where paths are dropped in training, or where sizes of the example are written into the graph.
    """
    like = next(block.parameters())
    batch, width, *maps = shape
    for sides in (maps, [side + 8 for side in maps]):
        x = torch.rand(batch + 1, width, *sides, device=like.device, dtype=like.dtype)
        wanted = _in_training(block, x)
        if wanted is None and sides != maps:
            continue  # the block itself takes maps of one size
        given = _in_training(graph, x)
        if wanted is None or given is None or not agree(wanted, given, REPEATED):
            return False
    return True


def _in_training(module: nn.Module, x: Tensor) -> Tensor | None:
    """The module's output in training mode, if it has one."""
    module.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            seed()
            output: Tensor = module.forward(x.clone())  # a GraphModule's call would print its trouble
            return output
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return None
