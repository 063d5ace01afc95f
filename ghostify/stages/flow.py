"""Regions: what lies between dominators and post-dominators, in chains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property

from torch import fx

from ghostify.names import ancestors, common
from ghostify.running import is_conv, op_name, overwritten
from ghostify.stages.stage import MIN_BLOCKS, Shape
from ghostify.tracing import Traced


class Flow:
    """The live nodes, those that lie between an input and an output, as integers in the order they ran."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.nodes = _live(traced.graph)
        self.index = {node: index for index, node in enumerate(self.nodes)}
        self.before = [[self.index[n] for n in node.all_input_nodes if n in self.index] for node in self.nodes]
        self.after = [[self.index[n] for n in node.users if n in self.index] for node in self.nodes]
        self.modules = [str(node.meta.get("module", "")) for node in self.nodes]

    def between(self, entry: int, exit: int) -> list[int]:
        """``exit`` and everything that leads from ``entry`` to it; the entry must dominate the exit."""
        seen, waiting = {exit}, [exit]
        while waiting:
            new = {source for source in self.before[waiting.pop()] if source != entry} - seen
            seen |= new
            waiting.extend(new)
        return sorted(seen)

    @cached_property
    def sizes(self) -> Counter[str]:
        """Live nodes in each module."""
        return Counter(around for name in self.modules[:-1] for around in ancestors(name))

    @cached_property
    def fed(self) -> set[int]:
        """Nodes whose value has passed a convolution."""
        fed: set[int] = set()
        for index, node in enumerate(self.nodes):
            conv = node.op in ("call_module", "call_function") and is_conv(op_name(self.traced, node))
            if conv or not fed.isdisjoint(self.before[index]):
                fed.add(index)
        return fed

    @cached_property
    def written(self) -> set[int]:
        """Nodes that a call whose value nobody reads writes to (``x[:, :4] *= 2``), which no edge of the graph says."""
        # Backwards, so that a chain of views (x[:, :4], then its *=) is known to end in a write before its start is
        # met.
        writing: set[fx.Node] = set()
        for node in reversed(self.traced.graph.nodes):
            if node not in self.index and (overwritten(self.traced, node) or not writing.isdisjoint(node.users)):
                writing.add(node)
        return {index for index, node in enumerate(self.nodes) if not writing.isdisjoint(node.users)}

    def home(self, region: Iterable[int]) -> str:
        """The innermost module around these nodes."""
        return common(self.modules[index] for index in region)

    def exact(self, region: list[int]) -> list[str]:
        """The modules that hold these nodes and no others, the innermost first."""
        return [name for name in ancestors(self.home(region)) if name and self.sizes[name] == len(region)]

    def shape(self, index: int) -> Shape:
        """Of the one tensor that a node gives; empty if it gives several."""
        shapes = self.nodes[index].meta.get("shapes", ())
        return tuple(shapes[0]) if len(shapes) == 1 else ()


def _live(graph: fx.Graph) -> list[fx.Node]:
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    # forwards, what an input reaches; backwards, of that, what reaches an output: both together are the live nodes
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in reached and (node.op == "output" or any(user in needed for user in node.users)):
            needed.add(node)
    return [node for node in graph.nodes if node in needed]


def _dominators(before: list[list[int]]) -> list[int]:
    """Immediate dominator of each node of a DAG in topological order, -1 for the virtual root.

    Cooper, Harvey and Kennedy 2001; without cycles one pass is enough.
    """
    above: list[int] = []
    for sources in before:
        # the nearest node on all ways to this one: climb from the later of two sources until they meet
        meet = sources[0] if sources else -1
        for other in sources[1:]:
            while meet != other:
                if meet > other:
                    meet = above[meet]
                else:
                    other = above[other]
        above.append(meet)
    return above


def chains(flow: Flow) -> Iterator[list[int]]:
    """Maximal chains of nodes, each the only way from the one before to the one after; the first is the entry."""
    last = len(flow.nodes) - 1
    above = _dominators(flow.before)
    # post-dominators are the dominators of the graph turned around, with its nodes counted from the end
    mirrored = _dominators([[last - user for user in users] for users in reversed(flow.after)])
    below = [last - mirrored[last - index] for index in range(last + 1)]
    # b follows a where each is the other's nearest: whatever leaves a enters b, and nothing else does
    following = {a: b for b, a in enumerate(above) if a >= 0 and below[a] == b and b != last}
    for head in sorted(set(range(last)) - set(following.values())):
        chain = [head]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        # the node before a chain may be read elsewhere, too (by an FPN), if nothing else between the two is
        if above[head] >= 0 and _closed(flow, above[head], head):
            chain.insert(0, above[head])
        if len(chain) > MIN_BLOCKS:
            yield chain


def _closed(flow: Flow, entry: int, exit: int) -> bool:
    """Whether nothing but the exit is read outside; the entry may be."""
    inside = set(flow.between(entry, exit))
    return all(inside.issuperset(flow.after[index]) for index in inside - {exit})
