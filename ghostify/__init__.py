"""ghostify: rewrite any CNN with the GhostNets papers' modules, keeping its trained weights.

The chapters, in order: ``record``, ``scan``, ``plan``, ``rewrite``, ``compare``, ``finetune``, ``save``, ``load``; and
``convert``, which is the first four in one call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ghostify.analysis import Analysis as Analysis
    from ghostify.analysis import analyze as analyze
    from ghostify.benching import Bench as Bench
    from ghostify.benching.bench import bench as bench
    from ghostify.errors import GhostifyError as GhostifyError
    from ghostify.exporting import Exported as Exported
    from ghostify.exporting.export import export as export
    from ghostify.finetuning import finetune as finetune
    from ghostify.fitting import rewrite_fitted as rewrite_fitted
    from ghostify.ghosts import CGhost as CGhost
    from ghostify.ghosts import GGhostStage as GGhostStage
    from ghostify.inference import Optimized as Optimized
    from ghostify.inference import optimize as optimize
    from ghostify.pipeline import Parts as Parts
    from ghostify.pipeline import convert as convert
    from ghostify.pipeline import convert_parts as convert_parts
    from ghostify.planning import Plan as Plan
    from ghostify.planning import plan as plan
    from ghostify.planning import read_plan as read_plan
    from ghostify.recipe import FitSettings as FitSettings
    from ghostify.recipe import GhostSettings as GhostSettings
    from ghostify.recipe import Recipe as Recipe
    from ghostify.recipe import TrainSettings as TrainSettings
    from ghostify.reporting import Report as Report
    from ghostify.reporting import compare as compare
    from ghostify.rewriting import Ghosted as Ghosted
    from ghostify.rewriting import rewrite as rewrite
    from ghostify.saving import load as load
    from ghostify.saving import save as save
    from ghostify.scanning import Scan as Scan
    from ghostify.scanning import scan as scan
    from ghostify.tracing import Recording as Recording
    from ghostify.tracing import Traced as Traced
    from ghostify.tracing import record as record
    from ghostify.tracing import trace as trace

_HOME = {
    "Analysis": "analysis",
    "analyze": "analysis",
    "Bench": "benching",
    "bench": "benching",
    "CGhost": "ghosts",
    "GGhostStage": "ghosts",
    "Exported": "exporting",
    "export": "exporting",
    "FitSettings": "recipe",
    "GhostSettings": "recipe",
    "Ghosted": "rewriting",
    "GhostifyError": "errors",
    "Optimized": "inference",
    "Plan": "planning",
    "Recipe": "recipe",
    "Recording": "tracing",
    "Report": "reporting",
    "Scan": "scanning",
    "Traced": "tracing",
    "TrainSettings": "recipe",
    "compare": "reporting",
    "Parts": "pipeline",
    "convert": "pipeline",
    "convert_parts": "pipeline",
    "finetune": "finetuning",
    "load": "saving",
    "optimize": "inference",
    "plan": "planning",
    "read_plan": "planning",
    "record": "tracing",
    "rewrite": "rewriting",
    "rewrite_fitted": "fitting",
    "save": "saving",
    "scan": "scanning",
    "trace": "tracing",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Public names come from their chapters on first use, so that what needs no torch never waits for it."""
    if name not in _HOME:
        raise AttributeError(f"module 'ghostify' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ghostify.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
