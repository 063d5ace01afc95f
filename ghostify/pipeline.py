"""The chapters in order, for a module in hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from ghostify.errors import PlanError, RewriteError
from ghostify.fitting import rewrite_fitted
from ghostify.recipe import FitSettings, GhostSettings, make_settings
from ghostify.rewriting import Ghosted, rehearse, rewrite
from ghostify.tracing import recordable, trace


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


@dataclass
class Parts:
    """A model of which some parts were rewritten: the whole, each part's outcome, and those left as they are."""

    module: nn.Module
    ghosted: dict[str, Ghosted]
    """By qualified name."""
    left: dict[str, str]
    """By qualified name, why."""

    def __str__(self) -> str:
        lines = [f"{name or 'the whole'}: {ghosted}" for name, ghosted in self.ghosted.items()]
        return "\n".join(
            [*lines, *(f"{name or 'the whole'}: left alone: {reason}" for name, reason in self.left.items())]
        )


def convert_parts(
    model: nn.Module, example: Any, ghost: GhostSettings | Mapping[str, Any] | None = None, **changes: Any
) -> Parts:
    """A copy of ``model`` whose largest parts that can be recorded are rewritten one by one, as ``convert`` does.

    It is for models that resist as a whole, such as detectors, which give as many boxes as they find: their backbones
    are found, rewritten and put back.  ``example`` is one input of the whole model, as in ``([image, image],)``.  The
    model itself is not touched.  Raises ``TraceError`` when it does not run, ``PlanError`` when no part would change.
    """
    whole = copy.deepcopy(model)
    found = Parts(whole, {}, {})
    for name, given in recordable(model, example).items():
        try:
            found.ghosted[name] = convert(model.get_submodule(name), given, ghost, **changes)
        except (PlanError, RewriteError) as problem:
            found.left[name] = str(problem)
    if not found.ghosted:
        told = next(iter(found.left.values()), "it has no part with convolutions that can be recorded.")
        raise PlanError(f"No part of {type(model).__name__} would change: {told}")
    for name, ghosted in found.ghosted.items():
        if not name:
            return replace(found, module=ghosted.module)
        whole.set_submodule(name, ghosted.module)
    return found


_Settings = TypeVar("_Settings", GhostSettings, FitSettings)


def _given(
    settings: _Settings | Mapping[str, Any] | None, changes: Mapping[str, Any]
) -> tuple[_Settings | None, dict[str, Any]]:
    """Settings as a base and what is laid over it."""
    if isinstance(settings, Mapping):
        return None, {**settings, **changes}
    return settings, dict(changes)
