"""The chapters in order, for a module in hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ghostify.arguments import example_input, network, takes
from ghostify.batches import Batch
from ghostify.fitting import rewrite_fitted
from ghostify.fitting.parts import rewrite_parts_fitted
from ghostify.recipe import FitSettings, GhostSettings, make_settings, require_images
from ghostify.rewriting import Ghosted, Parts, rehearse, rewrite, trace_parts
from ghostify.running import undisturbed
from ghostify.tracing import trace

__all__ = ["Parts", "convert", "convert_parts"]


@takes(model=network, example=example_input)
@undisturbed()
def convert(
    model: nn.Module,
    example: Any,
    ghost: GhostSettings | Mapping[str, Any] | str | None = None,
    *,
    images: Batch | None = None,
    fit: FitSettings | Mapping[str, Any] | str | None = None,
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

    Raises ``TraceError`` when it cannot be recorded, ``PlanError`` when nothing would change, ``FitError`` when it
    cannot be fitted.
    """
    settings = make_settings(GhostSettings, ghost, changes)
    fitting = make_settings(FitSettings, fit, {})
    require_images(fitting, images is not None, "images")
    traced = trace(model, example)
    how = fitting.resolved(images is not None)
    plan = rehearse(traced, settings, fitted=how != "none")
    return rewrite(traced, plan) if how == "none" else rewrite_fitted(traced, plan, images, fitting)


@takes(model=network, example=example_input)
@undisturbed()
def convert_parts(
    model: nn.Module, example: Any, ghost: GhostSettings | Mapping[str, Any] | str | None = None, **changes: Any
) -> Parts:
    """A copy of ``model`` whose largest parts that can be recorded are rewritten one by one, as ``convert`` does.

    It is for models that resist as a whole, such as detectors, which give as many boxes as they find: their backbones
    are found, rewritten and put back; ``ghostify compress`` does so by itself.  ``example`` is one input of the whole
    model, as in ``([image, image],)``.  ``changes`` are settings by name, whose patterns are of names in the whole, and
    ``images`` and ``fit`` as in ``convert``; the images may be a list of inputs of the whole, too, and each part is
    fitted to what it is given for them, or left alone where it cannot be.  The model itself is not touched.  Raises
    ``TraceError`` when it does not run, ``PlanError`` when no part would change.
    """
    images, fit = changes.pop("images", None), changes.pop("fit", None)
    settings = make_settings(GhostSettings, ghost, changes)
    fitting = make_settings(FitSettings, fit, {})
    require_images(fitting, images is not None, "images")
    recorded = trace_parts(model, example)
    fitted = fitting.resolved(images is not None) != "none"
    plan = recorded.plan(settings, fitted=fitted)
    return rewrite_parts_fitted(recorded, plan, images, fitting, proposed=True)
