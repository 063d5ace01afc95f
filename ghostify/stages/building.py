"""Integers into names and numbers: what a stage and its blocks are called, cost, and consist of."""

from __future__ import annotations

from functools import cached_property

from torch import fx, nn

from ghostify.channels import Coupling, Unreadable, follow, idle_modules
from ghostify.costs import Cost, Op, count
from ghostify.errors import PlanError, did_you_mean
from ghostify.ghosts import GGhostStage
from ghostify.names import child_of, parent_of, within
from ghostify.running import overwritten
from ghostify.stages.flow import Flow
from ghostify.stages.pieces import Chain, Span
from ghostify.stages.stage import Block, Stage
from ghostify.tracing import own_parameters


class Description:
    """Turns chains of integers into names and numbers."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.ops: dict[str, Op] = {op.node: op for op in count(flow.traced)[0]}
        self.seen: set[int] = set()

    @cached_property
    def owners(self) -> dict[int, list[str]]:
        """By the ``id`` of each parameter, the modules that have it as their own."""
        owners: dict[int, list[str]] = {}
        for module, names in self.flow.traced.names.items():
            for parameter in own_parameters(module):
                owners.setdefault(id(parameter), []).append(names[0])
        return owners

    @cached_property
    def idle(self) -> list[str]:
        """The modules that did not run."""
        return idle_modules(self.flow.traced)

    @cached_property
    def g_ghosts(self) -> list[str]:
        """The G-Ghost stages there are."""
        return [names[0] for module, names in self.flow.traced.names.items() if isinstance(module, GGhostStage)]

    def stage(self, chain: Chain, spans: list[Span]) -> Stage:
        return self.of([(chain.at[span.start], chain.nodes(span.start, span.end)) for span in spans])

    def of(self, regions: list[tuple[int, list[int]]]) -> Stage:
        """The stage of these blocks, each by its entry and the nodes of its region."""
        parent = _shared_parent([self.flow.exact(region) for _, region in regions])
        blocks = tuple(self._block(entry, region, parent) for entry, region in regions)
        coupling, obstacle = self._coupling(blocks, regions)
        name = self._name([i for _, region in regions for i in region], list(blocks))
        return Stage(name=name, blocks=blocks, parent=parent, coupling=coupling, obstacle=obstacle)

    def _block(self, entry: int, region: list[int], parent: str | None) -> Block:
        exact = self.flow.exact(region)
        name = next((name for name in exact if parent_of(name) == parent), exact[0] if exact else self._ends(region))
        return Block(
            name=name,
            entry=self.flow.nodes[entry].name,
            exit=self.flow.nodes[region[-1]].name,
            in_shape=self.flow.shape(entry),
            out_shape=self.flow.shape(region[-1]),
            cost=self._cost(region),
            modules=(name,) if exact else tuple(self._chained(entry, region)),
        )

    def _chained(self, entry: int, region: list[int]) -> list[str]:
        """The children of one module that compute this block and nothing else, each from what the one before gives."""
        flow, home = self.flow, self.flow.home(region)
        children: dict[str, list[int]] = {}
        for index in region:
            child = child_of(flow.modules[index], home)
            if child is None:
                return []
            children.setdefault(child, []).append(index)
        # the children must form a chain: each reads the last node of the one before, and has no nodes outside the block
        source = entry
        for name, nodes in children.items():
            read = {before for index in nodes for before in flow.before[index]} - set(nodes)
            if flow.sizes[name] != len(nodes) or read != {source}:
                return []
            source = nodes[-1]
        return list(children)

    def _coupling(
        self, blocks: tuple[Block, ...], regions: list[tuple[int, list[int]]]
    ) -> tuple[Coupling | None, str | None]:
        """The channels of the blocks after the first, and what stands in the way of rewriting them."""
        traced, later = self.flow.traced, regions[1:]
        if len(self.flow.shape(regions[-1][1][-1])) != 4:
            return None, "works on other than two-dimensional maps, and G-Ghost stages are two-dimensional"
        try:
            nodes = [[self.flow.nodes[index] for index in region] for _, region in later]
            coupling = follow(traced, nodes, self.flow.nodes[later[0][0]]).coupling
        except Unreadable as problem:
            return None, f"cannot be thinned: {problem}"
        apart = next((block for block in blocks[1:] if not block.modules), None)
        if apart:
            return coupling, f"has a block, {apart.name}, that computes outside the modules it calls"
        reasons = (
            self._bound(block) or self._overwrites(block, region[1])
            for block, region in zip(blocks[1:], later, strict=True)
        )
        return coupling, next(filter(None, reasons), None)

    def _bound(self, block: Block) -> str | None:
        """Why the modules of a block cannot be exchanged."""
        if home := next((name for name in self.g_ghosts if within(block.name, name)), None):
            return f"is part of the G-Ghost stage {home!r} already"
        for name in block.modules:
            if name in self.flow.traced.involved:
                return f"has a block, {name}, that is called with more than its input, or gives more than one tensor"
            module = self.flow.traced.part(name)
            if len(self.flow.traced.names[module]) > 1:
                return f"has a block, {name}, that the network uses in several places"
            if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules()):
                return f"has a block, {name}, that carries hooks, which a new module would drop"
            if idle := next((one for one in self.idle if within(one, name)), None):
                return f"has a block, {name}, in which {idle} did not run on the example, so what it reads is unknown"
            for parameter in module.parameters():
                apart = (owner for owner in self.owners[id(parameter)] if not within(owner, name))
                if other := next(apart, None):
                    return f"has a block, {name}, that shares a weight with {other}, a tie a thinner copy would break"
        return None

    def _overwrites(self, block: Block, region: list[int]) -> str | None:
        """Whether a block writes into its input, which the ghosts read, too."""
        for node in (self.flow.nodes[index] for index in region):
            if any(target.name == block.entry for target in overwritten(self.flow.traced, node)):
                return f"has a block, {block.name}, that overwrites its input in place"
        return None

    def _name(self, region: list[int], blocks: list[Block]) -> str:
        home = self.flow.home(region)
        # a module is named for the stage if all that costs anything in it lies in the blocks
        inside = sum(self.flow.nodes[index].name in self.ops for index in region)
        if home and inside == sum(within(op.module, home) for op in self.ops.values()):
            return home
        return f"{blocks[0].name.split('..')[0]}..{blocks[-1].name.split('..')[-1]}"

    def _ends(self, region: list[int]) -> str:
        """The first and the last module called; where none is, the nodes' own names."""
        nodes = [self.flow.nodes[index] for index in region]
        names = [str(n.target) for n in nodes if n.op == "call_module"] or [n.name for n in nodes]
        return names[0] if names[0] == names[-1] else f"{names[0]}..{names[-1]}"

    def _cost(self, region: list[int]) -> Cost:
        ops = [op for index in region if (op := self.ops.get(self.flow.nodes[index].name))]
        return Cost(params=self._params(region), macs=sum(op.macs for op in ops), acts=sum(op.acts for op in ops))

    def _params(self, region: list[int]) -> int:
        """Parameters these nodes use, through what is computed from parameters alone too, each where first met."""
        total, waiting, seen = 0, [self.flow.nodes[index] for index in region], set[fx.Node]()
        while waiting:
            node = waiting.pop()
            for parameter in self._own(node):
                total += 0 if id(parameter) in self.seen else parameter.numel()
                self.seen.add(id(parameter))
            # what is computed from parameters alone is not live, so its parameters are found by going back from who
            # uses it
            aside = [source for source in node.all_input_nodes if source not in self.flow.index and source not in seen]
            seen.update(aside)
            waiting.extend(aside)
        return total

    def _own(self, node: fx.Node) -> list[nn.Parameter]:
        if node.op == "call_module":
            return list(self.flow.traced.leaf(node).parameters())
        parameter = node.meta.get("parameter")
        return [self.flow.traced.module.get_parameter(parameter)] if parameter else []


def _shared_parent(blocks: list[list[str]]) -> str | None:
    """The innermost module of which every block is a child under one of its names."""
    common = set.intersection(*({parent_of(name) for name in names} for names in blocks))
    return max(common, key=len, default=None)


def named_region(flow: Flow, name: str) -> list[int]:
    """The node a module (or several in a row, ``a..b``) reads and, behind it, its own nodes."""
    first, _, last = name.partition("..")
    region = [
        index for index, module in enumerate(flow.modules) if within(module, first) or within(module, last or first)
    ]
    region = list(range(region[0], region[-1] + 1)) if region and first and last else region
    sources = {source for index in region for source in flow.before[index]} - set(region)
    leaves = [i for i in region if not set(region).issuperset(flow.after[i])]
    if not name or not region:
        hint = did_you_mean(name, [n for names in flow.traced.names.values() for n in names])
        raise PlanError(f"The plan names a block {name!r}, which did not run or is not there.{hint}")
    if len(sources) != 1 or leaves != [region[-1]]:
        raise PlanError(f"{name!r} cannot be a block of a stage: it has more than one input or output.")
    return [*sources, *region]
