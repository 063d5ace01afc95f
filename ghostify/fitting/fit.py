"""The fit: both networks walk through the calibration images, and each part is fitted where it stands."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from ghostify.batches import Batch, count
from ghostify.errors import FitError
from ghostify.fitting.calibration import Calibration
from ghostify.fitting.ghosts import GhostFit, cheap_unknowns, solved_for
from ghostify.fitting.judging import Judge, called, outputs
from ghostify.fitting.layers import MOST, LayerFit, error, too_wide
from ghostify.fitting.norms import Seen, renew
from ghostify.fitting.origins import Origins
from ghostify.fitting.pairing import Matching, Part, changed, used_once
from ghostify.fitting.report import Fit, LayerError
from ghostify.fitting.sampling import Positions, positions_wanted
from ghostify.fitting.stages import StageFit
from ghostify.fitting.surroundings import Surroundings, is_norm, rectifier_after
from ghostify.fitting.targets import Aim, Pair, Targets
from ghostify.fitting.walking import MEMORY, Walk
from ghostify.ghosts import CGhostLinear
from ghostify.recipe import FitSettings
from ghostify.running import ELSEWHERE, agree, evaluating, frozen_parts
from ghostify.tracing import Traced, trace

_MANY = f"each filter has more than the {MOST:,} unknowns that are solved for"

Told = Callable[[int, int], None]
"""Who is told how many parts of how many are fitted."""


class Fitting(Protocol):
    """What fits one part."""

    def fit(self) -> float: ...

    def outputs(self, batch: int) -> Tensor: ...


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
        pair = _pair(original, module, images, origins.touch)
        _require_faithful(original, pair.original, images.batches[-1])
        judge = Judge(pair.original, original, images.batches, images.judged)
        unfitted = judge.error(pair.converted, module)
        before = copy.deepcopy(module.state_dict())
        job = _Job(pair, original, module, settings, origins, told)
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
        self,
        pair: Pair,
        original: nn.Module,
        module: nn.Module,
        settings: FitSettings,
        origins: Origins,
        told: Told,
    ) -> None:
        self.origins = origins
        self.pair, self.original, self.module, self.settings, self.told = pair, original, module, settings, told
        self.matching = Matching(pair.original, pair.converted, module, origins)
        _, self.dirty = changed(pair.original, pair.converted, origins.touch)
        self.once = used_once(pair.converted)
        self.frozen = {inner for part in frozen_parts(module) for inner in part.modules()}
        """What the user froze: as it is, unless the plan replaced it."""
        self.notes: list[str] = []
        self.starved: list[str] = []
        self.started: set[int] = set()
        """The batches that some part has asked for; once on their way, they go with the others."""
        wanted = [part for part in self.matching.parts() if self._wants(part)]
        self.wide = [part.name for part in wanted if part.kind == "layer" and too_wide(part.module)]
        """Layers with too many unknowns to be solved for."""
        self.parts = [(part, self._aim(part)) for part in wanted if part.name not in self.wide]
        self.needed: list[fx.Node] = [node for _, aim in self.parts for node in aim.needed]
        for node in set(self.needed):
            pair.first.keep(node)

    def run(self) -> list[LayerError]:
        norms = self._watched()
        found = []
        self.told(0, len(self.parts))
        for index, (part, aim) in enumerate(self.parts):
            found.append(self._fit(index, part, aim))
            self.told(index + 1, len(self.parts))
        self.pair.second.advance(len(self.pair.second.nodes))
        for norm, seen in norms.items():
            renew(norm, seen)
        self.notes += [*self._on_starved(), *self._on_filters(), *self._on_wide(), *self._on_unfitted()]
        return found

    def _wants(self, part: Part) -> bool:
        replaced = part.kind != "layer" or part.name in self.origins.layers
        if not replaced and (part.module in self.frozen or not self.settings.kept):
            return False
        return part.begin in self.dirty or part.output in self.dirty

    def _aim(self, part: Part) -> Aim:
        if part.kind == "stage":
            ceiling = rectifier_after(self.pair.original, part.twin) if part.module.act is not None else None
            around = Surroundings(part.twin, None, None, part.twin, ceiling)
            passed = part.inputs if isinstance(part.module.cheap, nn.Identity) else None
            return Aim(around, around, part.kept, passed, None)
        return Aim.of(self.pair, part.output, part.twin, part.begin, part.kept, self.settings.compensate)

    def _watched(self) -> dict[nn.Module, Seen]:
        """Every norm that reads something new and is not frozen, and who sees what it reads."""
        norms: dict[nn.Module, Seen] = {}
        for node in self.pair.second.nodes:
            if node in self.dirty and is_norm(self.pair.converted, node) and str(node.target) in self.once:
                norm = self.module.get_submodule(str(node.target))
                if norm not in self.frozen:
                    norms[norm] = self.pair.second.watched[node] = Seen()
        return norms

    def _fit(self, index: int, part: Part, aim: Aim) -> LayerError:
        pair, positions = self.pair, self._positions(index, part)
        self.started |= {*positions.batches, *positions.judged}
        pair.second.advance(pair.second.index[part.begin], self.started)
        pair.first.advance(max(pair.first.index[node] for node in aim.needed) + 1, self.started)
        norm = None if aim.ours.norm is None else self.module.get_submodule(str(aim.ours.norm.target))
        targets = Targets(pair, aim, positions, norm, self.settings.rectified)
        if norm in self.frozen and not _has_bias(part):
            targets.norm = None  # so that no intercept goes into its mean
        _require_finite(part, targets, pair)
        fitting = self._fitting(part, targets)
        before = error(targets, fitting.outputs)
        ridge = fitting.fit()
        after = error(targets, fitting.outputs)
        self._release(aim)
        self._note(part, positions)
        return LayerError(
            target=part.name, kind=part.kind, before=before, error=after, ridge=ridge, positions=positions.total
        )

    def _positions(self, index: int, part: Part) -> Positions:
        """Positions of the part's output map; of a linear layer, rows."""
        shape = part.twin.meta["shapes"][0]
        rows = isinstance(part.module, nn.Linear)
        last = isinstance(part.module, CGhostLinear) and len(shape) == 4
        wanted = positions_wanted(*_size(part))
        shape = shape if rows or len(shape) > 2 else (*shape, 1, 1)
        channels = -1 if rows else 3 if last else 1
        pair = self.pair
        most = self._room(part) * pair.batches / (pair.batches + pair.judged)
        return Positions(shape, wanted, pair.batches, index, channels, pair.held, most, pair.judged)

    def _room(self, part: Part) -> int:
        """How many batches there is room for where the part is fitted."""
        pair = self.pair
        return MEMORY // max(
            1, pair.first.bytes_at(pair.first.index[part.twin]) + pair.second.bytes_at(pair.second.index[part.begin])
        )

    def _fitting(self, part: Part, targets: Targets) -> Fitting:
        if part.kind == "ghost":
            start: Any = self.original.get_submodule(part.name).weight
            return GhostFit(
                self.pair, part.module, self._reader(part.inputs), targets, start.detach(), self.settings.joint
            )
        if part.kind == "stage":
            pooled = [self._reader(node) for node in part.pooled]
            return StageFit(self.pair, part.module, self._reader(part.inputs), pooled, targets)
        return LayerFit(self.pair, part.module, self._reader(part.inputs), targets)

    def _reader(self, node: fx.Node) -> Callable[[int], Tensor]:
        return lambda batch: self.pair.second.values[batch][node]

    def _note(self, part: Part, positions: Positions) -> None:
        unknowns = _size(part)[0]
        if positions.total < unknowns:
            self.starved.append(f"{part.name} has {unknowns:,} unknowns per filter and {positions.total:,} positions")

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
        kept = [part for part, _ in self.parts if _keeps_filters(part)]
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
        return [f"{self.wide[0]}{_others(self.wide)} keeps its weights, for {_MANY}."] if self.wide else []

    def _on_unfitted(self) -> list[str]:
        """One sentence on the ghost modules that keep the weights that were carried over."""
        left = self.matching.skipped
        if not left:
            return []
        name, reason = next(iter(left.items()))
        return [f"{name}{_others(left)} keeps the weights that were carried over, for it {reason}."]

    def _release(self, aim: Aim) -> None:
        for node in aim.needed:
            self.needed.remove(node)
            if node not in self.needed:
                self.pair.first.drop(node)


def _others(all_of_them: Sized, have: str = "") -> str:
    """A parenthesis on how many there are besides the first."""
    return f" (and {len(all_of_them) - 1} more{have})" if len(all_of_them) > 1 else ""


def _has_bias(part: Part) -> bool:
    layer = part.module.primary if part.kind == "ghost" else part.module
    return getattr(layer, "bias", None) is not None


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


def _pair(original: nn.Module, module: nn.Module, images: Calibration, touched: Callable[[str], bool]) -> Pair:
    batches = images.batches
    first, second = trace(original, batches[0], verify=False), trace(module, batches[0], verify=False)
    walks = Walk(first, original, batches), Walk(second, module, batches)
    same, dirty = changed(first, second, touched)
    begin = next((index for index, node in enumerate(walks[1].nodes) if node in dirty or node not in same), 0)
    walks[0].advance(begin)
    walks[1].follow(walks[0], same, begin)
    return Pair(first, second, *walks, held=images.held, judged=images.judged)


def _require_faithful(original: nn.Module, traced: Traced, batch: Batch) -> None:
    """Refuse a recording that another batch than the one it was made of shows to be wrong.

    A copy runs, for a network may remember its runs, and write into what it is given.
    """
    given = called(copy.deepcopy(original), batch)
    for one, other in zip(given, outputs(traced, original, batch), strict=False):
        if not agree(one, other, ELSEWHERE):
            raise FitError(
                f"{type(original).__name__} does on other images something else than its recording, so nothing can be "
                "fitted to it; use fit none."
            )


def _require_finite(part: Part, targets: Targets, pair: Pair) -> None:
    gives = all(bool(torch.isfinite(sums).all()) for sums in targets.sums.values())
    reads = all(
        bool(torch.isfinite(pair.second.values[batch][part.inputs]).all()) for batch in targets.positions.batches
    )
    if not (gives and reads):
        where = "reads values" if gives else "of the original gives values"
        raise FitError(
            f"{part.name} {where} that are not finite (NaN or infinite) for these images, so it cannot be fitted; "
            "look at the weights before it, or use fit none."
        )
