"""In which order two networks are run, so that a part that is called more than once finds what all its calls read.

A network runs ``net(x)`` to its end before it begins ``net(x.flip(3))``; a layer of it is fitted to both, and before
anything that reads what it gives.  So both networks are run in another order of the same operations, part by part:

    what all calls of part 1 read | 1 is fitted | its calls, and what all calls of part 2 read | 2 is fitted | …

Parts that wait for each other make up a *loop*, such as a recurrent cell, whose later calls read what its earlier ones
gave.  In a loop a part is fitted once its first call's inputs are there; the calls whose inputs are not are *late*.

Operations that overwrite keep their place among all that may lie in the same memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from ghostify.running import op_name, overwritten
from ghostify.tracing import Traced

_FRESH = """
adaptive_avg_pool1d adaptive_avg_pool2d add avg_pool2d batch_norm cat conv1d conv2d conv3d div flip interpolate linear
max_pool2d mean mul relu roll sigmoid softmax stack sub tanh
"""
_MAKES_ITS_OWN = frozenset(_FRESH.split())
"""Functions that give a tensor in memory of its own; any other may give a view of what it reads."""


@dataclass(frozen=True)
class Needs:
    """What a part waits for."""

    calls: tuple[tuple[fx.Node, ...], ...]
    """By call, the nodes whose values it needs."""
    outputs: tuple[fx.Node, ...]
    """What it gives, by call."""
    begin: fx.Node
    """Its first node."""


@dataclass(frozen=True)
class Loop:
    """Parts that are fitted one after the other; of more than one turn where some calls are late."""

    parts: tuple[int, ...]
    stops: tuple[int, ...]
    """By part, the index in the order before which everything has run that it needs."""
    late: tuple[frozenset[int], ...]
    """By part, the calls whose inputs are not there then."""
    end: int
    """The index before which the late calls' inputs have come."""

    @property
    def turns(self) -> bool:
        """Whether anything is late."""
        return any(self.late)


@dataclass(frozen=True)
class Schedule:
    """The loops in order, and the order in which the converted network's nodes are run."""

    loops: tuple[Loop, ...]
    order: list[fx.Node]


class Order:
    """Nodes of a recorded network in an order that grows by what is asked for, and by what that depends on."""

    def __init__(self, traced: Traced, begin: int) -> None:
        """The first ``begin`` nodes stand where they stood."""
        self.nodes = [node for node in traced.graph.nodes if node.op != "output"]
        self.before = before(traced)
        self.placed = self.nodes[:begin]
        self._there = set(self.placed)
        self._index = {node: index for index, node in enumerate(self.nodes)}

    def place(self, wanted: Iterable[fx.Node]) -> int:
        """Let these nodes run next, after all they depend on; how many are placed then."""
        missing: set[fx.Node] = set()
        waiting = [node for node in wanted if node not in self._there]
        while waiting:
            node = waiting.pop()
            if node not in missing:
                missing.add(node)
                waiting += [source for source in self.before[node] if source not in self._there]
        # The recorded order puts inputs first, so among the missing it does, too.
        self.placed += sorted(missing, key=self._index.__getitem__)
        self._there |= missing
        return len(self.placed)

    def rest(self) -> list[fx.Node]:
        """All nodes, those that nobody asked for last."""
        self.place(self.nodes)
        return self.placed


def schedule(traced: Traced, parts: Sequence[Needs], begin: int) -> Schedule:
    """The order in which a converted network is run and its parts are fitted.

    ``parts`` in the order they first run; the first ``begin`` nodes run as they stand.
    """
    order = Order(traced, begin)
    if all(len(part.calls) == 1 for part in parts):
        return _as_it_stands(order, parts)
    upstream = _upstream(order, parts)
    loops, fitted = [], 0
    for group in _groups(parts, upstream):
        stops, late = [], []
        for part in group:
            waits = {c for c, needs in enumerate(parts[part].calls) if _any(upstream, needs) & ~fitted}
            ready = (node for c, needs in enumerate(parts[part].calls) if c not in waits for node in needs)
            stops.append(order.place(ready))
            late.append(frozenset(waits))
            fitted |= 1 << part
        needed = (node for part, waits in zip(group, late, strict=True) for c in waits for node in parts[part].calls[c])
        loops.append(Loop(tuple(group), tuple(stops), tuple(late), order.place(needed)))
    return Schedule(tuple(loops), order.rest())


def before(traced: Traced) -> dict[fx.Node, list[fx.Node]]:
    """By node, what must have run before it: its inputs, and what shares memory with something overwritten between."""
    found = {node: list(node.all_input_nodes) for node in traced.graph.nodes}
    families = _families(traced)
    for family in families:
        # A read must stay between the writes it stood between, or it finds other values.
        touching = [node for node in found if node in family or not family.isdisjoint(node.all_input_nodes)]
        last_write, since = None, list[fx.Node]()
        for node in touching:
            if last_write is not None:
                found[node].append(last_write)
            if any(target in family for target in overwritten(traced, node)):
                found[node] += since
                last_write, since = node, []
            since.append(node)
    return found


def _families(traced: Traced) -> list[set[fx.Node]]:
    """Sets of nodes whose values may lie in one memory, of those in which anything is overwritten."""
    family: dict[fx.Node, set[fx.Node]] = {}
    written: list[fx.Node] = []
    for node in traced.graph.nodes:
        targets = overwritten(traced, node)
        written += targets
        sources = node.all_input_nodes if targets or not _makes_its_own(traced, node) else []
        # What gives a view joins all that its source may share memory with; nobody can say of which part.
        joined = set().union({node}, *(family[source] for source in sources))
        for member in joined:
            family[member] = joined
    return list({id(family[node]): family[node] for node in written}.values())


def _makes_its_own(traced: Traced, node: fx.Node) -> bool:
    """Whether a node that overwrites nothing certainly gives a tensor in memory of its own."""
    if node.op == "call_module":
        return any(True for _ in traced.leaf(node).parameters()) or op_name(traced, node).endswith(("Pool2d", "ReLU"))
    return op_name(traced, node) in _MAKES_ITS_OWN


def _as_it_stands(order: Order, parts: Sequence[Needs]) -> Schedule:
    """Where everything is called once, networks run as they are written: what a part needs has run before it does."""
    index = {node: at for at, node in enumerate(order.nodes)}
    stops = [index[part.begin] for part in parts]
    loops = [Loop((part,), (stop,), (frozenset(),), stop) for part, stop in enumerate(stops)]
    return Schedule(tuple(loops), order.nodes)


# -- which parts wait for which ----------------------------------------------------------------------------------
#
# Sets of parts are whole numbers, of which bit i stands for part i: networks have thousands of nodes, and each has one.


def _upstream(order: Order, parts: Sequence[Needs]) -> dict[fx.Node, int]:
    """By node, the parts whose outputs it is made of."""
    own: dict[fx.Node, int] = {}
    for index, part in enumerate(parts):
        for output in part.outputs:
            own[output] = own.get(output, 0) | 1 << index
    upstream: dict[fx.Node, int] = {}
    for node in order.nodes:
        upstream[node] = _any(upstream, order.before[node]) | own.get(node, 0)
    return upstream


def _any(upstream: dict[fx.Node, int], nodes: Collection[fx.Node]) -> int:
    found = 0
    for node in nodes:
        found |= upstream[node]
    return found


def _groups(parts: Sequence[Needs], upstream: dict[fx.Node, int]) -> list[list[int]]:
    """The parts in an order in which each follows all it waits for; those that wait for each other together."""
    waits = [_any(upstream, [node for call in part.calls for node in call]) for part in parts]
    while True:  # what a part waits for may wait for something else by another of its calls
        further = [_through(waits, one) for one in waits]
        if further == waits:
            break
        waits = further
    groups: list[list[int]] = []
    done = 0
    for part in range(len(parts)):
        ahead = [other for other in range(len(parts)) if waits[part] >> other & 1 and not done >> other & 1]
        # who waits for fewer parts cannot wait for who waits for more, unless both are in one loop
        for one in sorted({*ahead, part}, key=lambda other: (waits[other].bit_count(), other)):
            if done >> one & 1:
                continue
            alike = [o for o in range(len(parts)) if o == one or (waits[one] >> o & 1 and waits[o] >> one & 1)]
            groups.append(alike)
            done |= sum(1 << o for o in alike)
    return groups


def _through(waits: Sequence[int], one: int) -> int:
    found = one
    for other, its in enumerate(waits):
        if one >> other & 1:
            found |= its
    return found
