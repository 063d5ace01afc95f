"""Scan + settings → Plan: every convolution a swap or a skip with its reason; a value a person can edit."""

from ghostify.planning.checking import check
from ghostify.planning.proposing import Refused, advised, plan, resolved
from ghostify.planning.reading import needs_of, read_plan, scan_for
from ghostify.planning.result import FORMAT, Plan

__all__ = [
    "FORMAT",
    "Plan",
    "Refused",
    "advised",
    "check",
    "needs_of",
    "plan",
    "read_plan",
    "resolved",
    "scan_for",
]
