"""The fit: both networks walk through the calibration images, and each part is fitted where it stands."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from ghostify.batches import Batch, count
from ghostify.errors import FitError
from ghostify.fit_result import Fit, LayerError
from ghostify.fitting.agenda import Agenda
from ghostify.fitting.calibration import Calibration
from ghostify.fitting.correspondence import Origins, Part
from ghostify.fitting.ghosts import GhostFit, cheap_unknowns, solved_for
from ghostify.fitting.interpreter import MEMORY, Interpreter, size_of
from ghostify.fitting.judging import Judge, called, outputs
from ghostify.fitting.layers import MOST, LayerFit, error, too_wide
from ghostify.fitting.norms import Seen, renew
from ghostify.fitting.schedule import Loop
from ghostify.fitting.stages import StageFit
from ghostify.fitting.targets import Pair, Targets
from ghostify.ghosts import CGhostLinear
from ghostify.leastsquares.sampling import Block, Positions, Samples, positions_wanted
from ghostify.recipe import FitSettings
from ghostify.running import ELSEWHERE, agree, evaluating
from ghostify.tracing import Traced, trace

_MANY = f"each filter has more than the {MOST:,} unknowns that are solved for"

TURNS = 3
"""How often the parts of a loop are fitted at most."""
_APART = 7919
"""By how much the seeds of two calls of one layer differ: positions of every call are others."""

Told = Callable[[int, int], None]
"""Who is told how many parts of how many are fitted."""


class Fitting(Protocol):
    """What fits one part."""

    def fit(self) -> float: ...

    def outputs(self, block: Block) -> Tensor: ...


def fit(
    original: nn.Module,
    module: nn.Module,
    images: Calibration,
    settings: FitSettings,
    origins: Origins,
    told: Told = lambda done, total: None,
) -> Fit:
    """Fit ``module`` in place to what ``original`` gives for ``images``; what came of it.

    Both are float32 and on the images' device.  Raises ``FitError``, for instance naming the layer that gives values
    that are not finite.
    """
    began = time.perf_counter()
    with evaluating(original, module), torch.no_grad():
        pair, agenda = _pair(original, module, images, settings, origins)
        _require_faithful(original, pair.original, images.batches[-1])
        judge = Judge(pair.original, original, images.batches, images.judged)
        unfitted = judge.error(pair.converted, module)
        before = copy.deepcopy(module.state_dict())
        job = _Job(pair, agenda, original, module, settings, told)
        layers = job.run()
        missed = judge.error(pair.converted, module)
        if missed is not None and unfitted is not None and not missed <= unfitted:
            module.load_state_dict(before)
            missed = unfitted
            job.notes.append(
                "The fit made the outputs worse on images that it had not seen, so the weights stay as carried over."
            )
    return Fit(
        how=settings.how,
        images=sum(map(count, images.batches)),
        judged=sum(map(count, images.judging)),
        seconds=time.perf_counter() - began,
        layers=tuple(layers),
        error=missed,
        unfitted=unfitted,
        notes=tuple(job.notes),
    )


class _Job:
    """The parts one after the other."""

    def __init__(
        self, pair: Pair, agenda: Agenda, original: nn.Module, module: nn.Module, settings: FitSettings, told: Told
    ) -> None:
        self.pair, self.agenda, self.told = pair, agenda, told
        self.original, self.module, self.settings = original, module, settings
        self.parts = agenda.parts
        self.notes: list[str] = []
        self.starved: list[str] = []
        self.started: set[int] = set()
        """The batches that some part has asked for; once on their way, they go with the others."""
        self.given: list[dict[fx.Node, Any]] | None = None
        """What late inputs were in the last turn of a loop, batch by batch; nothing in the first."""
        self.needed = Counter(node for part in range(len(self.parts)) for node in agenda.needed(part))
        for node in self.needed:
            pair.first.keep(node)

    def run(self) -> list[LayerError]:
        norms = self._watched()
        found: dict[int, LayerError] = {}
        self.told(0, len(self.parts))
        for loop in self.agenda.schedule.loops:
            found |= self._turns(loop) if loop.turns else {part: self._fit(part) for part in loop.parts}
            for part in loop.parts:
                self._release(part)
                self.told(len(found) - len(loop.parts) + 1 + loop.parts.index(part), len(self.parts))
        self.pair.second.advance(len(self.pair.second.nodes))
        for norm, seen in norms.items():
            renew(norm, seen)
        self.notes += [*self._on_starved(), *self._on_filters(), *self._on_wide(), *self._on_unfitted()]
        return [found[part] for part in sorted(found)]

    def _watched(self) -> dict[nn.Module, Seen]:
        """Every norm that reads something new and is not frozen, and who sees what it reads."""
        norms: dict[nn.Module, Seen] = {}
        for name, calls in self.agenda.norms.items():
            norm = self.module.get_submodule(name)
            if norm not in self.agenda.frozen:
                seen = norms[norm] = Seen()
                self.pair.second.watched |= dict.fromkeys(calls, seen)
        return norms

    def _fit(self, index: int) -> LayerError:
        part, samples = self.parts[index], self._samples(index)
        self._advance(index, samples)
        samples = self._lent(index, samples)
        fitting, targets = self._fitting(index, samples)
        before = error(targets, fitting.outputs, samples.judged)
        ridge = fitting.fit()
        after = error(targets, fitting.outputs, samples.judged)
        self._note(part, samples)
        return LayerError(
            target=part.name, kind=part.kind, before=before, error=after, ridge=ridge, positions=samples.total
        )

    def _turns(self, loop: Loop) -> dict[int, LayerError]:
        """Fit the parts of a loop in turns, and keep what did best on what the network then really reads.

        In the first turn the original stands in for what is late, in the others what the turn before gave.  Each is
        measured on what its own weights give: a cell that feeds on itself may do well on the original's inputs alone.
        """
        second, found, least = self.pair.second, dict[int, LayerError](), math.inf
        waiting = [part for part in loop.parts if self.agenda.late[part]]
        self.started |= {batch for part in loop.parts for batch in self._samples(part).started}
        second.advance(loop.stops[0], self.started)
        standing, kept = second.standing(), copy.deepcopy(self.module.state_dict())
        watched, second.watched = second.watched, {}  # norms are to see the weights that stay
        needs = [node for part in waiting for call in self.agenda.needs[part].calls for node in call]
        with second.keeping(needs):
            self.given = None
            for _ in range(TURNS):
                second.go_back(standing)
                now = {part: self._fit(part) for part in loop.parts}
                second.advance(loop.end, self.started)
                self.given = [{node: values[node] for node in needs if node in values} for values in second.values]
                missed = self._judged_anew(waiting, now)
                if not missed < least:
                    break
                found, least, kept = now, missed, copy.deepcopy(self.module.state_dict())
        self.module.load_state_dict(kept)
        second.go_back(standing)
        second.watched = watched
        second.advance(loop.end, self.started)
        return found or now

    def _judged_anew(self, waiting: Sequence[int], found: dict[int, LayerError]) -> float:
        """The mean error of parts on what they now really read, held out from a fit; what was found is told of that."""
        missed = []
        for part in waiting:
            samples = self._samples(part)
            fitting, targets = self._fitting(part, samples)
            told = error(targets, fitting.outputs, samples.judged)
            found[part] = found[part].model_copy(update={"error": told})
            held = [block for block in samples.blocks if targets.is_held(block)] or samples.blocks
            missed.append(error(targets, fitting.outputs, held) or 0.0)
        return fmean(missed)

    def _lent(self, index: int, samples: Samples) -> Samples:
        """The samples of a part's calls of which the inputs are there, or something that stands in for them."""
        first, second, there = self.pair.first, self.pair.second, set(range(len(samples.calls)))
        for call in self.agenda.late[index]:
            stand_ins = self.agenda.stand_ins(index, call)
            if self.given is None and not stand_ins:
                there.discard(call)
                continue
            for batch in samples.started:
                for node in self.agenda.needs[index].calls[call]:
                    if second.index[node] < second.reached[batch]:
                        continue
                    lent = first.values[batch][stand_ins[node]] if self.given is None else self.given[batch][node]
                    second.values[batch][node] = lent
        return samples.of_calls(there)

    def _advance(self, index: int, samples: Samples) -> None:
        """Run both networks up to where a part is fitted."""
        pair = self.pair
        self.started |= set(samples.started)
        pair.second.advance(self.agenda.stops[index], self.started)
        pair.first.advance(max(pair.first.index[node] for node in self.agenda.needed(index)) + 1, self.started)

    def _samples(self, index: int) -> Samples:
        """Positions of the part's output maps, by call; of a linear layer, rows."""
        part = self.parts[index]
        room, wanted = self._room(index), positions_wanted(*_size(part))
        return Samples([self._positions(index, call, room, wanted) for call in range(len(part.calls))])

    def _positions(self, index: int, call: int, room: int, wanted: int) -> Positions:
        part = self.parts[index]
        shape = part.calls[call].twin.meta["shapes"][0]
        rows = isinstance(part.module, nn.Linear)
        last = isinstance(part.module, CGhostLinear) and len(shape) == 4
        shape = shape if rows or len(shape) > 2 else (*shape, 1, 1)
        channels = -1 if rows else 3 if last else 1
        pair = self.pair
        most = room * pair.batches / (pair.batches + pair.judged)
        own = math.ceil(
            wanted * min(2, len(part.calls)) / len(part.calls)
        )  # more calls have more to tell, up to a cost
        return Positions(shape, own, pair.batches, index + call * _APART, channels, pair.held, most, pair.judged)

    def _room(self, index: int) -> int:
        """How many batches there is room for where the part is fitted."""
        first, second = self.pair.first, self.pair.second
        at = max(first.index[twin] for twin in self.parts[index].twins)
        held = {node for part in self.agenda.together(index) for node in self.agenda.needed(part)}
        held -= set(self.agenda.needed(index)) if len(self.parts[index].calls) == 1 else {first.nodes[at]}
        return MEMORY // max(
            1, first.bytes_at(at) + second.bytes_at(self.agenda.stops[index]) + sum(map(size_of, held))
        )

    def _fitting(self, index: int, samples: Samples) -> tuple[Fitting, Targets]:
        """What fits a part to all its calls, and the targets it has."""
        part, aims = self.parts[index], self.agenda.aims[index]
        norms = [self.module.get_submodule(str(n.target)) if (n := aim.ours.norm) else None for aim in aims]
        targets = Targets(self.pair, aims, samples, norms, self.settings.rectified)
        targets.takers = [None if norm in self.agenda.frozen else norm for norm in norms]
        _require_finite(part, targets, self.pair)
        values = self.pair.second.values

        def inputs(block: Block) -> Tensor:
            read: Tensor = values[block.batch][part.calls[block.call].inputs]
            return read.float()  # as the weights are, also where autocast has made it less

        def pooled(block: Block) -> list[Tensor]:
            return [values[block.batch][node].float() for node in part.calls[block.call].pooled]

        if part.kind == "ghost":
            start: Any = self.original.get_submodule(part.name).weight
            return GhostFit(part.module, inputs, targets, start.detach(), self.settings.joint), targets
        if part.kind == "stage":
            return StageFit(part.module, inputs, pooled, targets), targets
        return LayerFit([call.module for call in part.calls], inputs, targets), targets

    def _note(self, part: Part, samples: Samples) -> None:
        unknowns = _size(part)[0]
        if samples.total < unknowns:
            self.starved.append(f"{part.name} has {unknowns:,} unknowns per filter and {samples.total:,} positions")

    def _on_starved(self) -> list[str]:
        """One sentence on the parts with too few positions."""
        if not self.starved:
            return []
        others = _others(self.starved, " have too few")
        return [
            f"{self.starved[0]} to fit them to{others}: a stronger ridge holds it to its trained weights; more images "
            "would serve it better."
        ]

    def _on_filters(self) -> list[str]:
        """One sentence on the ghost modules of which the cheap operations alone are fitted."""
        kept = [part for part in self.parts if _keeps_filters(part)]
        if not kept:
            return []
        primary = kept[0].module.primary
        why = f"a {type(primary).__name__} changes them before it convolves"
        return [
            f"{kept[0].name}{_others(kept)} keeps its primary filters, for {_MANY if too_wide(primary) else why}; "
            "its cheap operations are fitted to what those give."
        ]

    def _on_wide(self) -> list[str]:
        """One sentence on the layers that are too wide to be fitted anew."""
        wide = self.agenda.wide
        return [f"{wide[0]}{_others(wide)} keeps its weights, for {_MANY}."] if wide else []

    def _on_unfitted(self) -> list[str]:
        """One sentence on what was replaced and keeps the weights that were carried over."""
        left = self.agenda.matching.skipped
        if not left:
            return []
        name, reason = next(iter(left.items()))
        return [f"{name}{_others(left)} keeps the weights that were carried over, because it {reason}."]

    def _release(self, part: int) -> None:
        for node in self.agenda.needed(part):
            self.needed[node] -= 1
            if not self.needed[node]:
                self.pair.first.drop(node)


def _others(all_of_them: Sized, have: str = "") -> str:
    """A parenthesis on how many there are besides the first."""
    return f" (and {len(all_of_them) - 1} more{have})" if len(all_of_them) > 1 else ""


def _keeps_filters(part: Part) -> bool:
    return part.kind == "ghost" and not solved_for(part.module.primary)


def _size(part: Part) -> tuple[int, int]:
    """Unknowns per filter, and filters."""
    if part.kind == "stage":
        stage = part.module
        convs = [layer for layer in stage.cheap.modules() if isinstance(layer, nn.Conv2d)]
        convolved = sum(conv.weight[0].numel() for conv in convs)
        pooled = 0 if stage.mix is None else stage.mix.in_channels
        return convolved + pooled, 0 if part.kept is None else len(part.kept)
    if _keeps_filters(part):
        return cheap_unknowns(part.module), part.module.out_channels
    weight = (part.module.primary if part.kind == "ghost" else part.module).weight
    return weight[0].numel(), len(weight)


def _pair(
    original: nn.Module, module: nn.Module, images: Calibration, settings: FitSettings, origins: Origins
) -> tuple[Pair, Agenda]:
    """Both networks recorded, on their way to where they differ, and what is to be fitted from there."""
    batches = images.batches
    first, second = trace(original, batches[0], verify=False), trace(module, batches[0], verify=False)
    agenda = Agenda(first, second, module, settings, origins)
    ahead = Interpreter(first, original, batches, agenda.order_of_original())
    behind = Interpreter(second, module, batches, agenda.schedule.order)
    ahead.advance(agenda.begin)
    behind.follow(ahead, agenda.same, agenda.begin)
    return Pair(first, second, ahead, behind, held=images.held, judged=images.judged), agenda


def _require_faithful(original: nn.Module, traced: Traced, batch: Batch) -> None:
    """Refuse a recording that another batch than the one it was made of shows to be wrong.

    A copy runs, for a network may remember its runs, and write into what it is given.
    """
    _require_repeatable(original, traced, batch)
    given = called(copy.deepcopy(original), batch)
    for one, other in zip(given, outputs(traced, original, batch), strict=False):
        if not agree(one, other, ELSEWHERE):
            raise FitError(
                f"{type(original).__name__} does on other images something else than its recording, so nothing can be "
                "fitted to it; use fit none."
            )


def _require_repeatable(original: nn.Module, traced: Traced, batch: Batch) -> None:
    """Refuse a network that draws random numbers in eval mode: what it gives once cannot be fitted to."""
    given = (called(copy.deepcopy(original), batch) for _ in range(2))
    if all(agree(one, other, ELSEWHERE) for one, other in zip(*given, strict=False)):
        return
    walks = [Interpreter(traced, original, [batch]) for _ in range(2)]
    where = ""
    for index, node in enumerate(walks[0].nodes):
        for walk in walks:
            walk.keep(node)
            walk.advance(index + 1)
        one, other = (walk.values[0].get(node) for walk in walks)
        if isinstance(one, Tensor) and isinstance(other, Tensor) and not agree(one, other, ELSEWHERE):
            module = str(node.meta.get("module", ""))
            where = f" ({node.name} in {module!r})" if module else f" ({node.name})"
            break
    raise FitError(
        f"{type(original).__name__} is random in eval mode, too: it gives something else each time it runs on the same "
        f"images{where}, so nothing can be fitted to it; make it draw nothing in eval mode, or use fit none."
    )


def _require_finite(part: Part, targets: Targets, pair: Pair) -> None:
    gives = all(bool(torch.isfinite(sums).all()) for sums in targets.sums.values())
    reads = all(
        bool(torch.isfinite(pair.second.values[block.batch][part.calls[block.call].inputs]).all())
        for block in targets.samples.blocks
    )
    if not (gives and reads):
        where = "reads values" if gives else "of the original gives values"
        raise FitError(
            f"{part.name} {where} that are not finite (NaN or infinite) for these images, so it cannot be fitted; "
            "look at the weights before it, or use fit none."
        )
