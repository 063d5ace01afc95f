"""What is fitted, to what, and in which order: all that two recorded networks tell before either is run."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from ghostify.fitting.agenda.aims import Aim
from ghostify.fitting.agenda.correspondence import Call, Matching, Part, changed
from ghostify.fitting.agenda.epilogue import Epilogue, is_norm, rectifier_after
from ghostify.fitting.agenda.schedule import Needs, Order, Schedule, schedule
from ghostify.recipe import FitSettings
from ghostify.rules.origins import Origins
from ghostify.running import frozen_parts
from ghostify.tracing import Traced


class Agenda:
    """The parts of a converted network, the aims of their calls, and the order in which both networks are run."""

    def __init__(
        self, original: Traced, converted: Traced, module: nn.Module, settings: FitSettings, origins: Origins
    ) -> None:
        self.original, self.converted, self.settings, self.origins = original, converted, settings, origins
        self.matching = Matching(original, converted, module, origins)
        self.same, self.dirty = changed(original, converted, origins.touch)
        self.frozen = {inner for part in frozen_parts(module) for inner in part.modules()}
        """What the user froze: as it is, unless the plan replaced it."""
        self.parts = [part for part in self.matching.parts() if self._wants(part)]
        self.aims = [tuple(self._aim(part, call) for call in part.calls) for part in self.parts]
        """By part and call."""
        self.norms = self._norms()
        """By name of a norm that reads something new anywhere, its calls."""
        self.begin = self._begin()
        """How many nodes of either network are the same, and concern no part."""
        self.needs = [self._needs(index) for index in range(len(self.parts))]
        self.schedule: Schedule = schedule(converted, self.needs, self.begin)
        self.late = {
            part: late for loop in self.schedule.loops for part, late in zip(loop.parts, loop.late, strict=True)
        }
        """By part, the calls whose inputs are not there when it is first fitted."""
        self.stops = {
            part: stop for loop in self.schedule.loops for part, stop in zip(loop.parts, loop.stops, strict=True)
        }
        """By part, the index of the converted network's order where it is fitted."""

    def together(self, part: int) -> tuple[int, ...]:
        """The parts of a part's loop."""
        return next(loop.parts for loop in self.schedule.loops if part in loop.parts)

    def stand_ins(self, part: int, call: int) -> dict[fx.Node, fx.Node]:
        """By node that a late call needs, the original's that can stand in for it; nothing where any has no such."""
        its, aim = self.parts[part].calls[call], self.aims[part][call]
        found = {its.inputs: its.twin_inputs}
        if aim.added is not None and aim.theirs.other is not None:
            found[aim.added] = aim.theirs.other
        # A thinned layer's output has fewer channels than the original's, which then cannot stand in for it.
        alike = all(one.meta["shapes"] == other.meta["shapes"] for one, other in found.items())
        return found if alike and len(found) == len(set(self.needs[part].calls[call])) else {}

    def needed(self, part: int) -> list[fx.Node]:
        """The nodes of the original whose values the fit of a part asks for."""
        return list(dict.fromkeys(self._needed(part)))

    def order_of_original(self) -> list[fx.Node]:
        """The original's nodes in an order that keeps pace with the schedule."""
        order = Order(self.original, self.begin)
        if all(len(part.calls) == 1 for part in self.parts):
            return order.nodes
        for loop in self.schedule.loops:
            for part in loop.parts:
                order.place(self.needed(part))
        return order.rest()

    def _needed(self, part: int) -> Iterator[fx.Node]:
        for index, aim in enumerate(self.aims[part]):
            yield from aim.needed
            if index in self.late[part]:
                yield from self.stand_ins(part, index).values()

    def _wants(self, part: Part) -> bool:
        if part.kind == "layer" and self.origins.keeps(part.name):
            return False
        replaced = part.kind != "layer" or part.name in self.origins.layers
        frozen = any(call.module in self.frozen for call in part.calls)
        if not replaced and (frozen or not self.settings.kept):
            return False
        return any(call.begin in self.dirty or call.output in self.dirty for call in part.calls)

    def _aim(self, part: Part, call: Call) -> Aim:
        if part.kind == "stage":
            # The stage holds its activation, so the sum before it is the original's whole one.  Without a cheap
            # operation Y1 is passed on as it is, and the mix operation is fitted to what is left.
            ceiling = rectifier_after(self.original, call.twin) if part.module.act is not None else None
            around = Epilogue(call.twin, None, None, call.twin, ceiling)
            passed = call.inputs if isinstance(part.module.cheap, nn.Identity) else None
            return Aim(around, around, part.kept, passed, None)
        return Aim.of(self.original, self.matching, part, call, self.settings.compensate)

    def _needs(self, index: int) -> Needs:
        part = self.parts[index]
        calls = []
        for call, aim in zip(part.calls, self.aims[index], strict=True):
            calls.append((call.inputs, *call.pooled, *([] if aim.added is None else [aim.added])))
        return Needs(tuple(calls), tuple(part.outputs), part.calls[0].begin)

    def _norms(self) -> dict[str, list[fx.Node]]:
        calls: dict[str, list[fx.Node]] = {}
        for node in self.converted.graph.nodes:
            if is_norm(self.converted, node) and self._renews(node):
                calls.setdefault(str(node.target), []).append(node)
        return {name: nodes for name, nodes in calls.items() if not self.dirty.isdisjoint(nodes)}

    def _renews(self, node: fx.Node) -> bool:
        """Whether a norm is to have new statistics: not where it, or the layer that it follows, is to stay."""
        name, source = str(node.target), node.all_input_nodes[0]
        layer = str(source.target if source.op == "call_module" else source.meta.get("module", ""))
        if self.origins.keeps(name) or self.origins.keeps(layer):
            return False
        return self.settings.kept or self.origins.touch(layer) or self.origins.touch(name)

    def _begin(self) -> int:
        """Not past the first call of anything that is looked at, be it only another of its calls that differs."""
        order = self.matching.order
        differs = (
            order[node] for node in order if node.op != "output" and (node in self.dirty or node not in self.same)
        )
        calls = (order[call.begin] for part in self.parts for call in part.calls)
        norms = (order[node] for nodes in self.norms.values() for node in nodes)
        return min([next(differs, 0), *calls, *norms])
