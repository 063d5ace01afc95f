"""Which layer of the converted network stands for which of the original, and which of its channels it makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ghostify.fitting.origins import Origins
from ghostify.fitting.stages import ghost_channels
from ghostify.ghosts import CGhost, CGhostLinear, GGhostStage
from ghostify.ghosts.narrowing import PLAIN, dimensions
from ghostify.names import within
from ghostify.tracing import Traced

Kind = Literal["ghost", "layer", "stage"]


@dataclass(frozen=True)
class Part:
    """A part of the converted network that is fitted at once."""

    kind: Kind
    name: str
    module: Any
    begin: fx.Node
    """Its first node; before it, everything it reads is known."""
    output: fx.Node
    inputs: fx.Node
    twin: fx.Node
    """The original's node whose value ``output`` is to be."""
    kept: Tensor | None
    """Which of its channels those are; None for all."""
    pooled: tuple[fx.Node, ...] = ()
    """Of a stage, what its mix operation pools."""


class Matching:
    """The parts of a converted network in the order they run."""

    def __init__(self, original: Traced, converted: Traced, root: nn.Module, origins: Origins) -> None:
        """``root`` holds the modules of the converted network; ``origins`` what is not its own namesake."""
        self.original, self.converted, self.root, self.origins = original, converted, root, origins
        self.twins = _calls(original)
        self.calls = _calls(converted)
        self.ghosts = {name: part for name, part in _named(root, CGhost).items() if name in origins.ghosts}
        self.stages = {name: part for name, part in _named(root, GGhostStage).items() if name in origins.stages}
        held = Counter(id(parameter) for part in root.modules() for parameter in part.parameters(recurse=False))
        self.tied = {parameter for parameter, times in held.items() if times > 1}
        self.skipped: dict[str, str] = {}
        """Ghosts that are not fitted, and why."""

    def parts(self) -> Iterator[Part]:
        done: set[str] = set()
        for node in self.converted.graph.nodes:
            ghost = next((name for name in self.ghosts if within(str(node.meta.get("module", "")), name)), None)
            if ghost is not None:
                if ghost not in done:
                    done.add(ghost)
                    if part := self._ghost(ghost):
                        yield part
                continue
            stage = next((name for name in self.stages if self._makes_ghosts(node, name)), None)
            if stage is not None:
                if stage not in done:
                    done.add(stage)
                    if part := self._stage(stage, node):
                        yield part
            elif node.op == "call_module" and (part := self._layer(node)):
                yield part

    def _makes_ghosts(self, node: fx.Node, name: str) -> bool:
        """Whether a node belongs to the cheap or the mix operation of a stage."""
        module = str(node.meta.get("module", ""))
        return within(module, f"{name}.cheap") or within(module, f"{name}.mix")

    def _stage(self, name: str, begin: fx.Node) -> Part | None:
        """The ghosts of a stage; None where nothing of them can be fitted."""
        stage = self.stages[name]
        modules = self.origins.stages.get(name, ())
        inside = [
            n
            for n in self.original.graph.nodes
            if n.users and any(within(str(n.meta.get("module", "")), m) for m in modules)
        ]
        if not inside or (isinstance(stage.cheap, nn.Identity) and (stage.mix is None or stage.mix.layers == 2)):
            return None
        twin = inside[-1].all_input_nodes[0] if stage.act is not None else inside[-1]
        pools = [n for n in self.converted.graph.nodes if within(str(n.meta.get("module", "")), f"{name}.mix")]
        pooled = tuple(n.all_input_nodes[0] for n in pools if "pool" in str(n.target) or "pool" in str(n.name))
        kept = torch.tensor(ghost_channels(stage))
        return Part("stage", name, stage, begin, begin, begin.all_input_nodes[0], twin, kept, pooled)

    def _ghost(self, name: str) -> Part | None:
        nodes = [n for n in self.converted.graph.nodes if n.op != "output" and within(str(n.meta["module"]), name)]
        inside = set(nodes)
        read = list(
            dict.fromkeys(n for x in nodes for n in x.all_input_nodes if n not in inside and n.op != "get_attr")
        )
        given = [n for n in nodes if any(user not in inside for user in n.users)]
        module, twins = self.ghosts[name], given_by(self.original, name)
        if isinstance(module.primary, nn.Sequential):
            self.skipped[name] = "has norms and activations in its parts"
            return None
        if not all(len(found) == 1 for found in (self.calls.get(f"{name}.cheap.0", []), twins, read, given)):
            self.skipped[name] = "is used more than once"
            return None
        if not isinstance(module, CGhostLinear) and not is_batched(module.primary, twins[0]):
            self.skipped[name] = "is given an image without a batch"
            return None
        return Part("ghost", name, module, nodes[0], given[0], read[0], twins[0], None)

    def _layer(self, node: fx.Node) -> Part | None:
        name = str(node.target)
        module: Any = self.root.get_submodule(name)
        plain = type(module) in (*PLAIN.values(), nn.Linear)
        if not plain or module.weight.is_complex() or len(self.calls[name]) != 1 or id(module.weight) in self.tied:
            return None
        origin, kept = self.origins.layers.get(name, (name, None))
        twins = self.twins.get(origin, [])
        if len(twins) != 1 or len(node.all_input_nodes) != 1 or not is_batched(module, twins[0]):
            return None
        made = twins[0].meta["shapes"][0][-1 if isinstance(module, nn.Linear) else 1]
        fits = module.weight.shape[0] == (made if kept is None else len(kept))
        return Part("layer", name, module, node, node, node.all_input_nodes[0], twins[0], kept) if fits else None


def changed(
    original: Traced, converted: Traced, touched: Callable[[str], bool]
) -> tuple[dict[fx.Node, fx.Node], set[fx.Node]]:
    """Which nodes of the converted network give what one of the original does, up to the first that differs, and which
    nodes depend on anything ``touched`` (a test of a module's name)."""
    same: dict[fx.Node, fx.Node] = {}
    for one, other in zip(converted.graph.nodes, original.graph.nodes, strict=False):
        alike = one.op == other.op and one.target == other.target and one.op != "output"
        if not alike or touched(str(one.meta.get("module", ""))) or touched(str(one.target)):
            break
        same[one] = other
    dirty: set[fx.Node] = set()
    for node in converted.graph.nodes:
        names = [
            str(node.meta.get("module", "")),
            *([str(node.target)] if node.op in ("call_module", "get_attr") else []),
        ]
        if any(map(touched, names)) or any(source in dirty for source in node.all_input_nodes):
            dirty.add(node)
    return same, dirty


def given_by(traced: Traced, name: str) -> list[fx.Node]:
    """What gives a layer's outputs: its calls or, of a class of its own, what others read of it."""
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    if calls := [node for node in nodes if node.op == "call_module" and str(node.target) == name]:
        return calls
    inside = {node for node in nodes if within(str(node.meta.get("module", "")), name)}
    return [node for node in nodes if node in inside and any(user not in inside for user in node.users)]


def is_batched(layer: nn.Module, output: fx.Node) -> bool:
    """Whether a layer gives a batch of maps, or rows, at a node."""
    return isinstance(layer, nn.Linear) or len(output.meta["shapes"][0]) == dimensions(layer) + 2


def _calls(traced: Traced) -> dict[str, list[fx.Node]]:
    """The calls of each layer, under the layer's first name."""
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return calls


def _named(root: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    return {name: module for name, module in root.named_modules() if isinstance(module, kind)}


def used_once(traced: Traced) -> set[str]:
    """Layers that are called once."""
    return {name for name, calls in _calls(traced).items() if len(calls) == 1}
