"""Which layer of the converted network stands for which of the original, and which of its channels it makes.

A layer that a network calls more than once is one part with several calls, and each call has its own counterpart in the
original.  So have modules that share one weight: they are one part, too, whose calls are of several modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ghostify.ghosts import CGhost, GGhostStage
from ghostify.ghosts.narrowing import prepared
from ghostify.leastsquares.standardised import standardises
from ghostify.module_calls import (
    READ_ELSEWHERE,
    ModuleCall,
    by_call,
    call_number,
    calls_of,
    is_plain_layer,
    read_weights,
    unfit,
)
from ghostify.names import within
from ghostify.rules import Original, Swap, by_rule
from ghostify.rules.origins import Origins
from ghostify.scanning import Scan
from ghostify.tracing import Traced

Kind = Literal["ghost", "layer", "stage"]
_NOT_AS_OFTEN = "is not called as often as in the original"


def origins(traced: Traced, swaps: Sequence[Swap], module: nn.Module, before: Scan | None = None) -> Origins:
    """The origins of everything in ``module``, which ``swaps`` made of the ``traced`` network, scanned ``before``."""
    found = Origins()
    original = Original(traced.module, traced, before)
    for rule, own in by_rule(swaps):
        rule.origins(found, original, own, module)
    return found


@dataclass(frozen=True)
class Call:
    """One call of a part, in the converted network and in the original."""

    module: Any
    """What is called: the part's module or, of modules with one weight, each its own."""
    begin: fx.Node
    """Its first node; before it, everything it reads is known."""
    output: fx.Node
    inputs: fx.Node
    twin: fx.Node
    """The original's node whose value ``output`` is to be."""
    twin_inputs: fx.Node
    """What the original reads there."""
    pooled: tuple[fx.Node, ...] = ()
    """Of a stage, what its mix operation pools."""


@dataclass(frozen=True)
class Part:
    """A part of the converted network that is fitted at once."""

    kind: Kind
    name: str
    module: Any
    kept: Tensor | None
    """Which of the original's channels it makes; None for all."""
    calls: tuple[Call, ...]
    start: Tensor | None = None
    """Of a ghost, the filters of the layer that it stands for, (n, …)."""

    @property
    def outputs(self) -> list[fx.Node]:
        return [call.output for call in self.calls]

    @property
    def twins(self) -> list[fx.Node]:
        return [call.twin for call in self.calls]


class Matching:
    """The parts of a converted network in the order they first run."""

    def __init__(self, original: Traced, converted: Traced, root: nn.Module, origins: Origins) -> None:
        """``root`` holds the modules of the converted network; ``origins`` what is not its own namesake."""
        self.original, self.converted, self.root, self.origins = original, converted, root, origins
        self.ghosts = {name: part for name, part in _named(root, CGhost).items() if name in origins.ghosts}
        self.stages = {name: part for name, part in _named(root, GGhostStage).items() if name in origins.stages}
        self.holders = _holders(root)
        self.order = {node: index for index, node in enumerate(converted.graph.nodes)}
        self.read = read_weights(converted, root)
        """Parameters that the network reads itself, not by a layer alone."""
        self.skipped: dict[str, str] = {}
        """What was replaced and is not fitted, and why."""

    def parts(self) -> Iterator[Part]:
        done: set[str] = set()
        for node in self.converted.graph.nodes:
            name, find = self._at(node)
            if name and name not in done:
                done.add(name)
                part = find(name)
                if part is not None:
                    done.update(self._tied(part))
                    yield part

    def _at(self, node: fx.Node) -> tuple[str, Callable[[str], Part | None]]:
        """What a node belongs to, by name, and who makes a part of it; no name where it belongs to nothing."""
        module = str(node.meta.get("module", ""))
        if ghost := next((name for name in self.ghosts if within(module, name)), None):
            return ghost, self._ghost
        if stage := next((name for name in self.stages if self._makes_ghosts(node, name)), None):
            return stage, self._stage
        return (str(node.target), self._layer) if node.op == "call_module" else ("", self._layer)

    def _makes_ghosts(self, node: fx.Node, name: str) -> bool:
        """Whether a node belongs to the cheap or the mix operation of a stage."""
        module = str(node.meta.get("module", ""))
        return within(module, f"{name}.cheap") or within(module, f"{name}.mix")

    def _stage(self, name: str) -> Part | None:
        """The ghosts of a stage; None where nothing of them can be fitted."""
        stage = self.stages[name]
        ours = by_call(self.converted, name, lambda node: self._makes_ghosts(node, name))
        theirs = self._blocks(name)
        if not theirs or (isinstance(stage.cheap, nn.Identity) and (stage.mix is None or stage.mix.layers == 2)):
            return None
        if len(ours) != len(theirs):
            self.skipped[name] = "is called as often as no block of the original is"
            return None
        calls = []
        for ran, block in zip(ours, theirs, strict=True):
            begin, last = ran.nodes[0], block.nodes[-1]
            # The block ends with its activation; where the stage has one, ghosts are fitted to what that reads.
            twin = last.all_input_nodes[0] if stage.act is not None else last
            pools = [node for node in ran.nodes if within(str(node.meta["module"]), f"{name}.mix")]
            pooled = tuple(n.all_input_nodes[0] for n in pools if "pool" in str(n.target) or "pool" in str(n.name))
            inputs = begin.all_input_nodes[0]
            calls.append(Call(stage, begin, begin, inputs, twin, block.reads[0], pooled))
        return Part("stage", name, stage, torch.tensor(ghost_channels(stage)), tuple(calls))

    def _blocks(self, name: str) -> list[ModuleCall]:
        """The calls of the original's block whose output a stage's ghosts are of."""
        modules = self.origins.stages.get(name, ())
        grouped: dict[int, list[fx.Node]] = {}
        for node in self.original.graph.nodes:
            home = next((m for m in modules if within(str(node.meta.get("module", "")), m)), None)
            if node.users and home is not None and node.op != "get_attr":
                grouped.setdefault(call_number(node, home), []).append(node)
        return [ModuleCall(tuple(nodes)) for nodes in grouped.values()]

    def _ghost(self, name: str) -> Part | None:
        module = self.ghosts[name]
        ours, theirs = calls_of(self.converted, name), calls_of(self.original, name)
        if isinstance(module.primary, nn.Sequential):
            self.skipped[name] = "has norms and activations in its parts"
        elif len(ours) != len(theirs):
            self.skipped[name] = _NOT_AS_OFTEN
        elif reason := unfit(self.original.part(name), theirs):
            self.skipped[name] = reason
        elif not all(call.is_plain for call in ours):
            self.skipped[name] = "gives what nothing reads"
        else:
            _, kept = self.origins.layers.get(name, (name, None))
            return Part("ghost", name, module, kept, _calls(module, ours, theirs), self._start(name))
        return None

    def _start(self, name: str) -> Tensor:
        """The filters that a ghost's module was built from: the original's, or what was left of them."""
        original: Any = self.original.part(name)
        start: Tensor | None = self.origins.weights.get(name)
        if start is None:
            # What it convolves with, which it may make of its weight.
            start = prepared(original)[0] if standardises(original) else original.weight
        return start.detach()

    def _layer(self, name: str) -> Part | None:
        module: Any = self.root.get_submodule(name)
        if not is_plain_layer(module):
            return None
        names = [home for home, _ in self.holders[id(module.weight)]]
        origins = [self.origins.layers.get(home, (home, None)) for home in names]
        reason = self._obstacle(module, names, origins)
        if reason is None:
            calls = [
                call for home, (origin, _) in zip(names, origins, strict=True) for call in self._paired(home, origin)
            ]
            reason = None if calls else _NOT_AS_OFTEN
        if reason is not None:
            if name in self.origins.layers:
                self.skipped[name] = reason
            return None
        # Modules with one weight are listed by name, and a part is fitted where the first of its calls runs.
        calls.sort(key=lambda call: self.order[call.begin])
        kept = origins[0][1]
        made = calls[0].twin.meta["shapes"][0][-1 if isinstance(module, nn.Linear) else 1]
        if module.weight.shape[0] != (made if kept is None else len(kept)):
            return None
        return Part("layer", name, module, kept, tuple(calls))

    def _obstacle(
        self, module: nn.Module, names: Sequence[str], origins: Sequence[tuple[str, Tensor | None]]
    ) -> str | None:
        """Why a layer's weight cannot be fitted, as the end of a sentence that begins with its name."""
        weight: Any = module.weight
        if weight.is_complex():
            return "has complex weights"
        if id(weight) in self.read:
            return READ_ELSEWHERE
        alike = all(
            key == "weight" and type(self.root.get_submodule(home)) is type(module)
            for home, key in self.holders[id(weight)]
        )
        if not alike or any(not _same(kept, origins[0][1]) for _, kept in origins):
            others = ", ".join(home for home in names[1:])
            return f"shares its weight with another kind of layer ({others})"
        return None

    def _paired(self, name: str, origin: str) -> tuple[Call, ...]:
        """The calls of a plain layer; none where the original has another number, or any is of other inputs."""
        module = self.root.get_submodule(name)
        ours, theirs = calls_of(self.converted, name), calls_of(self.original, origin)
        fed = all(len(ran.nodes[0].all_input_nodes) == 1 for ran in ours)
        if len(ours) != len(theirs) or not fed or unfit(module, theirs):
            return ()
        return _calls(module, ours, theirs)

    def _tied(self, part: Part) -> list[str]:
        """The names of the modules of a part."""
        return [home for home, _ in self.holders[id(part.module.weight)]] if part.kind == "layer" else []


def _calls(module: nn.Module, ours: Sequence[ModuleCall], theirs: Sequence[ModuleCall]) -> tuple[Call, ...]:
    return tuple(
        Call(module, one.nodes[0], one.gives[0], one.reads[0], other.gives[0], other.reads[0])
        for one, other in zip(ours, theirs, strict=True)
    )


def ghost_channels(stage: GGhostStage) -> list[int]:
    """Which channels of a stage's output are ghosts."""
    cheap: Any = stage.cheap
    ghosts = stage.width - stage.kept if isinstance(cheap, nn.Identity) else cheap[0].out_channels
    if stage.order is None:
        return list(range(stage.width - ghosts, stage.width))
    # Output c is the map at place order[c] of what is concatenated; the inverse says where each place comes out.
    made: list[int] = stage.order.argsort().tolist()
    return made[stage.width - ghosts :]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _holders(root: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """By the ``id`` of a parameter, the modules that hold it and what it is to them."""
    holders: dict[int, list[tuple[str, str]]] = {}
    for name, module in root.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((name, key))
    return holders


def changed(
    original: Traced, converted: Traced, touched: Callable[[str], bool]
) -> tuple[dict[fx.Node, fx.Node], set[fx.Node]]:
    """Which nodes of the converted network give what one of the original does, up to the first that differs, and which
    nodes depend on anything ``touched`` (a test of a module's name)."""
    # Both recordings run in step up to the first surgery; behind it, nodes of one index are no longer counterparts.
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


def _named(root: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    return {name: module for name, module in root.named_modules() if isinstance(module, kind)}
