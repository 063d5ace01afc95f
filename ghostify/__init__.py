"""ghostify: rewrite any CNN with the GhostNets papers' modules, keeping its trained weights.

The chapters, in order: ``trace``, ``scan``, ``plan``, ``rewrite``, ``compare``, ``finetune``, ``save``, ``load``; and
``convert``, which is the first four in one call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ghostify.errors import GhostifyError
    from ghostify.finetuning import finetune
    from ghostify.ghosts import CGhost
    from ghostify.pipeline import convert
    from ghostify.planning import Plan, plan, read_plan
    from ghostify.recipe import GhostSettings, Recipe, TrainSettings
    from ghostify.reporting import Report, compare
    from ghostify.rewriting import Ghosted, rewrite
    from ghostify.saving import load, save
    from ghostify.scanning import Scan, scan
    from ghostify.tracing import Traced, trace

_HOME = {
    "CGhost": "ghosts",
    "GhostSettings": "recipe",
    "Ghosted": "rewriting",
    "GhostifyError": "errors",
    "Plan": "planning",
    "Recipe": "recipe",
    "Report": "reporting",
    "Scan": "scanning",
    "Traced": "tracing",
    "TrainSettings": "recipe",
    "compare": "reporting",
    "convert": "pipeline",
    "finetune": "finetuning",
    "load": "saving",
    "plan": "planning",
    "read_plan": "planning",
    "rewrite": "rewriting",
    "save": "saving",
    "scan": "scanning",
    "trace": "tracing",
}

__all__ = [
    "CGhost",
    "GhostSettings",
    "Ghosted",
    "GhostifyError",
    "Plan",
    "Recipe",
    "Report",
    "Scan",
    "TrainSettings",
    "Traced",
    "compare",
    "convert",
    "finetune",
    "load",
    "plan",
    "read_plan",
    "rewrite",
    "save",
    "scan",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Public names come from their chapters on first use, so that what needs no torch never waits for it."""
    if name not in _HOME:
        raise AttributeError(f"module 'ghostify' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ghostify.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
