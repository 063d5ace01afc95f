"""Ghosted ⇄ run folder, and the folder itself: made, gone on with, given up."""

from ghostify.saving.environment import describe_environment
from ghostify.saving.folders import CHECKPOINTS, Claim, note_request, reserve, resumable
from ghostify.saving.runs import Run, is_run, load, load_original, read_report, read_run, save

__all__ = [
    "CHECKPOINTS",
    "Claim",
    "Run",
    "describe_environment",
    "is_run",
    "load",
    "load_original",
    "note_request",
    "read_report",
    "read_run",
    "reserve",
    "resumable",
    "save",
]
