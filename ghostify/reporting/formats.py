"""Numbers as the page of the redundancy report writes them."""

from __future__ import annotations

import math


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def decimal(value: float | None, digits: int = 2) -> str:
    """A number to two places, or a dash for what is not one."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def percent(value: float) -> str:
    """A share in percent, with a place where it is small."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.0f}%" if value >= 0.1 else f"{100 * value:.1f}%"


def css_share(value: float) -> str:
    """A share as a CSS percentage from 0 to 100, of what may be no number."""
    return f"{100 * min(1.0, max(0.0, value)):.1f}%" if math.isfinite(value) else "0%"


def duration(seconds: float) -> str:
    """A time in seconds or minutes."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
