"""The fit: both networks walk through the calibration images, and each part is fitted where it stands."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, fx, nn

from ghostify.batches import count
from ghostify.fit_result import Fit, LayerError
from ghostify.fitting import notes
from ghostify.fitting.agenda.agenda import Agenda
from ghostify.fitting.agenda.schedule import Loop
from ghostify.fitting.calibration import Calibration
from ghostify.fitting.interpreter import Interpreter
from ghostify.fitting.judging import Judge
from ghostify.fitting.kinds.choice import Fitting, fitting_of, size_of
from ghostify.fitting.kinds.layers import error
from ghostify.fitting.kinds.targets import Targets
from ghostify.fitting.networks import Networks
from ghostify.fitting.norms import Statistics, renew
from ghostify.fitting.positions import samples_of
from ghostify.fitting.requirements import require_faithful, require_finite
from ghostify.fitting.sensitivity import sensitivities
from ghostify.ghosts import CGhost
from ghostify.leastsquares.sampling import Samples
from ghostify.processes import make_alike, present
from ghostify.recipe import FitSettings
from ghostify.rules.origins import Origins
from ghostify.running import evaluating
from ghostify.tracing import Traced

TURNS = 3
"""How often the parts of a loop are fitted at most."""

Progress = Callable[[int, int], None]
"""Who is told how many parts of how many are fitted."""


def fit(
    first: Traced,
    second: Traced,
    images: Calibration,
    settings: FitSettings,
    origins: Origins,
    progress: Progress = lambda done, total: None,
) -> Fit:
    """Fit the module of the ``second`` run in place to what that of the ``first`` gives for ``images``.

    The runs are of the batches' size, both modules in float32 and on the images' device.  Raises ``FitError``, for
    instance naming the layer that gives values that are not finite.
    """
    began = time.perf_counter()
    original, module = first.module, second.module
    with evaluating(original, module), torch.no_grad():
        networks, agenda = _on_their_way(first, second, images, settings, origins)
        require_faithful(original, networks.original.traced, images.batches[-1])
        judge = Judge(networks.original.traced, original, images.batches, images.judged)
        unfitted = judge.error(networks.converted.traced, module)
        before = copy.deepcopy(module.state_dict())
        sensitivity = _sensitivity(agenda, networks, images, settings)
        job = _Job(networks, agenda, original, module, settings, sensitivity, progress)
        layers = job.run()
        missed = judge.error(networks.converted.traced, module)
        # Said so that an error of NaN counts as worse.
        if missed is not None and unfitted is not None and not missed <= unfitted:
            module.load_state_dict(before)
            missed = unfitted
            job.notes.append(notes.WORSE)
        make_alike(module, present())
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


def _on_their_way(
    first: Traced, second: Traced, images: Calibration, settings: FitSettings, origins: Origins
) -> tuple[Networks, Agenda]:
    """Both networks on their way to where they differ, and what is to be fitted from there."""
    agenda = Agenda(first, second, second.module, settings, origins)
    processes = present()
    ahead = Interpreter(first, first.module, images.batches, agenda.order_of_original(), processes)
    behind = Interpreter(second, second.module, images.batches, agenda.schedule.order, processes)
    # Up to there both networks are one, so the second takes the values of the first.
    ahead.advance(agenda.begin)
    behind.follow(ahead, agenda.same, agenda.begin)
    return Networks(ahead, behind, held=images.held, judged=images.judged), agenda


def _sensitivity(agenda: Agenda, networks: Networks, images: Calibration, settings: FitSettings) -> dict[int, Tensor]:
    """By part of which a rank is chosen, what errors of its sums do to the original's outputs, over all its calls."""
    if not settings.sensitive:
        return {}
    sums = {
        index: [aim.theirs.sum for aim in agenda.aims[index]]
        for index, part in enumerate(agenda.parts)
        if isinstance(part.module, CGhost) and part.module.pointwise is not None
    }
    original, nodes = networks.original, {node for own in sums.values() for node in own}
    found = sensitivities(original.traced, original.root, images.fitted, nodes)
    # A part that makes some of the original's outputs alone is told of these.
    return {
        index: _kept(sum(found[node] for node in own), agenda.aims[index][0].kept)  # type: ignore[arg-type]
        for index, own in sums.items()
        if all(node in found for node in own)
    }


def _kept(matrix: Tensor, kept: Tensor | None) -> Tensor:
    """The rows and columns of some channels."""
    return matrix if kept is None else matrix[kept][:, kept]


class _Job:
    """The parts one after the other."""

    def __init__(
        self,
        networks: Networks,
        agenda: Agenda,
        original: nn.Module,
        module: nn.Module,
        settings: FitSettings,
        sensitivity: Mapping[int, Tensor],
        progress: Progress,
    ) -> None:
        self.networks, self.agenda, self.progress = networks, agenda, progress
        self.original, self.module, self.settings = original, module, settings
        self.sensitivity = sensitivity
        self.parts = agenda.parts
        self.notes: list[str] = []
        self.starved: list[str] = []
        self.started: set[int] = set()
        """The batches that some part has asked for; once on their way, they go with the others."""
        self.last_turn: list[dict[fx.Node, Any]] | None = None
        """What late inputs were in the last turn of a loop, batch by batch; nothing in the first."""
        self.needed = Counter(node for part in range(len(self.parts)) for node in agenda.needed(part))
        for node in self.needed:
            networks.original.keep(node)

    def run(self) -> list[LayerError]:
        norms = self._watched()
        found: dict[int, LayerError] = {}
        self.progress(0, len(self.parts))
        for loop in self.agenda.schedule.loops:
            done = len(found)
            found |= self._turns(loop) if loop.turns else {part: self._fit(part) for part in loop.parts}
            for more, part in enumerate(loop.parts, start=1):
                self._release(part)
                self.progress(done + more, len(self.parts))
        self.networks.converted.advance(len(self.networks.converted.nodes))
        for norm, statistics in norms.items():
            renew(norm, statistics.reduced())
        self.notes += [
            *notes.on_starved(self.starved),
            *notes.on_filters(self.parts),
            *notes.on_unfitted(self.agenda.matching.skipped),
        ]
        return [found[part] for part in sorted(found)]

    def _watched(self) -> dict[nn.Module, Statistics]:
        """Every norm that reads something new and is not frozen, and what measures what it reads."""
        norms: dict[nn.Module, Statistics] = {}
        for name, calls in self.agenda.norms.items():
            norm = self.module.get_submodule(name)
            if norm not in self.agenda.frozen:
                statistics = norms[norm] = Statistics()
                self.networks.converted.watched |= dict.fromkeys(calls, statistics)
        return norms

    def _fit(self, index: int) -> LayerError:
        part, samples = self.parts[index], self._samples(index)
        self._advance(index, samples)
        samples = self._lent(index, samples)
        fitting, targets = self._fitting(index, samples)
        before = error(targets, fitting.outputs, samples.judged)
        ridge = fitting.fit()
        after = error(targets, fitting.outputs, samples.judged)
        unknowns, _ = size_of(part)
        if samples.total < unknowns:
            self.starved.append(f"{part.name} has {unknowns:,} unknowns per filter and {samples.total:,} positions")
        return LayerError(
            target=part.name, kind=part.kind, before=before, error=after, ridge=ridge, positions=samples.total
        )

    def _samples(self, index: int) -> Samples:
        return samples_of(self.agenda, self.networks, index)

    def _advance(self, index: int, samples: Samples) -> None:
        """Run both networks up to where a part is fitted."""
        original, converted = self.networks.original, self.networks.converted
        self.started |= set(samples.started)
        converted.advance(self.agenda.stops[index], self.started)
        # The original need only have come past what this part is compared with.
        last = max(original.index[node] for node in self.agenda.needed(index))
        original.advance(last + 1, self.started)

    def _fitting(self, index: int, samples: Samples) -> tuple[Fitting, Targets]:
        """What fits a part to all its calls, and the targets it has."""
        part, aims = self.parts[index], self.agenda.aims[index]
        norms = [self._module_at(aim.ours.norm) for aim in aims]
        behind = [self._module_at(aim.ours.amplifier) for aim in aims]
        targets = Targets(self.networks, aims, samples, norms, self.settings.rectified, behind)
        targets.sensitivity = self.sensitivity.get(index)
        targets.takers = [None if norm in self.agenda.frozen else norm for norm in norms]
        require_finite(part, targets, self.networks)
        return fitting_of(part, self.networks.converted, targets, self.settings.joint), targets

    def _module_at(self, node: fx.Node | None) -> nn.Module | None:
        """The module that a node calls."""
        return None if node is None else self.module.get_submodule(str(node.target))

    def _release(self, part: int) -> None:
        """Let go of the original's values that no other part asks for."""
        for node in self.agenda.needed(part):
            self.needed[node] -= 1
            if not self.needed[node]:
                self.networks.original.drop(node)

    # -- loops -------------------------------------------------------------------------------------------------

    def _turns(self, loop: Loop) -> dict[int, LayerError]:
        """Fit the parts of a loop in turns, and keep what did best on what the network then really reads.

        In the first turn the original stands in for what is late, in the others what the turn before gave.  Each is
        measured on what its own weights give: a cell that feeds on itself may do well on the original's inputs alone.
        """
        walk = self.networks.converted
        self.started |= {batch for part in loop.parts for batch in self._samples(part).started}
        walk.advance(loop.stops[0], self.started)
        standing, watched = walk.standing(), walk.watched
        walk.watched = {}  # norms are to see the weights that stay
        found, weights = self._best_turn(loop)
        self.module.load_state_dict(weights)
        walk.go_back(standing)
        walk.watched = watched
        walk.advance(loop.end, self.started)
        return found

    def _best_turn(self, loop: Loop) -> tuple[dict[int, LayerError], dict[str, Any]]:
        """What the best turn found, and the weights it gave: turns end with the first that is no better."""
        walk, least = self.networks.converted, math.inf
        best, weights = dict[int, LayerError](), copy.deepcopy(self.module.state_dict())
        waiting = [part for part in loop.parts if self.agenda.late[part]]
        needs = [node for part in waiting for call in self.agenda.needs[part].calls for node in call]
        standing = walk.standing()
        with walk.keeping(needs):
            self.last_turn = None
            for _ in range(TURNS):
                walk.go_back(standing)
                found = {part: self._fit(part) for part in loop.parts}
                walk.advance(loop.end, self.started)
                self.last_turn = [{node: values[node] for node in needs if node in values} for values in walk.values]
                missed = self._judged_anew(waiting, found)
                if not missed < least:
                    break
                best, least, weights = found, missed, copy.deepcopy(self.module.state_dict())
        return best or found, weights

    def _judged_anew(self, waiting: Sequence[int], found: dict[int, LayerError]) -> float:
        """The mean error of parts on what they now really read, held out from a fit; what was found reports it, too."""
        missed = []
        for part in waiting:
            samples = self._samples(part)
            fitting, targets = self._fitting(part, samples)
            judged = error(targets, fitting.outputs, samples.judged)
            found[part] = found[part].model_copy(update={"error": judged})
            held = samples.blocks
            if self.networks.held:
                held = [block for block in samples.blocks if targets.is_held(block)]
            missed.append(error(targets, fitting.outputs, held) or 0.0)
        return fmean(missed)

    def _lent(self, index: int, samples: Samples) -> Samples:
        """The samples of a part's calls of which the inputs are there, or something that stands in for them."""
        there = set(range(len(samples.calls)))
        for call in self.agenda.late[index]:
            stand_ins = self.agenda.stand_ins(index, call)
            if self.last_turn is None and not stand_ins:
                there.discard(call)
                continue
            for batch in samples.started:
                self._lend(batch, self.agenda.needs[index].calls[call], stand_ins)
        return samples.of_calls(there)

    def _lend(self, batch: int, needs: Sequence[fx.Node], stand_ins: dict[fx.Node, fx.Node]) -> None:
        """Put what stands in for late inputs where the converted network's own values will be."""
        original, converted = self.networks.original, self.networks.converted
        for node in needs:
            # It has been run, and its own value is what the part will read.
            if converted.index[node] < converted.reached[batch]:
                continue
            if self.last_turn is None:
                converted.values[batch][node] = original.values[batch][stand_ins[node]]
            else:
                converted.values[batch][node] = self.last_turn[batch][node]
