"""Plan + images → Ghosted, fitted: a network as a whole, or part by part where it was recorded so.

A part is fitted by itself: the original runs on every image, and what it gives the part there are the part's images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from ghostify.arguments import takes
from ghostify.batches import Batch, call, count, join, move, per_sample, split, take
from ghostify.errors import FitError, PlanError
from ghostify.fit_result import Fit
from ghostify.fitting.fit import Progress
from ghostify.fitting.transfer import fit_run
from ghostify.measuring.borrowing import on_device
from ghostify.names import within
from ghostify.planning import Plan
from ghostify.recipe import FitSettings, make_settings
from ghostify.rewriting import Ghosted, a_plan, a_recording, rewrite, rewrite_each, rewrite_run
from ghostify.running import evaluating, in_single_precision, undisturbed
from ghostify.scanning.naming import entering
from ghostify.tracing import WHOLE, Recording, Traced, cloned, one_example

Watched = Callable[[str], AbstractContextManager[Progress | None]]
"""By the name of a part (of a whole, ""), who is told how much of it is fitted."""


@takes(recorded=a_recording, plan=a_plan)
def rewrite_fitted(
    recorded: Recording | Traced,
    plan: Plan,
    images: Batch | Iterable[Any] | None,
    settings: FitSettings | Mapping[str, Any] | str | None = None,
    *,
    device: torch.device | None = None,
    told: Progress | None = None,
) -> Ghosted:
    """``rewrite``, and the weights fitted to what the original gives for ``images``, without labels.

    Images are what the network takes: (N, C, H, W), (N, C, T, H, W) of videos, (N, C, L) of signals, whole numbers
    (N, L) of tokens; of a network with several inputs a tuple of such tensors, or a dict of them by keyword, as the
    example was.  With ``how`` "weights" none are looked at: noise stands for them.  ``device`` is where the work is
    done (None: where the model is); ``told`` is called with the parts fitted and to be fitted.  Where ``settings`` give
    a number of images, so many of them are looked at, evenly spread over all.

    Of a network recorded in parts, each part is fitted to what the original gives it for ``images``, of which it is
    given one after the other; they may be a list of inputs of the whole, too.  A part that cannot be fitted keeps the
    weights that are carried over, and the notes say so.

    Raises what ``rewrite`` raises, and ``FitError`` when the images are not what the network was recorded on, when it
    gives values that are not finite (the layer is named), or there are no images.
    """
    own = make_settings(FitSettings, settings, {})
    return fitted(Recording.of(recorded), plan, images, own, device=device, watched=lambda name: nullcontext(told))


@undisturbed()
@in_single_precision()
def fitted(
    recording: Recording,
    plan: Plan,
    images: Batch | Iterable[Any] | None,
    settings: FitSettings,
    *,
    device: torch.device | None = None,
    watched: Watched = lambda name: nullcontext(),
    proposed: bool = False,
) -> Ghosted:
    """``rewrite_fitted``; where the plan was ``proposed`` by settings, a part that cannot be fitted is left alone."""
    how = settings.resolved(images is not None)
    if how == "none":
        return rewrite(recording, plan)
    if recording.whole:
        with watched(WHOLE) as told:
            return fit_run(recording.whole, plan, images, settings, device=device, told=told)
    if how != "weights" and images is None:
        raise FitError("There are no calibration images: a tensor (N, C, H, W) is needed, or fit none.")
    given: Mapping[str, Batch] = {}
    if how != "weights" and images is not None:
        given = given_to(recording, plan, images, settings.images, device)
    unfitted: dict[str, str] = {}

    def one(name: str, run: Traced, own: Plan) -> Ghosted:
        try:
            if how != "weights" and name not in given:
                raise FitError("it is given other inputs than tensors, or tensors of several sizes; use fit none.")
            with watched(name) as told:
                return fit_run(run, own, given.get(name), settings, device=device, told=told)
        except FitError as problem:
            # A proposal may leave the part alone, which a ``PlanError`` does; what a plan swaps is swapped, unfitted.
            if proposed:
                raise PlanError(f"{name} cannot be fitted: {problem}") from None
            unfitted[name] = str(problem)
            return rewrite_run(run, own)

    whole = rewrite_each(recording, plan, one)
    fits = {name: part.fit for name, part in whole.parts.items() if part.fit}
    notes = tuple(f"Weights of {name} carried over unfitted: {reason}" for name, reason in unfitted.items())
    return replace(whole, fit=_together(fits), notes=notes)


def given_to(
    recording: Recording, plan: Plan, images: Batch | Iterable[Any], most: int, device: torch.device | None = None
) -> dict[str, Batch]:
    """What each part that a plan changes is given for images, ``most`` samples of it: a tensor, or a tuple or dict of
    several; nothing for one that takes other inputs than tensors, or is given tensors of several sizes.
    """
    model = recording.model if device is None else on_device(recording.model, device)
    changed = [name for name in recording.parts if any(within(swap.target, name) for swap in plan.swaps)]
    seen: dict[str, list[Batch]] = {name: [] for name in changed if _takes_tensors(recording.parts[name])}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(_noting(kept), with_kwargs=True)
        for name, kept in seen.items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            for one in split(images, 1) if isinstance(images, Tensor | tuple | dict) else images:
                call(model, one if device is None else move(one, device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: take(join(inputs), slice(most)) for name, inputs in seen.items() if _are_alike(inputs)}


def _takes_tensors(traced: Traced) -> bool:
    """Whether a part is given nothing but tensors with an entry per sample."""
    leaves = tree_leaves(traced.example)
    return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves)


def _are_alike(inputs: Sequence[Batch]) -> bool:
    """Whether all inputs have one structure and their samples one size, so that they make up one batch."""
    structures = [tree_structure(one) for one in inputs]
    shapes = {tuple(leaf.shape[1:] for leaf in per_sample(one)) for one in inputs}
    return len(shapes) == 1 and all(one == structures[0] for one in structures) and all(map(count, inputs))


def _noting(kept: list[Batch]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        one = one_example(module, *cloned((args, kwargs)))
        # As images of a whole are given: a lone tensor, and no tuple of one.
        kept.append(one[0] if isinstance(one, tuple) and len(one) == 1 and isinstance(one[0], Tensor) else one)

    return note


def _together(fits: Mapping[str, Fit]) -> Fit | None:
    """The fits of parts as one, its errors their means."""
    if not fits:
        return None
    found = list(fits.values())
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
        judged=max(one.judged for one in found),
        error=_mean([one.error for one in found]),
        unfitted=_mean([one.unfitted for one in found]),
        polished=_mean([one.polished for one in found]),
        notes=(
            f"Fitted part by part; the outputs are those of {', '.join(fits)}{', a mean' * (len(fits) > 1)}.",
            *(f"{name}: {note}" for name, one in fits.items() for note in one.notes),
        ),
    )


def _mean(errors: Sequence[float | None]) -> float | None:
    """Of those that were measured."""
    measured = [error for error in errors if error is not None]
    return fmean(measured) if measured else None
