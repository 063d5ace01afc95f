"""model + images → Analysis: one walk through the network, layer after layer, over all images.

A layer's maps are there only while it is looked at, and of large maps some images are enough, so that what is in memory
at a time is what the network itself keeps there for those images.

Processes that look at it together run batches of their own each; all find the same, and the first takes the pictures.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from ghostify.analysis.advice import Advisor, advised
from ghostify.analysis.findings import LayerRedundancy, StageRedundancy
from ghostify.analysis.layers import compare_maps, rank_curve, rank_positions
from ghostify.analysis.pictures import Camera
from ghostify.analysis.result import Analysis
from ghostify.analysis.stages import compare_blocks, stage_positions
from ghostify.arguments import given, network, takes
from ghostify.batches import Batch, count, move, per_sample, take
from ghostify.errors import DataError, FitError, PlanError
from ghostify.fitting.agenda.epilogue import importance
from ghostify.fitting.calibration import HELD
from ghostify.fitting.interpreter import Interpreter, batched
from ghostify.leastsquares.pairs import pair_positions
from ghostify.leastsquares.sampling import Positions
from ghostify.module_calls import given_by
from ghostify.patterns import require_matches
from ghostify.planning import plan
from ghostify.processes import present
from ghostify.recipe import AnalysisSettings, make_settings
from ghostify.running import evaluating, in_single_precision, undisturbed
from ghostify.scanning import Scan, Site, scan
from ghostify.stages import Stage
from ghostify.tracing import Traced, trace

LEAST_IMAGES = 8

Told = Callable[[int, int], None]


def _images(value: Any) -> Any:
    if isinstance(value, (Tensor, tuple, dict)):
        return value
    raise DataError(
        f"An analysis needs at least {LEAST_IMAGES} images as one tensor (N, C, H, W), and was given {given(value)}; "
        "torch.stack makes one of a list."
    )


@takes(model=network, images=_images)
@undisturbed()
@in_single_precision()
def analyze(
    model: nn.Module,
    images: Batch,
    settings: AnalysisSettings | Mapping[str, Any] | None = None,
    *,
    trained: bool | None = None,
    source: str = "",
    data: str = "",
    notes: Sequence[str] = (),
    device: torch.device | None = None,
    camera: Camera | None = None,
    told: Told | None = None,
    **changes: Any,
) -> Analysis:
    """How redundant the feature maps of each layer and stage of ``model`` are, and what that allows.

    ``images`` (N, C, H, W), scaled as the network is used to and without labels; some tens do.  Of a network with
    several inputs they are a tuple or a dict of tensors, with N samples in each.  ``settings`` and
    ``changes`` are ``AnalysisSettings``, as in ``analyze(model, images, d=5)``.  ``camera`` takes pictures on the way;
    ``told`` is called with how many layers and stages are done, of how many.  The model is not touched.  Where it is
    interrupted (Ctrl-C), what is done is returned and ``complete`` is False.

    Raises ``DataError`` for fewer than eight images, ``TraceError`` when the network cannot be recorded, ``FitError``
    naming a layer whose values are not finite, and ``PlanError`` for a pattern that matches no layer.
    """
    chosen = make_settings(AnalysisSettings, settings, changes)
    if count(images) < LEAST_IMAGES:
        shapes = " and ".join(str(tuple(leaf.shape)) for leaf in per_sample(images)) or "none"
        raise DataError(f"An analysis needs at least {LEAST_IMAGES} images (N, C, H, W), and was given {shapes}.")
    began = time.perf_counter()
    module, here, floats = _prepared(model, device)
    batches = [move(batch, here, torch.float32) for batch in batched(images)]
    with evaluating(module), torch.no_grad():
        traced = trace(module, take(batches[0], slice(1)))
        seen = scan(traced)
        _require_matches(seen, chosen.layers)
        job = _Job(traced, seen, module, batches, chosen, camera, told or (lambda done, total: None))
        complete = job.run()
    made = advised(job.layers, job.stages, "c-ghost")
    remarks = [*notes, *([] if floats else ["The network is in half precision; it was looked at in float32."])]
    return Analysis(
        network=seen.network,
        source=source,
        inputs=seen.inputs,
        trained=trained,
        images=sum(map(count, batches)),
        data=data,
        cost=seen.cost,
        layers=tuple(job.layers),
        stages=tuple(job.stages),
        skipped=job.skipped,
        plan=plan(seen, made),
        seconds=time.perf_counter() - began,
        complete=complete,
        notes=tuple(remarks),
    )


class _Job:
    """The layers and stages one after the other, as the walk comes by."""

    def __init__(
        self,
        traced: Traced,
        seen: Scan,
        module: nn.Module,
        batches: Sequence[Batch],
        settings: AnalysisSettings,
        camera: Camera | None,
        told: Told,
    ) -> None:
        self.seen, self.settings, self.camera, self.told = seen, settings, camera, told
        self.advisor = Advisor(settings)
        self.walk = Interpreter(trace(module, batches[0], verify=False), module, batches)
        # as many as fitting holds out, so that an analysis promises what a fit will be judged by
        self.held = len(batches) // HELD
        self.layers: list[LayerRedundancy] = []
        self.stages: list[StageRedundancy] = []
        self.skipped: dict[str, str] = {}
        self.processes = present()
        self.started = set(self.processes.share([0]))
        """This process's batches on their way; the first of all has the image of which pictures are taken."""
        self.wanted: Counter[fx.Node] = Counter()
        """By node, how many still want to see its values: blocks may end with a layer, and stages share blocks."""
        self.nodes = {node.name: node for node in self.walk.nodes}
        self.like = next(leaf for leaf in per_sample(batches[0]))[:0]
        """A tensor where the network is."""

    def run(self) -> bool:
        """Look at everything; False where it was interrupted."""
        # layers and stages in the order they run, because the walk through the network only goes forwards
        steps = sorted([*self._sites(), *self._stages()], key=lambda step: step[0])
        try:
            for done, (_, look) in enumerate(steps):
                self.told(done, len(steps))
                look()
            self.told(len(steps), len(steps))
        except KeyboardInterrupt:
            return False
        return True

    # -- layers ------------------------------------------------------------------------------------------------

    def _sites(self) -> Iterator[tuple[int, Callable[[], None]]]:
        for site in self.seen.sites:
            if not any(map(site.matches, self.settings.layers)):
                continue
            outputs = given_by(self.walk.traced, site.name)
            reason = _unfit(site, len(outputs))
            if reason:
                self.skipped[site.name] = reason
                continue
            node = outputs[0]
            yield self.walk.index[node], lambda site=site, node=node: self._layer(site, node)  # type: ignore[misc]

    def _layer(self, site: Site, node: fx.Node) -> None:
        shape, batches, room = node.meta["shapes"][0], len(self.walk.values), self.walk.room(node)
        positions = pair_positions(shape, self.settings.d, batches, room)
        of_ranks = rank_positions(shape, batches, room)
        needed = sorted({*positions.batches, *of_ranks.batches})
        with self._kept(node, needed) as maps:
            self._require_finite(site.name, maps, needed)
            found = compare_maps(maps, positions, self.settings.d, site.groups)
            carried = self._carried(site, node, maps, of_ranks)
            if self.camera and self.processes.first:
                self.camera.layer(site.name, maps(0)[0], found.pairs)
        size = (*shape[2:], 1, 1)[:2]
        self.layers.append(
            LayerRedundancy(
                name=site.name,
                geometry=site.geometry,
                maps=site.out_channels,
                size=size,
                cost=site.cost,
                share=site.cost.macs / max(1, self.seen.cost.macs),
                positions=positions.total,
                images=len(positions.batches) * shape[0],
                carried=carried,
                **vars(found),
                advice=self.advisor.layer(site, carried, found.filters, found.splits),
            )
        )

    def _carried(
        self, site: Site, node: fx.Node, maps: Callable[[int], Tensor], positions: Positions
    ) -> tuple[float, ...]:
        """The rank curve of a layer; of groups there is none, because a pointwise convolution would join them."""
        if site.groups > 1:
            return ()
        weights = importance(self.walk.traced, node, site.out_channels, self.like)
        return rank_curve(maps, positions, weights)

    # -- stages ------------------------------------------------------------------------------------------------

    def _stages(self) -> Iterator[tuple[int, Callable[[], None]]]:
        for stage in self.seen.stages:
            if not stage.is_meant(self.settings.layers, self.seen.modules):
                continue
            exits = [self.nodes.get(block.exit) for block in stage.blocks]
            if any(node is None or len(node.meta["shapes"][0]) != 4 for node in exits):
                self.skipped[stage.name] = "gives no maps (N, C, H, W)"
                continue
            known = [node for node in exits if node is not None]
            # a stage is compared at its last block: what its other blocks gave must still be there then
            for node in known[:-1]:
                self._want(node)
            yield self.walk.index[known[-1]], lambda stage=stage, nodes=known: self._stage(stage, nodes)  # type: ignore[misc]

    def _stage(self, stage: Stage, nodes: Sequence[fx.Node]) -> None:
        shape = nodes[-1].meta["shapes"][0]
        positions = stage_positions(shape, len(self.walk.values), self.held, self.walk.room(nodes[-1]))
        with self._kept(nodes[-1], positions.batches) as last:
            first, *others = (self._reader(node) for node in nodes[:-1])
            self._require_finite(stage.name, last, positions.batches)
            found = compare_blocks(first, last, [first, *others], positions, self.held, len(self.walk.values))
            if self.camera and self.processes.first:
                self.camera.stage(stage.name, first(0)[0], last(0)[0], found.pairs)
        for node in nodes[:-1]:
            self._release(node)
        self.stages.append(
            StageRedundancy(
                name=stage.name,
                geometry=stage.geometry,
                blocks=tuple(block.name for block in stage.blocks),
                width=stage.width,
                cost=stage.cost,
                share=stage.cost.macs / max(1, self.seen.cost.macs),
                positions=positions.total,
                curve=found.curve,
                channels=found.mixed,
                cheap_channels=found.cheap,
                pairs=found.pairs,
                advice=self.advisor.stage(stage, found.curve),
            )
        )

    def _require_finite(self, name: str, maps: Callable[[int], Tensor], batches: Sequence[int]) -> None:
        own = self.processes.share(batches)
        bad = not all(bool(torch.isfinite(maps(batch)).all()) for batch in own)
        if self.processes.total([bad])[0]:
            raise FitError(
                f"{name} gives values that are not finite (NaN or infinite) for these images; look at the weights "
                "before it, or leave it out with --layers."
            )

    # -- the walk ----------------------------------------------------------------------------------------------

    @contextmanager
    def _kept(self, node: fx.Node, batches: Sequence[int]) -> Iterator[Callable[[int], Tensor]]:
        """Interpreter on until ``node`` has run for ``batches``; its values by batch."""
        # a batch that was once on its way goes on, because later layers may look at other batches than this one
        self.started |= set(self.processes.share(batches))
        self._want(node)
        self.walk.advance(self.walk.index[node] + 1, sorted(self.started))
        try:
            yield self._reader(node)
        finally:
            self._release(node)

    def _want(self, node: fx.Node) -> None:
        self.wanted[node] += 1
        self.walk.keep(node)

    def _release(self, node: fx.Node) -> None:
        self.wanted[node] -= 1
        if not self.wanted[node]:
            self.walk.drop(node)

    def _reader(self, node: fx.Node) -> Callable[[int], Tensor]:
        return lambda batch: self.walk.values[batch][node]


def _prepared(model: nn.Module, device: torch.device | None) -> tuple[nn.Module, torch.device, bool]:
    """The network in float32 at a device: itself where it is that; the device, and whether it was in float32."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise FitError(f"{type(model).__name__} is on the meta device and has no weights to look at.")
    here = device or next((tensor.device for tensor in tensors), torch.device("cpu"))
    floats = all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point())
    if floats and all(tensor.device == here for tensor in tensors):
        return model, here, True
    return copy.deepcopy(model).to(here, torch.float32), here, floats


def _unfit(site: Site, calls: int) -> str:
    """Why a layer is not looked at; empty where it is."""
    if site.kind != "conv":
        return f"is a {site.kind} layer; maps of two-dimensional convolutions are compared"
    if calls != 1:
        return "is called more than once" if calls else "is not called as a module of its own"
    if site.out_channels // site.groups < 2:
        return "has one output map per group, so there is nothing to be made of another"
    return ""


def _require_matches(seen: Scan, patterns: Sequence[str]) -> None:
    if not any(site.kind == "conv" for site in seen.sites):
        others = any(site.kind in ("conv1d", "conv3d") for site in seen.sites)
        kind = "two-dimensional convolutions, whose maps alone are compared" if others else "convolutions"
        raise PlanError(f"{seen.network} has no {kind}, so there are no maps to compare.")
    require_matches(seen, "layers", patterns)
    for pattern in patterns:
        inside = [site.matches(pattern) for site in seen.sites]
        inside += [stage.is_meant([pattern], seen.modules) for stage in seen.stages]
        if not any(inside):
            raise PlanError(
                f"layers {pattern!r} names no layer or stage to look at, only modules without convolutions."
            )
