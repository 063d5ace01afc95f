"""Every error a user can meet, as one small tree.

An error is one line: what is wrong, where, and what to do about it.  The CLI prints that line and exits with 1;
Python callers catch ``GhostifyError`` or the branch they care about.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GhostifyError(Exception):
    """Base of all errors this package raises on purpose: a single line made for a person."""

    key: str = ""
    """The setting at fault, as in ``ghost.s``, where one is."""


class RecipeError(GhostifyError):
    """A recipe or a setting is unknown, malformed or out of range."""


class ModelError(GhostifyError):
    """A model cannot be found or built."""


class WeightsError(GhostifyError):
    """A checkpoint is missing, damaged, untrusted, or made for another network."""


class DataError(GhostifyError):
    """A data source cannot be found or read."""


class TraceError(GhostifyError):
    """A model cannot be recorded as a graph, or its recording does not reproduce it."""


class PlanError(GhostifyError):
    """A plan is malformed, does not fit the model, or would change nothing."""


class RewriteError(GhostifyError):
    """A rewritten model is not what its plan promised."""


class FitError(GhostifyError):
    """Weights cannot be fitted to these images."""


class ExportError(GhostifyError):
    """A network cannot be written to a file of a format, or the file is not the same network."""


class RunError(GhostifyError):
    """A run folder is missing, changed, truncated, or cannot be written."""


class Stopped(KeyboardInterrupt):
    """The work was ended by a signal of this ``number``, as Ctrl-C and ``kill`` send them."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


_BEGUN = 3
"""Letters that tell the beginning of a longer name, as ``onnx`` does of ``onnxruntime``."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest of ``known`` names other than it, or one that it begins; else empty."""
    others = [one for one in known if one != name]
    near = [one for one in others if one.lower() == name.lower()]
    near = near or difflib.get_close_matches(name, others, n=1, cutoff=0.6)
    if not near and len(name) >= _BEGUN:
        near = [one for one in others if one.lower().startswith(name.lower())]
    return f" Did you mean {near[0]!r}?" if near else ""
