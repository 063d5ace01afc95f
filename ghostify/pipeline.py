"""The chapters in order, for a module in hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ghostify.recipe import GhostSettings, make_settings
from ghostify.rewriting import Ghosted, rehearse, rewrite
from ghostify.tracing import trace


def convert(
    model: nn.Module, example: Any, ghost: GhostSettings | Mapping[str, Any] | None = None, **changes: Any
) -> Ghosted:
    """A rewritten copy of ``model``, its weights carried over: by default its convolutions become C-Ghost modules,
    and with ``method="g-ghost"`` its stages G-Ghost stages.

    ``example`` is one input (a tensor, a tuple of positional or a dict of keyword arguments); ``ghost`` and
    ``changes`` are ``GhostSettings``, as in ``convert(model, x, s=4)``.  The model itself is not touched.

    Raises ``TraceError`` when it cannot be recorded, ``PlanError`` when nothing would change.
    """
    given = None if ghost is None or isinstance(ghost, GhostSettings) else ghost
    base = ghost if isinstance(ghost, GhostSettings) else None
    settings = make_settings(GhostSettings, base, {**(given or {}), **changes})
    traced = trace(model, example)
    return rewrite(traced, rehearse(traced, settings))
