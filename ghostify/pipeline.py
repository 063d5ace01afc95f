"""The chapters in order, for a module in hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from ghostify.fitting import rewrite_fitted
from ghostify.recipe import FitSettings, GhostSettings, make_settings
from ghostify.rewriting import Ghosted, rehearse, rewrite
from ghostify.tracing import trace


def convert(
    model: nn.Module,
    example: Any,
    ghost: GhostSettings | Mapping[str, Any] | None = None,
    *,
    images: Tensor | None = None,
    fit: FitSettings | Mapping[str, Any] | None = None,
    **changes: Any,
) -> Ghosted:
    """A rewritten copy of ``model``, its weights carried over: by default its convolutions become C-Ghost modules,
    and with ``method="g-ghost"`` its stages G-Ghost stages.

    ``example`` is one input (a tensor, a tuple of positional or a dict of keyword arguments); ``ghost`` and
    ``changes`` are ``GhostSettings``, as in ``convert(model, x, s=4)``.  With calibration ``images`` (N, C, H, W),
    scaled as the network is used to and without labels, the weights are fitted in closed form to what the model gives
    for them; some hundreds do.  ``fit`` are ``FitSettings``; ``fit={"how": "weights"}`` fits to noise where there are
    no images.  The model itself is not touched.

    Raises ``TraceError`` when it cannot be recorded, ``PlanError`` when nothing would change, ``FitError`` when it
    cannot be fitted.
    """
    settings = make_settings(GhostSettings, *_given(ghost, changes))
    fitting = make_settings(FitSettings, *_given(fit, {}))
    traced = trace(model, example)
    plan = rehearse(traced, settings)
    how = fitting.resolved(images is not None)
    return rewrite(traced, plan) if how == "none" else rewrite_fitted(traced, plan, images, fitting)


_Settings = TypeVar("_Settings", GhostSettings, FitSettings)


def _given(
    settings: _Settings | Mapping[str, Any] | None, changes: Mapping[str, Any]
) -> tuple[_Settings | None, dict[str, Any]]:
    """Settings as a base and what is laid over it."""
    if isinstance(settings, Mapping):
        return None, {**settings, **changes}
    return settings, dict(changes)
