"""The stages of a network, found on its recorded graph and not by names.

A stage is n ≥ 3 blocks in a row of one width and resolution, of which the first may downsample or widen (IJCV, Sec. 4).
How it is found:

1. *Regions.*  Over the nodes between inputs and outputs, b follows a when b is the nearest post-dominator of a and a
   the nearest dominator of b: whatever leaves a enters b, and nothing else does.  Such links form chains, and the
   nodes between two links are a region with one entry and one exit.  The node before a chain may be read elsewhere
   too (by an FPN, say), and so may its last.  Chains lie inside the regions of others: a branch of HRNet, of a CSP net.
2. *Pieces.*  A region with a convolution or linear layer on the full map is a piece.  Weightless regions join the
   piece before, as long as they keep the shape (a pool between two pieces belongs to neither); so do gates (SE, CBAM);
   a depthwise convolution joins the piece after it.
3. *Runs.*  A block is one to three pieces (``period``) that give back the shape they take; a run is blocks in a row
   with the same convolutions (kernel, and dense, grouped or depthwise).  The stage's first block is what stands
   before the run with a matching set of convolutions, a shortcut's projection allowed, else the first of the run.
4. *Choice.*  At least one spatial convolution; longer runs first, outer chains before the ones inside their regions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from pydantic import BaseModel, ConfigDict
from torch import fx, nn

from ghostify.channels import Coupling, Unreadable, follow
from ghostify.costs import Cost, Op, count, is_conv, op_name
from ghostify.errors import PlanError, did_you_mean
from ghostify.tracing import Traced

MIN_BLOCKS = 3
MAX_PERIOD = 3
_POINTWISE = "dense 1x1"
_PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__imul__", "__rmul__"})

Kinds = Counter[str]
Shape = tuple[int, ...]


class Block(BaseModel):
    """A part of the graph with one entry and one exit.  (N, C, H, W) → (N, C', H', W')"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The module that is exactly this block, else the first and last module called in it (``conv1..relu``)."""
    entry: str
    """Graph node whose value the block reads; it is not part of the block."""
    exit: str
    """Graph node whose value the block gives."""
    in_shape: Shape
    out_shape: Shape
    cost: Cost
    """Parameters count where the network first uses them, if blocks share them."""
    modules: tuple[str, ...] = ()
    """The modules that are this block, one or several that call each other's values in a chain; none if the block
    computes anything outside them."""


class Stage(BaseModel):
    """Blocks in a row of equal width and resolution; each reads what the one before gives, and nothing else does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The module that holds these blocks and no other weights, else the first and last name (``a..b``)."""
    blocks: tuple[Block, ...]
    parent: str | None
    """The module whose direct children are exactly the blocks (it may have others), if there is one."""
    coupling: Coupling | None = None
    """The channels of the blocks after the first, if they can be followed."""
    obstacle: str | None = None
    """Why this stage cannot be rewritten, as the end of a sentence that begins with its name; None if it can."""

    @property
    def n(self) -> int:
        return len(self.blocks)

    @property
    def entry(self) -> Block:
        """The first block, the only one that may change width and resolution."""
        return self.blocks[0]

    @property
    def width(self) -> int:
        """Channels out."""
        return self.blocks[-1].out_shape[1]

    @property
    def resolution(self) -> Shape:
        """Size of the maps out, (H, W)."""
        return self.blocks[-1].out_shape[2:]

    @property
    def cost(self) -> Cost:
        return sum((block.cost for block in self.blocks), Cost())

    @property
    def geometry(self) -> str:
        """Blocks, channels and resolution as a person writes them: ``6 x 192 @ 28x28``."""
        return f"{self.n} x {self.width} @ {'x'.join(map(str, self.resolution))}"

    @property
    def slot(self) -> str:
        """The module whose place what follows the first block takes."""
        return self.blocks[1].modules[0]

    def holds(self, name: str) -> bool:
        """Whether a module lies in the blocks after the first, which a G-Ghost stage replaces."""
        return any(_within(name, module) for block in self.blocks[1:] for module in block.modules)

    def __str__(self) -> str:
        return f"{self.name}: {self.geometry}"


def find_stages(traced: Traced) -> list[Stage]:
    """The stages of a recorded network in the order they run; none where it has none that can be read."""
    flow = _Flow(traced)
    taken: set[int] = set()
    found: list[tuple[_Chain, list[_Span]]] = []
    for nodes in sorted(_chains(flow), key=lambda nodes: nodes[0] - nodes[-1]):  # outer chains first
        if taken.isdisjoint(nodes[1:]):
            chain = _Chain(flow, nodes)
            for spans in _fitted(chain, _runs(chain)):
                found.append((chain, spans))
                taken.update(chain.nodes(spans[0].start, spans[-1].end))
    described = _Description(flow)
    return [described.stage(chain, spans) for chain, spans in sorted(found, key=lambda one: one[0].at[one[1][0].end])]


def stage_nodes(traced: Traced, stage: Stage) -> list[list[fx.Node]]:
    """The nodes of each block in the order they run: its exit, and what lies between entry and exit.

    What a block computes from parameters alone (a standardised weight) is not among them.
    """
    flow = _Flow(traced)
    at = {node.name: index for index, node in enumerate(flow.nodes)}
    return [[flow.nodes[index] for index in flow.between(at[block.entry], at[block.exit])] for block in stage.blocks]


def name_stage(traced: Traced, modules: Sequence[str]) -> Stage:
    """The stage whose blocks are these modules, one after the other, whether or not it would have been found.

    Raises ``PlanError`` where they are no such thing.
    """
    flow = _Flow(traced)
    parts = [_named_part(flow, name) for name in modules]
    for (first, one), (second, other) in pairwise(zip(modules, parts, strict=True)):
        if other[0] != one[-1]:
            raise PlanError(f"{second!r} does not read what {first!r} gives, so they are no blocks of one stage.")
    described = _Description(flow)
    stage = described.of([(part[0], part[1:]) for part in parts])
    uneven = next((b for b in stage.blocks[1:] if not b.in_shape == b.out_shape == stage.blocks[0].out_shape), None)
    if len(modules) < MIN_BLOCKS or uneven:
        why = f"{uneven.name!r} changes its maps' shape" if uneven else f"a stage has at least {MIN_BLOCKS} blocks"
        raise PlanError(f"The blocks {modules[0]!r} to {modules[-1]!r} are no stage: {why}.")
    return stage


def _named_part(flow: _Flow, name: str) -> list[int]:
    """The node a module reads and, behind it, its own nodes."""
    part = [index for index, module in enumerate(flow.modules) if _within(module, name)]
    sources = {source for index in part for source in flow.before[index]} - set(part)
    leaves = [i for i in part if not set(part).issuperset(flow.after[i])]
    if not name or not part:
        hint = did_you_mean(name, [n for names in flow.traced.names.values() for n in names])
        raise PlanError(f"The plan names a block {name!r}, which did not run or is not there.{hint}")
    if len(sources) != 1 or leaves != [part[-1]]:
        raise PlanError(f"{name!r} cannot be a block of a stage: it has more than one input or output.")
    return [*sources, *part]


# -- regions: dominators, post-dominators, chains --------------------------------------------------------------


class _Flow:
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
        return Counter(around for name in self.modules[:-1] for around in _ancestors(name))

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
        writing: set[fx.Node] = set()
        for node in reversed(self.traced.graph.nodes):
            if node not in self.index and (_writes(node) or not writing.isdisjoint(node.users)):
                writing.add(node)
        return {index for index, node in enumerate(self.nodes) if not writing.isdisjoint(node.users)}

    def home(self, part: Iterable[int]) -> str:
        """The innermost module around these nodes."""
        return _common(self.modules[index] for index in part)

    def exact(self, part: list[int]) -> list[str]:
        """The modules that hold these nodes and no others, the innermost first."""
        return [name for name in _ancestors(self.home(part)) if name and self.sizes[name] == len(part)]

    def shape(self, index: int) -> Shape:
        """Of the one tensor that a node gives; empty if it gives several."""
        shapes = self.nodes[index].meta.get("shapes", ())
        return tuple(shapes[0]) if len(shapes) == 1 else ()


def _live(graph: fx.Graph) -> list[fx.Node]:
    reached: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in reached and (node.op == "output" or any(user in needed for user in node.users)):
            needed.add(node)
    return [node for node in graph.nodes if node in needed]


def _writes(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name.startswith(("__setitem", "__i"))
    return node.op in ("call_method", "call_function") and in_place


def _dominators(before: list[list[int]]) -> list[int]:
    """Immediate dominator of each node of a DAG in topological order, -1 for the virtual root.

    Cooper, Harvey and Kennedy 2001; without cycles one pass is enough.
    """
    above: list[int] = []
    for sources in before:
        meet = sources[0] if sources else -1
        for other in sources[1:]:
            while meet != other:
                if meet > other:
                    meet = above[meet]
                else:
                    other = above[other]
        above.append(meet)
    return above


def _chains(flow: _Flow) -> Iterator[list[int]]:
    """Maximal chains of nodes, each the only way from the one before to the one after; the first is the entry."""
    last = len(flow.nodes) - 1
    above = _dominators(flow.before)
    mirrored = _dominators([[last - user for user in users] for users in reversed(flow.after)])
    below = [last - mirrored[last - index] for index in range(last + 1)]
    following = {a: b for b, a in enumerate(above) if a >= 0 and below[a] == b and b != last}
    for head in sorted(set(range(last)) - set(following.values())):
        chain = [head]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        if above[head] >= 0 and _closed(flow, above[head], head):
            chain.insert(0, above[head])
        if len(chain) > MIN_BLOCKS:
            yield chain


def _closed(flow: _Flow, entry: int, exit: int) -> bool:
    """Whether nothing but the exit is read outside; the entry may be."""
    inside = set(flow.between(entry, exit))
    return all(inside.issuperset(flow.after[index]) for index in inside - {exit})


# -- pieces: regions that belong together ----------------------------------------------------------------------


@dataclass
class _Span:
    """From position ``start`` of a chain (the entry, outside) to ``end`` (the exit); weightless after ``core``."""

    start: int
    core: int
    end: int
    kinds: Kinds


class _Chain:
    """A chain with what its regions are; region i lies between positions i - 1 and i."""

    def __init__(self, flow: _Flow, at: list[int]) -> None:
        self.flow = flow
        self.at = at
        self.shapes = [flow.shape(index) for index in at]
        self.regions = [[], *(flow.between(a, b) for a, b in pairwise(at))]
        self.kinds = [_kinds(flow, region, shape) for region, shape in zip(self.regions, self.shapes, strict=True)]
        self.pieces = self._pieces()

    def nodes(self, start: int, end: int) -> list[int]:
        return [index for region in self.regions[start + 1 : end + 1] for index in region]

    def _pieces(self) -> list[_Span]:
        pieces: list[_Span] = []
        for i in range(1, len(self.at)):
            previous = pieces[-1] if pieces and self.shapes[pieces[-1].core] == self.shapes[i - 1] else None
            if not self.kinds[i]:
                continue
            if previous and self._is_gate(i):
                previous.core = i
            elif previous and all(kind.startswith("depthwise") for kind in previous.kinds):
                previous.core, previous.kinds = i, previous.kinds + self.kinds[i]
            else:
                pieces.append(_Span(i - 1, i, i, self.kinds[i]))
        self._share_out_weightless(pieces)
        return pieces

    def _share_out_weightless(self, pieces: list[_Span]) -> None:
        """The regions between pieces join the one before while they keep its shape, the one after if that gives its."""
        free = 0
        limits = [*(piece.start for piece in pieces), len(self.at) - 1][1:]
        for piece, limit in zip(pieces, limits, strict=True):
            out = self.shapes[piece.core]
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


def _kinds(flow: _Flow, region: Iterable[int], out: Shape) -> Kinds:
    """The convolutions and linear layers of a region, without those on pooled maps (the inside of an SE gate)."""
    kinds: Kinds = Counter()
    for index in region:
        node = flow.nodes[index]
        if node.op not in ("call_module", "call_function"):
            continue
        name, shape = op_name(flow.traced, node), flow.shape(index)
        if name == "linear" and (len(shape) > 2 or len(out) == 2):
            kinds[name] += 1
        elif is_conv(name) and len(shape) == len(out) and (math.prod(shape[2:]) > 1 or math.prod(out[2:]) == 1):
            kinds.update(_conv_kind(flow.traced, node, name))
    return kinds


def _conv_kind(traced: Traced, node: fx.Node, name: str) -> Iterator[str]:
    """``dense 3x3`` and the like; nothing for a fixed filter (a blur)."""
    if node.op == "call_module":
        weight: Shape = tuple(traced.leaf(node).weight.shape)  # type: ignore[arg-type]
    else:
        source = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        assert isinstance(source, fx.Node)
        if source.op == "get_attr" and not source.meta.get("parameter"):
            return
        weight = tuple(source.meta["shapes"][0])
    channels = node.all_input_nodes[0].meta["shapes"][0][1]
    if "transpose" in name:
        kind = "transposed"
    elif weight[1] == channels:
        kind = "dense"
    else:
        kind = "depthwise" if weight[1] == 1 else "grouped"
    yield f"{kind} {'x'.join(map(str, weight[2:]))}"


# -- runs: blocks alike in a row -------------------------------------------------------------------------------


def _runs(chain: _Chain) -> list[list[_Span]]:
    """Disjoint runs of at least three blocks, those that cover most pieces first, then the shorter period."""
    chosen: list[list[_Span]] = []
    free = set(range(len(chain.pieces)))
    for _, _, first, blocks in sorted(_candidates(chain), key=lambda candidate: candidate[:3]):
        entry = len(blocks[0]) if blocks[0][-1] < first else 0
        if entry and not free.issuperset(blocks[0]):
            blocks = blocks[1:]
        pieces = {piece for block in blocks for piece in block}
        if len(blocks) >= MIN_BLOCKS and pieces <= free:
            free -= pieces
            chosen.append([_joined([chain.pieces[piece] for piece in block]) for block in blocks])
    return chosen


def _candidates(chain: _Chain) -> Iterator[tuple[int, int, int, list[range]]]:
    """(minus the pieces covered, period, first piece of the run, pieces of each block), the entry among the blocks."""
    for period in range(1, MAX_PERIOD + 1):
        lengths: dict[int, int] = {}
        groups = {first: _group(chain, first, period) for first in range(len(chain.pieces) - period + 1)}
        for first in reversed(groups):
            group, after = groups[first], groups.get(first + period)
            if group is not None and _is_block(chain, group) and not _repeats(chain, first, period):
                continues = first + period in lengths and after is not None and _alike(chain, group, after)
                lengths[first] = 1 + (lengths[first + period] if continues else 0)
        for first, length in lengths.items():
            blocks = [range(first + i * period, first + (i + 1) * period) for i in range(length)]
            entry = _entry(chain, first, groups[first])
            blocks = [entry, *blocks] if entry else blocks
            yield -sum(map(len, blocks)), period, first, blocks


def _group(chain: _Chain, first: int, size: int) -> _Span | None:
    """Pieces ``first`` on, ``size`` of them, as one; None if something lies between them."""
    pieces = chain.pieces[first : first + size]
    return _joined(pieces) if all(a.end == b.start for a, b in pairwise(pieces)) else None


def _joined(pieces: list[_Span]) -> _Span:
    return _Span(pieces[0].start, pieces[-1].core, pieces[-1].end, sum((piece.kinds for piece in pieces), Counter()))


def _is_block(chain: _Chain, group: _Span) -> bool:
    """One map in, one of the same shape out (channels first), and a spatial convolution at that resolution."""
    shape = chain.shapes[group.end]
    spatial = any("x" in kind and set(kind.split()[1].split("x")) != {"1"} for kind in group.kinds)
    if not spatial or len(shape) < 4 or chain.shapes[group.start] != shape:
        return False
    nodes = chain.nodes(group.start, group.end)
    return chain.flow.written.isdisjoint(nodes) and _is_resolution(chain.flow, nodes, shape[2:])


def _repeats(chain: _Chain, first: int, period: int) -> bool:
    """Whether a block of several pieces is a smaller one several times over."""
    pieces = chain.pieces[first : first + period]
    shapes = {chain.shapes[i] for piece in pieces for i in (piece.start, piece.end)}
    return period > 1 and len(shapes) == 1 and all(piece.kinds == pieces[0].kinds for piece in pieces)


def _is_resolution(flow: _Flow, part: list[int], maps: Shape) -> bool:
    return any(flow.shape(i)[2:] == maps and is_conv(op_name(flow.traced, flow.nodes[i])) for i in part)


def _alike(chain: _Chain, one: _Span, other: _Span) -> bool:
    return one.end == other.start and chain.shapes[one.end] == chain.shapes[other.end] and one.kinds == other.kinds


def _entry(chain: _Chain, first: int, block: _Span | None) -> range | None:
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


def _is_stem_apart(chain: _Chain, entry: _Span, block: _Span) -> bool:
    """Whether an entry is the network's first layer, outside the module that the block lies in."""
    flow = chain.flow
    return chain.at[entry.start] not in flow.fed and not _within(
        flow.home(chain.nodes(entry.start, entry.core)), _parent(flow.home(chain.nodes(block.start, block.core)))
    )


def _matches(entry: Kinds, block: Kinds) -> bool:
    """Whether an entry has the block's convolutions, and beyond them fewer again and one projection by its shortcut."""
    extra = entry - block
    foreign = [kind for kind in extra.elements() if kind not in block]
    projected = len(foreign) <= 1 and all(kind.startswith("dense") for kind in foreign)
    return block <= entry and projected and extra.total() - max(len(foreign), extra[_POINTWISE] > 0) < block.total()


def _fitted(chain: _Chain, runs: list[list[_Span]]) -> Iterator[list[_Span]]:
    """Each run with its weightless ends fitted to the modules that hold it."""
    end = 0
    for spans in sorted(runs, key=lambda spans: spans[0].start):
        spans = _trimmed(chain, spans)
        spans[0] = _led(chain, spans[0], end)
        end = spans[-1].end
        yield spans


def _trimmed(chain: _Chain, spans: list[_Span]) -> list[_Span]:
    """With the last block's weightless end cut where its module ends, else where the module around the stage does."""
    *others, last = spans
    flow, home = chain.flow, chain.flow.home(chain.nodes(spans[0].start, last.core))
    ends = [i for i in range(last.core, last.end + 1) if chain.shapes[i] == chain.shapes[last.core]]
    whole = [end for end in ends if len(part := chain.nodes(last.start, end)) > 1 and flow.exact(part)]
    around = [end for end in ends if _within(flow.home(chain.nodes(last.start, end)), home)]
    return [*others, replace(last, end=max(whole or around))]


def _led(chain: _Chain, block: _Span, free: int) -> _Span:
    """With the weightless start of its module (a norm before the convolutions and the shortcut) if that is free."""
    for start in range(block.start - 1, free - 1, -1):
        if chain.kinds[start + 1]:
            break
        if len(chain.shapes[start]) > 2 and chain.flow.exact(chain.nodes(start, block.end)):
            return replace(block, start=start)
    return block


# -- names and costs -------------------------------------------------------------------------------------------


class _Description:
    """Turns chains of integers into names and numbers."""

    def __init__(self, flow: _Flow) -> None:
        self.flow = flow
        self.ops: dict[str, Op] = {op.node: op for op in count(flow.traced)[0]}
        self.seen: set[int] = set()

    def stage(self, chain: _Chain, spans: list[_Span]) -> Stage:
        return self.of([(chain.at[span.start], chain.nodes(span.start, span.end)) for span in spans])

    def of(self, parts: list[tuple[int, list[int]]]) -> Stage:
        """The stage of these blocks, each told by its entry and its nodes."""
        parent = _shared_parent([self.flow.exact(part) for _, part in parts])
        blocks = tuple(self._block(entry, part, parent) for entry, part in parts)
        coupling, obstacle = self._coupling(blocks, parts)
        name = self._name([i for _, part in parts for i in part], list(blocks))
        return Stage(name=name, blocks=blocks, parent=parent, coupling=coupling, obstacle=obstacle)

    def _block(self, entry: int, part: list[int], parent: str | None) -> Block:
        exact = self.flow.exact(part)
        name = next((name for name in exact if _parent(name) == parent), exact[0] if exact else self._ends(part))
        return Block(
            name=name,
            entry=self.flow.nodes[entry].name,
            exit=self.flow.nodes[part[-1]].name,
            in_shape=self.flow.shape(entry),
            out_shape=self.flow.shape(part[-1]),
            cost=self._cost(part),
            modules=(name,) if exact else tuple(self._chained(entry, part)),
        )

    def _chained(self, entry: int, part: list[int]) -> list[str]:
        """The children of one module that compute this block and nothing else, each from what the one before gives."""
        flow, home = self.flow, self.flow.home(part)
        children: dict[str, list[int]] = {}
        for index in part:
            child = _child(flow.modules[index], home)
            if child is None:
                return []
            children.setdefault(child, []).append(index)
        source = entry
        for name, nodes in children.items():
            read = {before for index in nodes for before in flow.before[index]} - set(nodes)
            if flow.sizes[name] != len(nodes) or read != {source}:
                return []
            source = nodes[-1]
        return list(children)

    def _coupling(
        self, blocks: tuple[Block, ...], parts: list[tuple[int, list[int]]]
    ) -> tuple[Coupling | None, str | None]:
        """The channels of the blocks after the first, and what stands in the way of rewriting them."""
        traced, later = self.flow.traced, parts[1:]
        try:
            nodes = [[self.flow.nodes[index] for index in part] for _, part in later]
            coupling = follow(traced, nodes, self.flow.nodes[later[0][0]]).coupling
        except Unreadable as problem:
            return None, f"cannot be thinned: {problem}"
        apart = next((block for block in blocks[1:] if not block.modules), None)
        if apart:
            return coupling, f"has a block, {apart.name}, that computes outside the modules it calls"
        return coupling, next(filter(None, (self._bound(block) for block in blocks[1:])), None)

    def _bound(self, block: Block) -> str | None:
        """Why the modules of a block cannot be exchanged."""
        for name in block.modules:
            module = self.flow.traced.module.get_submodule(name)
            if len(self.flow.traced.names[module]) > 1:
                return f"has a block, {name}, that the network uses in several places"
            if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules()):
                return f"has a block, {name}, that carries hooks, which a new module would drop"
        return None

    def _name(self, part: list[int], blocks: list[Block]) -> str:
        home = self.flow.home(part)
        inside = sum(self.flow.nodes[index].name in self.ops for index in part)
        if home and inside == sum(_within(op.module, home) for op in self.ops.values()):
            return home
        return f"{blocks[0].name.split('..')[0]}..{blocks[-1].name.split('..')[-1]}"

    def _ends(self, part: list[int]) -> str:
        """The first and the last module called; where none is, the nodes' own names."""
        nodes = [self.flow.nodes[index] for index in part]
        names = [str(n.target) for n in nodes if n.op == "call_module"] or [n.name for n in nodes]
        return names[0] if names[0] == names[-1] else f"{names[0]}..{names[-1]}"

    def _cost(self, part: list[int]) -> Cost:
        ops = [op for index in part if (op := self.ops.get(self.flow.nodes[index].name))]
        return Cost(params=self._params(part), macs=sum(op.macs for op in ops), acts=sum(op.acts for op in ops))

    def _params(self, part: list[int]) -> int:
        """Parameters these nodes use, through what is computed from parameters alone too, each where first met."""
        total, waiting, seen = 0, [self.flow.nodes[index] for index in part], set[fx.Node]()
        while waiting:
            node = waiting.pop()
            for parameter in self._own(node):
                total += 0 if id(parameter) in self.seen else parameter.numel()
                self.seen.add(id(parameter))
            aside = [source for source in node.all_input_nodes if source not in self.flow.index and source not in seen]
            seen.update(aside)
            waiting.extend(aside)
        return total

    def _own(self, node: fx.Node) -> list[nn.Parameter]:
        if node.op == "call_module":
            return list(self.flow.traced.leaf(node).parameters())
        parameter = node.meta.get("parameter")
        return [self.flow.traced.module.get_parameter(parameter)] if parameter else []


def _ancestors(name: str) -> list[str]:
    """A module's name and those of all modules around it, the innermost first, the root (``""``) last."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _child(name: str, home: str) -> str | None:
    """The child of ``home`` that ``name`` is or lies in; None for ``home`` itself."""
    if name == home:
        return None
    depth = home.count(".") + 1 if home else 0
    return ".".join(name.split(".")[: depth + 1])


def _within(name: str, home: str) -> bool:
    return not home or name == home or name.startswith(f"{home}.")


def _common(names: Iterable[str]) -> str:
    """The innermost module around all of ``names``."""
    first, *others = [name.split(".") for name in set(names)]
    shared = len(first)
    for parts in others:
        shared = next(
            (i for i, (a, b) in enumerate(zip(first[:shared], parts, strict=False)) if a != b), min(shared, len(parts))
        )
    return ".".join(first[:shared])


def _shared_parent(blocks: list[list[str]]) -> str | None:
    """The innermost module of which every block is a child under one of its names."""
    common = set.intersection(*({_parent(name) for name in names} for names in blocks))
    return max(common, key=len, default=None)
