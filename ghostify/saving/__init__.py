"""Ghosted ⇄ run folder, and the folder itself: made, gone on with, given up."""

from ghostify.saving.blanks import Blank
from ghostify.saving.environment import describe_environment
from ghostify.saving.folders import CHECKPOINTS, CLOCK, HARMS, PLANS, Claim, note_request, reserve, resumable
from ghostify.saving.locking import locked
from ghostify.saving.runs import (
    Run,
    is_run,
    load,
    load_original,
    read_report,
    read_run,
    rehearse,
    require_own_run,
    save,
    save_rehearsed,
)

__all__ = [
    "CHECKPOINTS",
    "CLOCK",
    "HARMS",
    "PLANS",
    "Blank",
    "Claim",
    "Run",
    "describe_environment",
    "is_run",
    "load",
    "locked",
    "load_original",
    "note_request",
    "read_report",
    "read_run",
    "rehearse",
    "require_own_run",
    "reserve",
    "resumable",
    "save",
    "save_rehearsed",
]
