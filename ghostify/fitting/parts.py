"""Parts of a network + images of the whole → the network, each part fitted to what it is given.

A part is fitted by itself: the original runs on every image, and what it gives the part there are the part's images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ghostify.errors import FitError
from ghostify.fitting.carrying import rewrite_fitted
from ghostify.fitting.fit import Told
from ghostify.fitting.report import Fit
from ghostify.measuring.borrowing import on_device
from ghostify.names import within
from ghostify.planning import Plan
from ghostify.recipe import FitSettings
from ghostify.rewriting import Ghosted, Parts, TracedParts, rewrite, rewrite_parts
from ghostify.rewriting.naming import entering
from ghostify.running import evaluating
from ghostify.tracing import Traced, call_arguments

Watched = Callable[[str], AbstractContextManager[Told | None]]
"""By the name of a part, who is told how much of it is fitted."""


def rewrite_parts_fitted(
    recorded: TracedParts,
    plan: Plan,
    images: Iterable[Any] | None,
    settings: FitSettings | None = None,
    *,
    device: torch.device | None = None,
    watched: Watched = lambda name: nullcontext(),
) -> Parts:
    """``rewrite_parts``, and the weights of each part fitted to what the original gives it for ``images``.

    ``images`` are a tensor (N, C, H, W), of which the model is given one after the other, or inputs of the whole as
    ``trace`` takes them.  A part that takes other inputs than one tensor, or inputs of several sizes, is carried over
    unfitted, and the fit's notes say so.  Raises what ``rewrite_parts`` raises.
    """
    settings = settings or FitSettings()
    how = settings.resolved(images is not None)
    if how == "none":
        return rewrite_parts(recorded, plan)
    if how != "weights" and images is None:
        raise FitError("There are no calibration images: a tensor (N, C, H, W) is needed, or fit none.")
    given: Mapping[str, Tensor] = {}
    if how != "weights" and images is not None:
        given = given_to(recorded, plan, images, settings.images, device)
    unfitted: dict[str, str] = {}

    def fitted(name: str, traced: Traced, own: Plan) -> Ghosted:
        try:
            if how != "weights" and name not in given:
                raise FitError("it is given other inputs than one tensor, or tensors of several sizes.")
            with watched(name) as told:
                return rewrite_fitted(traced, own, given.get(name), settings, device=device, told=told)
        except FitError as problem:
            unfitted[name] = str(problem)
            return rewrite(traced, own)

    parts = rewrite_parts(recorded, plan, fitted)
    fits = {name: ghosted.fit for name, ghosted in parts.ghosted.items() if ghosted.fit}
    notes = tuple(f"Weights of {name} carried over unfitted: {reason}" for name, reason in unfitted.items())
    return replace(parts, whole=replace(parts.whole, fit=_together(fits), notes=notes))


def given_to(
    recorded: TracedParts, plan: Plan, images: Iterable[Any], count: int, device: torch.device | None = None
) -> dict[str, Tensor]:
    """What each part that a plan changes is given for images, (N, ...); nothing for one that takes other inputs than a
    tensor, or is given tensors of several sizes.
    """
    model = recorded.model if device is None else on_device(recorded.model, device)
    changed = {name for name in recorded.parts for swap in plan.swaps if within(swap.target, name)}
    seen: dict[str, list[Tensor]] = {name: [] for name in changed if _takes_one_tensor(recorded.parts[name])}
    hooks = [model.get_submodule(name).register_forward_pre_hook(_noting(kept)) for name, kept in seen.items()]
    try:
        with evaluating(model), torch.no_grad():
            for one in images.split(1) if isinstance(images, Tensor) else images:
                args, kwargs = call_arguments(one if device is None else _moved(one, device))
                model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: torch.cat(tensors)[:count]
        for name, tensors in seen.items()
        if len({tensor.shape[1:] for tensor in tensors}) == 1
    }


def _takes_one_tensor(traced: Traced) -> bool:
    return len(traced.args) == 1 and isinstance(traced.args[0], Tensor) and not traced.kwargs


def _noting(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        kept.append(args[0].clone())

    return note


def _moved(example: Any, place: torch.device) -> Any:
    return tree_map(lambda leaf: leaf.to(place) if isinstance(leaf, Tensor) else leaf, example)


def _together(fits: Mapping[str, Fit]) -> Fit | None:
    """The fits of parts as one, its errors their means."""
    if not fits:
        return None
    found = list(fits.values())
    polished = [one.polished for one in found if one.polished is not None]
    layers = (
        layer.model_copy(update={"target": entering(name, layer.target)})
        for name, one in fits.items()
        for layer in one.layers
    )
    return Fit(
        how=found[0].how,
        images=max(one.images for one in found),
        seconds=sum(one.seconds for one in found),
        layers=tuple(layers),
        error=fmean(one.error for one in found),
        unfitted=fmean(one.unfitted for one in found),
        polished=fmean(polished) if polished else None,
        notes=(
            f"Fitted part by part; the outputs are those of {', '.join(fits)}{', a mean' * (len(fits) > 1)}.",
            *(f"{name}: {note}" for name, one in fits.items() for note in one.notes),
        ),
    )
