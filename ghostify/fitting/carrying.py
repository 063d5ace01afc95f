"""Plan + images → Ghosted, fitted.

    arrange the original's channels → rewrite → fit → put the weights where they belong

The work is done in float32 on copies; the user's model is not touched, and the result has its dtype and device.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.errors import FitError
from ghostify.fitting.arranging import Arrangement, arranged
from ghostify.fitting.fit import HELD, Told, fit
from ghostify.fitting.ghosts import solved_for
from ghostify.fitting.noise import looks, noise
from ghostify.fitting.norms import renew_all
from ghostify.fitting.origins import origins
from ghostify.fitting.polish import polish
from ghostify.fitting.report import Fit
from ghostify.fitting.walking import batched
from ghostify.ghosts import intrinsic_maps, low_rank
from ghostify.planning import Plan, check, scan_for
from ghostify.recipe import FitSettings
from ghostify.rewriting import Choices, Ghosted, rewrite
from ghostify.rules import CGhostSwap
from ghostify.running import evaluating
from ghostify.tracing import Traced, trace


def rewrite_fitted(
    traced: Traced,
    plan: Plan,
    images: Tensor | None,
    settings: FitSettings | None = None,
    *,
    device: torch.device | None = None,
    told: Told | None = None,
) -> Ghosted:
    """``rewrite``, and the weights fitted to what the original gives for ``images``, without labels.

    Images are what the network takes: (N, C, H, W), (N, C, T, H, W) of videos, (N, C, L) of signals.  With ``how``
    "weights" none are looked at: noise stands for them.  ``device`` is where the work is done (None: where the model
    is); ``told`` is called with the parts fitted and to be fitted.  Raises what ``rewrite`` raises, and ``FitError``
    when the network takes no single image, gives values that are not finite (the layer is named), or there are no
    images.
    """
    settings = settings or FitSettings()
    how = settings.resolved(images is not None)
    if how == "none":
        return rewrite(traced, plan)
    place = device or _place(traced.module)
    if how != "weights":
        _require_images(traced, images)
    _require_fittable(traced)
    plan = check(plan, scan_for(traced, plan)).require_changes()
    work = _working_copy(traced, place)
    if how == "weights" or images is None:
        images = noise(work, settings.images)
    images = images.to(place, torch.float32)
    notes = looks(work, images)
    arrangement = _arranged(work, plan, images, settings)
    work, plan = arrangement.traced, _ordered(plan, arrangement)
    choices = Choices(orders=arrangement.orders)
    ghosted = rewrite(work, plan, choices)
    came_from = origins(work, plan.swaps, ghosted.module)
    found = fit(work.module, ghosted.module, images, settings, came_from, told or _silent)
    found = found.model_copy(update={"how": how, "notes": (*notes, *found.notes)})
    if how == "polish":
        found = _polished(found, work.module, ghosted.module, images, settings)
    return replace(ghosted, module=_as_before(ghosted.module, traced.module), fit=found)


def _silent(done: int, total: int) -> None: ...


def _polished(found: Fit, original: nn.Module, module: nn.Module, images: Tensor, settings: FitSettings) -> Fit:
    """What came of the fit and of the descent after it.  Copies run, for a network may remember its runs."""
    began = time.perf_counter()
    batches = batched(images)
    free = len(batches) - len(batches) // HELD
    original, tried = copy.deepcopy(original), copy.deepcopy(module)
    with evaluating(original, tried):
        _, error = polish(original, tried, batches[:free], batches[free:], settings.seconds)
        renew_all(tried, batches)
    for part, other in zip(module.modules(), tried.modules(), strict=True):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.load_state_dict(other.state_dict())
    with torch.no_grad():
        for parameter, found_one in zip(module.parameters(), tried.parameters(), strict=True):
            parameter.copy_(found_one)
    took = found.seconds + time.perf_counter() - began
    return found.model_copy(update={"seconds": took, "polished": error})


def _require_fittable(traced: Traced) -> None:
    name = type(traced.module).__name__
    if len(traced.args) != 1 or not isinstance(traced.args[0], Tensor):
        raise FitError(
            f"{name} takes other inputs than one tensor of images, to which it could be fitted; use fit none."
        )
    if any(tensor.is_meta for tensor in traced.module.parameters()):
        raise FitError(f"{name} is on the meta device and has no weights to be fitted; use fit none.")


def _require_images(traced: Traced, images: Any) -> None:
    name = type(traced.module).__name__
    if not isinstance(images, Tensor) or images.dim() < 2 or not len(images):
        wanted = " x ".join(("N", *map(str, traced.input_shapes[0][1:])))
        raise FitError(f"There are no calibration images: a tensor of {wanted} is needed, or fit none.")
    shape = traced.input_shapes[0]
    if tuple(images.shape[1:]) != shape[1:]:
        raise FitError(
            f"The calibration images are {'x'.join(map(str, images.shape[1:]))} and {name} was recorded on "
            f"{'x'.join(map(str, shape[1:]))}; give images of that size."
        )


def _place(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def _working_copy(traced: Traced, place: torch.device) -> Traced:
    """The network in float32 at ``place``: itself where it is that."""
    tensors = [*traced.module.parameters(), *traced.module.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    if all(tensor.dtype == torch.float32 for tensor in floats) and all(tensor.device == place for tensor in tensors):
        return traced
    example = (
        traced.args[0].to(place, torch.float32) if traced.args[0].is_floating_point() else traced.args[0].to(place)
    )
    return trace(copy.deepcopy(traced.module).to(place, torch.float32), example, verify=False)


def _arranged(traced: Traced, plan: Plan, images: Tensor, settings: FitSettings) -> Arrangement:
    """The network with its channels in the order that suits the ghosts, and what is to be selected at run time."""
    swaps = [swap for swap in plan.swaps if isinstance(swap, CGhostSwap) and _minds_order(traced, swap, settings)]
    if settings.arrange == "none" or not swaps:
        return Arrangement(traced, {})
    return arranged(traced, swaps, batched(images), select=settings.arrange == "select")


def _minds_order(traced: Traced, swap: CGhostSwap, settings: FitSettings) -> bool:
    """Whether it matters to a module which maps are intrinsic: not where their filters are solved for and a full
    pointwise convolution mixes them."""
    layer: Any = traced.part(swap.target)
    n = len(layer.weight)
    full = swap.pointwise and not low_rank(n, intrinsic_maps(n, swap.s), swap.pointwise)
    return swap.parts == "linear" and not (full and solved_for(layer) and settings.joint)


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
    return module.to(_place(original))


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
