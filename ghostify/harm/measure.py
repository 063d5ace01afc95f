"""network + images + candidates → Harms: one walk through the original, which stops where a candidate changes it.

    half of the images    what the layers are fitted to: covariances, projections, answers
    the other half        what harm is measured on

Of each layer one decomposition serves every m, and harm is measured at few m; the others lie between (``result``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch

from ghostify.batches import Batch, count, move, per_sample, take
from ghostify.errors import FitError, PlanError
from ghostify.fitting.interpreter import MEMORY, batched
from ghostify.fitting.sensitivity import sensitivities
from ghostify.fitting.transfer import as_recorded, require_fittable, working_copy
from ghostify.harm.alone import fitted_alone
from ghostify.harm.compensation import Answers, Depth, Sums
from ghostify.harm.depthwise import Ghosts, is_depthwise
from ghostify.harm.outputs import Judge, Outputs
from ghostify.harm.pointwise import SHARES, Projections, ranks
from ghostify.harm.result import FormHarm, Harms, LayerHarm, between, form_of, is_mixture
from ghostify.harm.rows import Call
from ghostify.harm.thinning import Readers
from ghostify.harm.walk import Changes, Walk
from ghostify.harm.work import Progress, Told, Work
from ghostify.rules import CGhostSwap, Swap, ThinSwap
from ghostify.rules.thin import channels_of
from ghostify.running import evaluating, in_single_precision, undisturbed
from ghostify.scanning import Site, scan
from ghostify.tracing import Recording, Traced, sized_as

Kind = Literal["mixture", "depthwise", "thin"]
LEAST_IMAGES = 8
_NUMBERS = 2**23
"""Numbers in all images that are looked at: fifty images of 224x224, and of small ones as many as there are."""
_ANSWERED: dict[Kind, int] = {"mixture": 24, "depthwise": 12, "thin": 24}
"""Places at which compensation is measured, evenly spread over the network.  Of depthwise ghosts fewer, because each
place takes long, and has but one or two of them to offer.
"""
_COMPENSATED = 1 / 3
"""The share of its maps that a layer keeps there."""

_WIDTHS = 3
"""Widths of a block at which harm is measured."""

S = TypeVar("S", bound=Swap)


def _silent(done: int, total: int) -> None: ...


@undisturbed()
@in_single_precision()
def measure_harms(
    recorded: Traced | Recording,
    images: Batch,
    candidates: Sequence[Swap],
    *,
    device: torch.device | None = None,
    told: Told = _silent,
) -> Harms:
    """What each of the ``candidates`` alone, fitted, does to what the network gives for images held out.

    ``images`` are what the network takes, (N, C, H, W), without labels; half of them are fitted to, and harm is
    measured on the others.  Of a layer whose ghosts are mixtures, one candidate stands for any number m of intrinsic
    maps; of a block, three of its widths stand for those between.  Other candidates are measured each by itself:
    depthwise ghosts, and by really fitting it whatever else there is.  ``told`` is called with how many hundredths of
    the work are done, and 100.  The model is not touched.

    Raises ``FitError`` for fewer than eight images, or images that are not what the network was recorded on.
    """
    began = time.perf_counter()
    traced = Recording.of(recorded).whole
    if traced is None:
        raise PlanError("Harm is told of a network that is recorded as a whole, and this one is recorded in parts.")
    require_fittable(traced)
    here = device or next((tensor.device for tensor in traced.module.parameters()), torch.device("cpu"))
    work = working_copy(traced, here)
    images = move(as_recorded(work, images), here, torch.float32)
    if count(images) < LEAST_IMAGES:
        raise FitError(
            f"Harm is measured on at least {LEAST_IMAGES} images (N, C, H, W), and {count(images)} were given."
        )
    with evaluating(work.module), torch.no_grad():
        job = _Job(work, _batches(images), candidates, told)
        layers, forms = job.run()
    return Harms(
        network=type(traced.module).__name__,
        unit=job.judge.unit,
        images=sum(count(job.batches[batch]) for batch in job.held),
        fitted=sum(count(job.batches[batch]) for batch in job.seen),
        unsure=job.judge.unsure,
        layers=layers,
        forms=forms,
        seconds=time.perf_counter() - began,
    )


def _batches(images: Batch) -> list[Batch]:
    """As many images as are looked at, in batches of one size."""
    each = sum(leaf[0].numel() for leaf in per_sample(images))
    wanted = max(LEAST_IMAGES, min(count(images), _NUMBERS // max(1, each)))
    stride = count(images) // wanted
    return batched(take(images, slice(0, stride * wanted, stride)))


class _Step(NamedTuple):
    """Where the walk stops, and what is measured there."""

    place: int
    measure: Callable[[], None]
    work: float


class _Thinner(NamedTuple):
    """One width of a block."""

    missed: float
    swap: ThinSwap
    changes: Changes


class _Job:
    """The candidates, in the order in which the walk comes by."""

    def __init__(self, traced: Traced, batches: Sequence[Batch], candidates: Sequence[Swap], told: Told) -> None:
        self.traced, self.told, self.candidates = traced, told, candidates
        told(0, 100)
        run = sized_as(traced, batches[0])
        self.walk = Walk(run, traced.module, [])
        self.batches = batches[: max(2, MEMORY // max(1, _most(self.walk)))]
        self.walk = Walk(run, traced.module, self.batches)
        half = len(self.batches) // 2
        self.seen, self.held = range(half), range(half, len(self.batches))
        self.scan = scan(traced)
        self.calls = self._calls()
        self.sums = Sums([call for calls in self.calls.values() for call in calls], self.seen)
        self.work = Work(self.walk, self.scan, self.calls, sum(map(count, self.batches)))
        self.answers = Answers(self.walk, self.sums, self.held)
        self.judge = Judge(self._outputs({}), any(site.role == "classifier" for site in self.scan.sites))
        self.places: dict[str, int] = {}
        self.layers: dict[str, LayerHarm] = {}
        self.forms: list[tuple[Kind | None, int, FormHarm]] = []
        """With the kind and the place by which they are compensated; none where later layers were really fitted."""
        self.left: dict[Kind, dict[int, float]] = {"mixture": {}, "depthwise": {}, "thin": {}}
        """By kind of change and place, the compensation measured there."""

    def run(self) -> tuple[tuple[LayerHarm, ...], tuple[FormHarm, ...]]:
        self.sums.note(self.walk)
        sums = {self.calls[name][0].around.sum for name in self._mixed()}
        seen = [self.batches[batch] for batch in self.seen]
        self.sensitivities = sensitivities(self.walk.traced, self.traced.module, seen, sums)
        steps = sorted([*self._mixtures(), *self._depthwise(), *self._thin(), *self._others()], key=lambda s: s.place)
        progress = Progress(self.told, self.work.before() + sum(step.work for step in steps))
        progress.add(self.work.before())
        for step in steps:
            self.walk.advance(step.place)
            step.measure()
            progress.add(step.work)
        depths = {kind: Depth(left) for kind, left in self.left.items()}
        layers = (
            layer.model_copy(update={"compensation": depths["mixture"].at(self.places[name])})
            for name, layer in self.layers.items()
        )
        forms = (
            form.model_copy(update={"compensation": depths[kind].at(place)}) if kind else form
            for kind, place, form in self.forms
        )
        return tuple(layers), tuple(forms)

    def _outputs(self, changes: Changes) -> Outputs:
        with self.walk.changed(changes):
            return self.walk.to_the_end(self.held)

    def _harm(self, changes: Changes) -> float:
        return self.judge.harm(self._outputs(changes))

    def _calls(self) -> dict[str, list[Call]]:
        """By site that can be fitted, its calls."""
        fit = [site for site in self.scan.sites if site.unfit is None]
        found = {site.name: Call.all_of(self.walk.traced, site) for site in fit}
        return {name: calls for name, calls in found.items() if calls}

    def _mixed(self) -> set[str]:
        """The layers of which some candidate's ghosts are mixtures."""
        return {swap.target for swap in self.candidates if is_mixture(swap) and swap.target in self.calls}

    # -- ghosts that are mixtures ------------------------------------------------------------------------------

    def _mixtures(self) -> Iterator[_Step]:
        names = self._mixed()
        sites = [site for site in self.scan.sites if site.name in names]
        places = [self.walk.index[self.calls[site.name][0].node] for site in sites]
        answered = _spread(places, "mixture")
        for site, place in zip(sites, places, strict=True):
            also = place in answered
            many = len(SHARES) + also
            work = self.work.changes(place, many, also) + self.work.projections(site.out_channels, many)
            yield _Step(place, partial(self._mixture, site, place, also), work)

    def _mixture(self, site: Site, place: int, answered: bool) -> None:
        call, *others = self.calls[site.name]
        nodes = [call.node, *(other.node for other in others)]
        with self.walk.changed({}), self.walk.keeping([call.node]):
            self.walk.advance(place + 1, self.seen)
            rows = self.sums.rows_of_original(call, self.walk)
        weights = call.metric(rows.y, self.sensitivities.get(call.around.sum))
        projections = Projections(rows, weights, site.groups, call.dim)
        measured = {
            m: self._harm(dict.fromkeys(nodes, projections.of(m))) for m in ranks(site.out_channels, site.groups)
        }
        self.places[site.name] = place
        self.layers[site.name] = LayerHarm(
            target=site.name,
            maps=site.out_channels,
            groups=site.groups,
            carried=projections.carried,
            measured=measured,
            compensation=1.0,
        )
        if answered:
            # A rank that nobody may ask for does: what is made good is about the same share at any.
            m = max(1, round(site.out_channels // site.groups * _COMPENSATED)) * site.groups
            changes = dict.fromkeys(nodes, projections.of(m))
            self._compensate("mixture", place, changes, self._harm(changes))

    def _compensate(self, kind: Kind, place: int, changes: Changes, alone: float) -> None:
        """Measure what later layers leave of a harm."""
        answered = self.judge.harm(self.answers.outputs(changes))
        self.left[kind][place] = min(1.0, answered / alone) if alone > 0 else 1.0

    # -- other forms -------------------------------------------------------------------------------------------

    def _depthwise(self) -> Iterator[_Step]:
        swaps = [swap for swap in _distinct(filter(is_depthwise, self.candidates)) if swap.target in self.calls]
        places = [self.walk.index[self.calls[swap.target][0].node] for swap in swaps]
        answered = _spread(places, "depthwise")
        for swap, place in zip(swaps, places, strict=True):
            also = place in answered
            yield _Step(place, partial(self._filters, swap, place, also), self.work.changes(place, 1, also))

    def _filters(self, swap: CGhostSwap, place: int, answered: bool) -> None:
        site, calls = self.scan.site(swap.target), self.calls[swap.target]
        assert site is not None
        node = calls[0].node
        with self.walk.changed({}), self.walk.keeping([node]):
            self.walk.advance(place + 1, self.seen)
            ghosts = Ghosts([self.walk.values[batch][node] for batch in self.seen], swap, site.groups)
        changes = dict.fromkeys([call.node for call in calls], ghosts)
        harm = self._harm(changes)
        self._form(swap, "depthwise", place, harm)
        if answered and place not in self.left["depthwise"]:
            self._compensate("depthwise", place, changes, harm)

    def _thin(self) -> Iterator[_Step]:
        # a block may be offered by itself and with its neighbours, which is the same change of that block
        swaps = _distinct(swap for swap in self.candidates if isinstance(swap, ThinSwap))
        if not swaps:
            return
        readers = Readers(self.walk, channels_of(self.walk.traced))
        readers.note(swaps, self.seen)
        blocks: dict[str, list[_Thinner]] = {}
        for swap in swaps:
            if changes := readers.changes(swap):
                blocks.setdefault(swap.target, []).append(_Thinner(readers.missed(changes), swap, changes))
            else:  # nothing that it makes thinner is read by a layer of its own
                yield self._really(swap)
        places = [min(self.walk.index[node] for one in widths for node in one.changes) for widths in blocks.values()]
        answered = _spread(places, "thin")
        for widths, place in zip(blocks.values(), places, strict=True):
            also = place in answered
            yield _Step(place, partial(self._widths, widths, place, also), self.work.changes(place, _WIDTHS, also))

    def _widths(self, widths: Sequence[_Thinner], place: int, answered: bool) -> None:
        """The harm of every width of a block: measured at some, and between these by what is missed."""
        ordered = sorted(widths, key=lambda one: one.missed)
        # The first and the last are among them, so that no width lies beyond.
        step = max(1, (len(ordered) - 1) / (_WIDTHS - 1))
        chosen = {round(index * step) for index in range(_WIDTHS)} & set(range(len(ordered)))
        points = {index: (ordered[index].missed, self._harm(ordered[index].changes)) for index in chosen}
        for index, one in enumerate(ordered):
            harm = points[index][1] if index in points else between(list(points.values()), one.missed)
            self._form(one.swap, "thin", place, harm)
        if answered:
            middle = sorted(chosen)[len(chosen) // 2]
            self._compensate("thin", place, ordered[middle].changes, points[middle][1])

    def _form(self, swap: Swap, kind: Kind | None, place: int, harm: float) -> None:
        form = FormHarm(target=swap.target, form=form_of(swap), measured=harm, compensation=1.0)
        self.forms.append((kind, place, form))

    def _others(self) -> Iterator[_Step]:
        for swap in self.candidates:
            known = isinstance(swap, ThinSwap) or (
                swap.target in self.calls and (is_mixture(swap) or is_depthwise(swap))
            )
            if not known:
                yield self._really(swap)

    def _really(self, swap: Swap) -> _Step:
        return _Step(len(self.walk.nodes), partial(self._alone, swap), self.work.changes(0, 1, answered=True))

    def _alone(self, swap: Swap) -> None:
        seen, held = ([self.batches[batch] for batch in some] for some in (self.seen, self.held))
        harm = self.judge.harm(fitted_alone(self.traced, swap, seen, held))
        self._form(swap, None, len(self.walk.nodes), harm)


def _distinct(swaps: Iterable[S]) -> list[S]:
    """Swaps without those that are others again: of one layer in blocks of several widths, say."""
    return list({(swap.target, form_of(swap)): swap for swap in swaps}.values())


def _spread(places: Collection[int], kind: Kind) -> set[int]:
    """So many of the places as compensation is measured at, evenly spread, the last one among them."""
    ordered = sorted(set(places), reverse=True)
    return set(ordered[:: -(-len(ordered) // _ANSWERED[kind]) or 1])


def _most(walk: Walk) -> int:
    """The most memory that a batch's values take anywhere."""
    return max((walk.bytes_at(index) for index in range(len(walk.nodes))), default=1)
