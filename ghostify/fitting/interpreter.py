"""Two networks run side by side, node by node, over all calibration images at once.

A layer is fitted on what the network before it, already converted, really gives.  Running the whole network anew for
every layer would cost the square of its depth; here every batch keeps the values that are still needed where it has
come to, and goes on from there.  Batches need not go together: where maps are large, some are enough, and the others
follow when their turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ghostify.batches import Batch, count, per_sample, take
from ghostify.processes import Processes
from ghostify.running import first_argument, overwritten, run_node
from ghostify.tracing import Traced, tensors_of_call

_FLOAT = 4
MEMORY = 2**30
"""Bytes that the values of all batches may take together, where two batches take less."""
_VALUES = 3 * 2**19
"""Numbers in one batch of images: some thousand times as many may stand in a network's maps."""


@dataclass(frozen=True)
class Standing:
    """Where a walk stood, batch by batch."""

    reached: list[int]
    values: list[dict[fx.Node, Any]]


class Interpreter:
    """A recorded network on its way through batches of inputs.

    ``traced`` was recorded with inputs of the batches' shape, for sizes may be written into its graph; the layers are
    those of ``root``, which has the same names.  Values are computed in eval mode, which the caller sees to.  ``order``
    is another order of the same nodes (None: as they were recorded); ``processes`` are those that walk together, each
    with batches of its own (None: this one has all).
    """

    differentiated = False
    """Whether gradients of its values will be asked for."""

    def __init__(
        self,
        traced: Traced,
        root: nn.Module,
        batches: Iterable[Batch],
        order: Sequence[fx.Node] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.traced, self.root = traced, root
        self.constants = traced.constants
        self.nodes = [node for node in order or traced.graph.nodes if node.op != "output"]
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        self.outputs = list(output.all_input_nodes)
        self.index = {node: index for index, node in enumerate(self.nodes)}
        self.watched: dict[fx.Node, Callable[[Tensor], None]] = {}
        """Who is told the first input of a node when it runs, batch by batch."""
        # The output node is not run, so what it reads counts as read beyond the end, and is never let go.
        self._last = {node: max((self.index.get(user, len(self.nodes)) for user in node.users), default=-1)
                      for node in self.nodes}  # fmt: skip
        self._pinned: set[fx.Node] = set()
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        self.values: list[dict[fx.Node, Any]] = [
            dict(zip(inputs, tensors_of_call(batch), strict=True)) for batch in batches
        ]
        self.reached = [0] * len(self.values)
        """The index of the node that each batch comes to next."""
        self.own = (processes or Processes()).share(range(len(self.values)))
        """The batches that this process runs: each belongs to one of those that walk together."""

    def leaf(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.root.get_submodule(str(node.target))

    def keep(self, node: fx.Node) -> None:
        """Do not let go of a node's values when nothing later reads them."""
        self._pinned.add(node)

    def drop(self, node: fx.Node) -> None:
        """Let go of a node's values."""
        self._pinned.discard(node)
        for values, reached in zip(self.values, self.reached, strict=True):
            if self._last[node] < reached:
                values.pop(node, None)

    @contextmanager
    def keeping(self, nodes: Collection[fx.Node]) -> Iterator[None]:
        """Hold on to the values of nodes for a while."""
        mine = [node for node in nodes if node not in self._pinned]
        self._pinned |= set(mine)
        yield
        for node in mine:
            self.drop(node)

    def follow(self, other: Interpreter, same: Mapping[fx.Node, fx.Node], at: int) -> None:
        """Stand at ``at``, with the values that ``other`` has of the nodes that are the ``same`` there."""
        self.reached = [at] * len(self.values)
        for mine, theirs in zip(self.values, other.values, strict=True):
            mine.clear()
            for node, twin in same.items():
                if twin in theirs and (self._last[node] >= at or node in self._pinned):
                    mine[node] = theirs[twin]

    def advance(self, to: int, batches: Iterable[int] | None = None) -> None:
        """Run up to, not including, the node of index ``to``: all batches of its own, or those named."""
        for batch in self.own if batches is None else batches:
            values = self.values[batch]
            for index in range(self.reached[batch], to):
                node = self.nodes[index]
                if node.op != "placeholder":
                    values[node] = self._run(node, values)
                # The node itself, too: what nobody reads need not be held at all.
                for read in (*node.all_input_nodes, node):
                    if self._last[read] <= index and read not in self._pinned:
                        values.pop(read, None)
            self.reached[batch] = max(self.reached[batch], to)

    def standing(self) -> Standing:
        """Where the walk stands, to go back there with other weights."""
        return Standing(list(self.reached), [dict(values) for values in self.values])

    def go_back(self, standing: Standing) -> None:
        """Stand where the walk stood then.  Nothing that it held was written to since, for what writes copies first."""
        self.reached = list(standing.reached)
        self.values = [dict(values) for values in standing.values]

    def bytes_at(self, index: int) -> int:
        """About how much memory a batch's values take where the node of that index is run; its own are among them."""
        alive = (node for at, node in enumerate(self.nodes[: index + 1]) if max(at, self._last[node]) >= index)
        return sum(map(size_of, alive))

    def room(self, node: fx.Node) -> int:
        """How many batches ``MEMORY`` has room for where a node is run."""
        return MEMORY // max(1, self.bytes_at(self.index[node]))

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        fresh = self._apart(node, values)
        read: Any = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: fresh.get(source, values[source]))
        args, kwargs = read
        if node in self.watched:
            self.watched[node](first_argument(args, kwargs))
        return run_node(self, node, args, kwargs, self.differentiated)

    def _apart(self, node: fx.Node, values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """What a node that writes into a tensor reads: that tensor, and all that lies in its memory, in other memory.

        What is read later sees the write; what is only kept does not, nor do the caller's images and the weights.
        """
        fresh: dict[fx.Node, Any] = {}
        for target in overwritten(self, node):
            fresh |= self._moved_apart(node, fresh.get(target, values[target]), values)
        return fresh

    def _moved_apart(self, node: fx.Node, written: Any, values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """All that lies in the memory of what is ``written``, in other memory."""
        if not isinstance(written, Tensor) or not written.numel():
            return {}
        inside = [leaf for leaf in tree_leaves(list(values.values())) if _overlap(leaf, written)]
        # Views share one storage.  The span they take is copied once, and each is made anew within the copy, so that
        # they overlap there as they did.
        begin = min(leaf.storage_offset() for leaf in inside)
        memory = written.as_strided((max(map(_end, inside)) - begin,), (1,), begin).clone()

        def moved(leaf: Any) -> Any:
            if not _overlap(leaf, written):
                return leaf
            return memory.as_strided(leaf.shape, leaf.stride(), leaf.storage_offset() - begin)

        fresh = {other: tree_map(moved, value) for other, value in values.items()}
        values.update({other: value for other, value in fresh.items() if self._last[other] > self.index[node]})
        return fresh

    def _attribute(self, name: str) -> Any:
        if name in self.constants:
            return self.constants[name]
        owner, _, last = name.rpartition(".")
        return getattr(self.root.get_submodule(owner), last)


def size_of(node: fx.Node) -> int:
    """About how much memory a node's value takes for one batch."""
    return _FLOAT * sum(math.prod(shape) for shape in node.meta.get("shapes", ()))


def _overlap(leaf: Any, written: Any) -> bool:
    """Whether something is a tensor that lies in the same memory."""
    same = isinstance(leaf, Tensor) and leaf.dtype == written.dtype and leaf.numel() > 0
    return same and leaf.untyped_storage()._cdata == written.untyped_storage()._cdata


def _end(tensor: Tensor) -> int:
    """The element of its memory that follows the last one a tensor takes."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return int(tensor.storage_offset()) + 1 + sum((size - 1) * step for size, step in steps)


def batched(images: Batch) -> list[Batch]:
    """Images in batches of one size: at most 64 or, of large ones, as many as ``_VALUES`` numbers make up, and at least
    eight batches where there are as many images.

    Of the sizes that come near, the one that leaves fewest images over.  Each batch is spread over all images, for
    these may come sorted.
    """
    total, values = count(images), sum(leaf[0].numel() for leaf in per_sample(images))
    most = max(1, min(64, total // 8, _VALUES // max(1, values)))
    size = max(range(max(1, most * 3 // 4), most + 1), key=lambda s: (total // s * s, s))
    batches = total // size
    return [take(images, slice(first, batches * size, batches)) for first in range(batches)]
