"""Modules that ran in no recorded run of a network, and what they may read.

Which tensors a module reads that did not run, nobody can tell: it may stand in a branch of its parent's code, in a
method that another class calls, or in a loss.  But only code that can see it calls it, that of the modules around it,
and they can give it no more than they see: what they were given, what they compute, and what they were returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, fx, nn

from ghostify.names import ancestors, parent_of
from ghostify.tracing import Traced


def idle_modules(traced: Traced, others: Sequence[Traced] = ()) -> list[str]:
    """The modules with a tensor of several numbers that no run used, by their first names, in the order they stand."""
    used = {name for run in (traced, *others) for name in _used(run)}
    owners = (parent_of(name) for name, tensor in _held(traced) if tensor.numel() > 1 and name not in used)
    return list(dict.fromkeys(owners))


def outermost(traced: Traced, idle: Iterable[str]) -> list[str]:
    """The largest modules, short of the network itself, that hold these and nothing that ran."""
    idle = list(idle)
    if not idle:
        return []
    busy = {parent_of(name) for name, _ in _held(traced)} - set(idle)
    around_busy = {one for name in busy for one in ancestors(name)} | {""}
    # ancestors come innermost first: the last that holds nothing busy is the largest
    found = (next((one for one in reversed(ancestors(name)) if one not in around_busy), name) for name in idle)
    return list(dict.fromkeys(found))


def exposed(traced: Traced, others: Sequence[Traced], idle: Iterable[str]) -> list[fx.Node]:
    """The nodes of all runs whose values the modules around ``idle`` ones see."""
    return seen_in(traced, others, {one for name in idle for one in _around(traced, name)})


def seen_in(traced: Traced, others: Sequence[Traced], modules: Iterable[str]) -> list[fx.Node]:
    """The nodes of all runs whose values the code of these modules sees."""
    chosen = set(modules)
    return [node for run in (traced, *others) for node in _seen(run, chosen)] if chosen else []


def _around(traced: Traced, name: str) -> Iterator[str]:
    """The first names of a module and of all that stand around it, by whichever of its names."""
    for alias in traced.names[traced.part(name)]:
        yield from (traced.names[traced.part(one)][0] for one in ancestors(alias))


def _seen(run: Traced, modules: set[str]) -> Iterator[fx.Node]:
    """The values that the code of some modules sees, those of parameters apart."""
    values: set[fx.Node] = set()
    for node in run.graph.nodes:
        if not modules.isdisjoint(_homes(node)):
            values |= {node, *node.all_input_nodes}
    return (node for node in run.graph.nodes if node in values and node.op not in ("get_attr", "output"))


def _homes(node: fx.Node) -> Iterator[str]:
    """The modules whose code sees a node's value: where it was computed, and on either side of each call it crossed."""
    if node.op != "call_module":
        yield str(node.meta.get("module", ""))
    yield from node.meta.get("seen", ())


def _used(run: Traced) -> Iterator[str]:
    """The first names of the parameters and buffers that a run used."""
    names = {id(tensor): name for name, tensor in reversed([*_held(run, duplicates=True)])}
    for node in run.graph.nodes:
        if node.op == "call_module":
            yield from (names[id(tensor)] for tensor in _tensors(run.leaf(node)))
        elif node.op == "get_attr" and node.target not in run.constants:
            yield names.get(id(run.tensor(node)), "")


def _tensors(layer: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a layer; most hold no modules, and ``parameters()`` is slow to find that."""
    if any(True for _ in layer.children()):
        return [*layer.parameters(), *layer.buffers()]
    return [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]


def _held(run: Traced, duplicates: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with their names, each once or with all of them."""
    yield from run.module.named_parameters(remove_duplicate=not duplicates)
    yield from run.module.named_buffers(remove_duplicate=not duplicates)
