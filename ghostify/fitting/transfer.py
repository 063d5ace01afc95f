"""Plan + images → Ghosted, fitted, of a network recorded in one run.

    arrange the original's channels → rewrite → fit → put the weights where they belong

The work is done in float32 on copies; the user's model is not touched, and the result has its dtype and device.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ghostify.arguments import given as described
from ghostify.batches import Batch, count, describe, move, per_sample, take
from ghostify.errors import FitError
from ghostify.fit_result import Fit
from ghostify.fitting.agenda.correspondence import origins
from ghostify.fitting.calibration import Calibration
from ghostify.fitting.channel_order import Arrangement, arranged
from ghostify.fitting.fit import Progress, fit
from ghostify.fitting.judging import Judge
from ghostify.fitting.kinds.ghosts import solved_for
from ghostify.fitting.noise import looks, noise
from ghostify.fitting.norms import renew_all
from ghostify.fitting.polish import polish
from ghostify.planning import Plan, check, scan_for
from ghostify.processes import make_alike, present
from ghostify.recipe import FitSettings
from ghostify.rewriting import Choices, Ghosted, rewrite_run
from ghostify.rules import rule_of
from ghostify.rules.base import Split
from ghostify.rules.origins import Origins
from ghostify.running import evaluating
from ghostify.scanning import forms
from ghostify.tracing import Traced, call_arguments, sized_as, sized_like, trace


def fit_run(
    traced: Traced,
    plan: Plan,
    images: Batch | None,
    settings: FitSettings,
    *,
    device: torch.device | None = None,
    told: Progress | None = None,
) -> Ghosted:
    """A network recorded in one run, rewritten, and its weights fitted as ``rewrite_fitted`` tells; ``told`` is called
    with the parts fitted and to be fitted.
    """
    how = settings.resolved(images is not None)
    device = device or _device_of(traced.module)
    require_fittable(traced)
    if how != "weights":
        images = _asked_for(as_recorded(traced, images), settings)
    plan = check(plan, scan_for(traced, plan)).require_changes()
    work = working_copy(traced, device)
    if how == "weights" or images is None:
        images = noise(work, settings.images)
    images = move(images, device, torch.float32)
    calibration = Calibration.of(images)
    notes = looks(work, calibration.batches)
    arrangement = _arranged(work, plan, calibration, settings)
    work, plan = arrangement.traced, _ordered(plan, arrangement)
    choices = Choices(orders=arrangement.orders)
    ghosted = rewrite_run(work, plan, choices)
    came_from = origins(work, plan.swaps, ghosted.module, ghosted.before)
    came_from.excluded = plan.excludes
    assert ghosted.run is not None, "of a whole"
    first = sized_as(work, calibration.batches[0])
    second = sized_like(ghosted.run, work, calibration.batches[0])
    found = fit(first, second, calibration, settings, came_from, told or _silent)
    found = found.model_copy(update={"how": how, "notes": (*notes, *found.notes)})
    if how == "polish":
        found = _polished(found, first, second, calibration, settings, came_from)
    own = {"kinds": forms(traced.example)[0]}  # the network's own precision, not that of the work
    before, after = ghosted.before.model_copy(update=own), ghosted.after.model_copy(update=own)
    module = _as_before(ghosted.module, traced.module)
    return replace(ghosted, module=module, before=before, after=after, fit=found, run=None)


def _silent(done: int, total: int) -> None: ...


def _polished(
    found: Fit, first: Traced, second: Traced, images: Calibration, settings: FitSettings, came_from: Origins
) -> Fit:
    """What came of the fit and of the descent after it.  Copies run, for a network may remember its runs."""
    began = time.perf_counter()
    module = second.module
    original, tried = copy.deepcopy(first.module), copy.deepcopy(module)
    for name, part in tried.named_modules():
        if came_from.keeps(name):
            part.requires_grad_(False)
    with evaluating(original, tried):
        if present().first:  # it goes as far as there is time, which would be another way in each process
            polish(original, tried, images.seen, images.choosing, settings.seconds)
        make_alike(tried, present())
        error = _judged(first.of(original), second.of(tried), images)
        if error is not None and found.error is not None and not error <= found.error:
            tried.load_state_dict(module.state_dict())
            error = found.error
        # The descent changed what norms read, so their statistics are of a network that is no more.
        renew_all(tried, images.batches, came_from.keeps)
    # Norms whole, and of the others the parameters alone: their buffers may remember the runs of the copy.
    for part, other in zip(module.modules(), tried.modules(), strict=True):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.load_state_dict(other.state_dict())
    with torch.no_grad():
        for parameter, found_one in zip(module.parameters(), tried.parameters(), strict=True):
            parameter.copy_(found_one)
    took = found.seconds + time.perf_counter() - began
    return found.model_copy(update={"seconds": took, "polished": error})


def _judged(first: Traced, second: Traced, images: Calibration) -> float | None:
    """The error on the images that nothing was made of."""
    with torch.no_grad():
        return Judge(first, first.module, images.batches, images.judged).error(second, second.module)


def require_fittable(traced: Traced) -> None:
    name, example = type(traced.module).__name__, traced.example
    leaves = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    if not per_sample(example) or len(leaves) != len(traced.input_shapes):
        raise FitError(
            f"{name} takes inputs that are no tensors in tuples, lists or dicts, so there is nothing to fit it to; use "
            "fit none."
        )
    if any(tensor.is_meta for tensor in traced.module.parameters()):
        raise FitError(f"{name} is on the meta device and has no weights to be fitted; use fit none.")


def as_recorded(traced: Traced, images: Any) -> Batch:
    """Images in the structure of the example.  Raises ``FitError`` where they are anything else than it, N times."""
    example, structure = tree_flatten((traced.args, traced.kwargs))
    given, found = tree_flatten(call_arguments(images))
    held = [leaf for leaf in given if isinstance(leaf, Tensor) and leaf.dim() > 0]
    name = type(traced.module).__name__
    if isinstance(images, Tensor) and found != structure:
        raise FitError(f"{name} takes other inputs than one tensor of images; give {_wanted(traced)} or fit none.")
    lone = isinstance(images, Tensor) and images.dim() < 2 <= example[0].dim()
    if images is not None and (found != structure or not held):
        raise FitError(
            f"There are no calibration images: {_wanted(traced)} is needed, and {described(images)} was given; "
            "or use fit none."
        )
    if images is None or lone or not all(map(len, held)):
        raise FitError(f"There are no calibration images: {_wanted(traced)} is needed, or fit none.")
    _require_alike(name, given, example)
    if not count(given):
        sizes = ", ".join(str(len(leaf)) for leaf in held)
        raise FitError(f"The calibration images of several inputs must be as many of each, not {sizes}.")
    # Bytes may stand for numbers that the network takes as floats; what it takes as whole numbers stays whole.
    kinds = [_in_kind(one, other) for one, other in zip(given, example, strict=True)]
    args, kwargs = tree_unflatten(kinds, found)
    return kwargs or args


def _asked_for(images: Batch, settings: FitSettings) -> Batch:
    """As many images as were asked for, evenly spread over those there are; all where no number was given."""
    stride = count(images) // settings.images
    if "images" not in settings.model_fields_set or stride == 0:
        return images
    return take(images, slice(0, stride * settings.images, stride))


def _wanted(traced: Traced) -> str:
    """What images a network needs, in words."""
    tensors = [" x ".join(("N", *map(str, shape[1:]))) for shape in traced.input_shapes if shape]
    if traced.kwargs:
        return f"a dict of {', '.join(traced.kwargs)}, N samples of each,"
    if len(traced.args) == 1 and isinstance(traced.args[0], Tensor):
        return f"a tensor of {tensors[0]}"
    return f"a tuple like the example, with tensors of {' and '.join(tensors)},"


def _require_alike(name: str, given: Sequence[Any], example: Sequence[Any]) -> None:
    """Refuse images of another size, or of numbers of another kind, than a network was recorded on."""
    shapes = [tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None for leaf in given]
    if shapes != [tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None for leaf in example]:
        raise FitError(
            f"The calibration images are {describe(given)} and {name} was recorded on {describe(example)}; give images "
            "of that size."
        )
    for one, other in zip(given, example, strict=True):
        if isinstance(one, Tensor) and one.is_floating_point() and not other.is_floating_point():
            raise FitError(f"The calibration images are {one.dtype} where {name} was recorded on {other.dtype}.")


def _in_kind(given: Any, example: Any) -> Any:
    return given.to(example.dtype) if isinstance(given, Tensor) and not given.is_floating_point() else given


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def working_copy(traced: Traced, device: torch.device) -> Traced:
    """The network in float32 at ``device``: itself where it is that."""
    tensors = [*traced.module.parameters(), *traced.module.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    if all(tensor.dtype == torch.float32 for tensor in floats) and all(tensor.device == device for tensor in tensors):
        return traced
    example = move(traced.example, device, torch.float32)
    return trace(copy.deepcopy(traced.module).to(device, torch.float32), example, verify=False)


def _arranged(traced: Traced, plan: Plan, images: Calibration, settings: FitSettings) -> Arrangement:
    """The network with its channels in the order that suits the ghosts, and what is to be selected at run time."""
    splits = list(_splits(traced, plan, settings))
    if settings.arrange == "none" or not splits:
        return Arrangement(traced, {})
    return arranged(traced, splits, images.fitted, settings.arrange == "select", plan.excludes)


def _splits(traced: Traced, plan: Plan, settings: FitSettings) -> Iterator[Split]:
    """The layers of which it matters which maps are intrinsic: not where their filters are solved for and a full
    pointwise convolution mixes them.
    """
    for swap in plan.swaps:
        split = rule_of(swap).split(swap, traced)
        if split and not (split.mixed and settings.joint and solved_for(traced.part(split.target))):
            yield split


def _ordered(plan: Plan, arrangement: Arrangement) -> Plan:
    swaps = tuple(
        swap.model_copy(update={"ordered": True}) if swap.target in arrangement.orders else swap for swap in plan.swaps
    )
    return plan.model_copy(update={"swaps": swaps})


def _as_before(module: nn.Module, original: nn.Module) -> nn.Module:
    """The fitted network on the original's device, and every tensor in the dtype that its place there has."""
    kinds = {name: tensor.dtype for name, tensor in _tensors(original) if tensor.is_floating_point()}
    for name, tensor in _tensors(module):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(_kind(kinds, name) or tensor.dtype)
    return module.to(_device_of(original))


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _kind(kinds: Mapping[str, torch.dtype], name: str) -> torch.dtype | None:
    """The dtype of a tensor, else of the first one in the innermost module around it that has any."""
    while name not in kinds:
        name = name.rpartition(".")[0]
        inside = (kind for other, kind in kinds.items() if not name or other.startswith(f"{name}."))
        if (kind := next(inside, None)) or not name:
            return kind
    return kinds[name]
