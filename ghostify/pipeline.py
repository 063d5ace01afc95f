"""The chapters in order, for a module in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ghostify.arguments import example_input, network, takes
from ghostify.batches import Batch
from ghostify.budget.meeting import settled
from ghostify.budget.preparing import last_of, prepared
from ghostify.budget.trying import tried
from ghostify.fitting import fitted
from ghostify.measuring.borrowing import device_for
from ghostify.planned import place_of
from ghostify.planning import Plan
from ghostify.recipe import BudgetSettings, FitSettings, GhostSettings, make_settings, require_images, require_undecided
from ghostify.rewriting import Ghosted, agreed, agreed_in_parts, carried_out
from ghostify.running import undisturbed
from ghostify.tracing import Recording, record

__all__ = ["Parts", "convert", "convert_parts"]

Parts = Ghosted
"""What ``convert_parts`` gave before networks in parts and whole ones came to be one thing."""
_Agreed = Callable[..., tuple[Recording, Plan]]


@takes(model=network, example=example_input)
@undisturbed()
def convert(
    model: nn.Module,
    example: Any,
    ghost: GhostSettings | Mapping[str, Any] | str | None = None,
    *,
    images: Batch | Iterable[Any] | None = None,
    fit: FitSettings | Mapping[str, Any] | str | None = None,
    budget: BudgetSettings | Mapping[str, Any] | str | None = None,
    **changes: Any,
) -> Ghosted:
    """A rewritten copy of ``model``, its weights carried over: by default its convolutions become C-Ghost modules,
    and with ``method="g-ghost"`` its stages G-Ghost stages.

    ``example`` is one input (a tensor, a tuple of positional or a dict of keyword arguments); ``ghost`` and
    ``changes`` are ``GhostSettings``, as in ``convert(model, x, s=4)``.  With calibration ``images`` (N, C, …),
    scaled as the network is used to and without labels, the weights are fitted in closed form to what the model gives
    for them; some hundreds do.  Of a network with several inputs they are a tuple or a dict of tensors, as ``example``
    is, with N samples in each.  ``fit`` are ``FitSettings``; ``fit="weights"`` fits to noise where there are no
    images.  Where weights are fitted, layers to which none can be are left alone, and the plan says why.  The model
    itself is not touched.

    ``budget`` are ``BudgetSettings``, as in ``budget="macs=0.5x"``: of all that the method may swap, the plan of least
    harm that costs no more is carried out, and what came of it is in ``budget`` of the result.

    A model that resists as a whole, such as a detector, which gives as many boxes as it finds, is rewritten part by
    part: its backbone, say, is found, rewritten and put back.  Then ``print`` says why and which parts those are,
    ``ghosted`` has each, and ``left`` tells what was left alone; the images may be a list of inputs of the whole.

    Called with the same images in each process of a group (``torch.distributed``), all fit one network together.

    Raises ``TraceError`` when it cannot be recorded, ``PlanError`` when nothing would change, ``FitError`` when it
    cannot be fitted.
    """
    asked = make_settings(BudgetSettings, budget, {})
    if not asked.asked:
        return _converted(agreed, model, example, ghost, images, fit, changes)
    asked.require_clock()
    return _within(asked, model, example, ghost, images, fit, changes)


@takes(model=network, example=example_input)
@undisturbed()
def convert_parts(
    model: nn.Module, example: Any, ghost: GhostSettings | Mapping[str, Any] | str | None = None, **changes: Any
) -> Ghosted:
    """``convert``, in parts also where the whole would do.  ``convert`` finds out by itself; prefer it.

    Raises ``TraceError`` when the model does not run, ``PlanError`` when no part would change.
    """
    images, fit = changes.pop("images", None), changes.pop("fit", None)
    return _converted(partial(agreed_in_parts, reason=""), model, example, ghost, images, fit, changes)


def _converted(
    agree: _Agreed,
    model: nn.Module,
    example: Any,
    ghost: GhostSettings | Mapping[str, Any] | str | None,
    images: Batch | Iterable[Any] | None,
    fit: FitSettings | Mapping[str, Any] | str | None,
    changes: Mapping[str, Any],
) -> Ghosted:
    settings, fitting = _settled(ghost, images, fit, changes)
    is_fitted = fitting.resolved(images is not None) != "none"
    recording, plan = agree(model, example, settings, fitted=is_fitted)

    def made(recording: Recording, plan: Plan) -> Ghosted:
        return fitted(recording, plan, images, fitting, proposed=True)

    return carried_out(recording, plan, made, settings, fitted=is_fitted)


def _settled(
    ghost: GhostSettings | Mapping[str, Any] | str | None,
    images: Batch | Iterable[Any] | None,
    fit: FitSettings | Mapping[str, Any] | str | None,
    changes: Mapping[str, Any],
) -> tuple[GhostSettings, FitSettings]:
    """The settings of a conversion, checked."""
    fitting = make_settings(FitSettings, fit, {})
    require_images(fitting, images is not None, "images")
    return make_settings(GhostSettings, ghost, changes), fitting


def _within(
    budget: BudgetSettings,
    model: nn.Module,
    example: Any,
    ghost: GhostSettings | Mapping[str, Any] | str | None,
    images: Batch | Iterable[Any] | None,
    fit: FitSettings | Mapping[str, Any] | str | None,
    changes: Mapping[str, Any],
) -> Ghosted:
    """The network of the plan that meets a budget."""
    settings, fitting = _settled(ghost, images, fit, changes)
    require_undecided(settings, budget)
    is_fitted = fitting.resolved(images is not None) != "none"
    held = None if images is None else last_of(images)
    here = device_for(model, None)
    place = place_of(budget, str(here))
    recording = record(model, example)
    choosing = prepared(recording, settings, budget, place, images=images, held=held, fitted=is_fitted, device=here)

    def made(plan: Plan) -> Ghosted:
        recording, checked = agreed(model, example, plan, fitted=is_fitted)
        how = partial(fitted, images=images, settings=fitting, proposed=False)
        return carried_out(recording, checked, lambda recording, plan: how(recording, plan), plan, fitted=is_fitted)

    chosen = tried(choosing, choosing.plan(), lambda plan: made(plan).module, lambda line: None)
    return settled(choosing, made(chosen), made, lambda line: None)
