"""The pages' templates, and the filters that they write numbers by; everything strangers named is escaped."""

from __future__ import annotations

import base64
import hashlib
import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ghostify.budget_result import shown
from ghostify.reporting.formats import counted, css_share, decimal, duration, percent
from ghostify.tables import quantity, ratio


def template(name: str) -> Template:
    """A template of this folder.  Pages begin with all of ``style.css``, so that they look alike and need no file."""
    loader = PackageLoader("ghostify.reporting", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "quantity": quantity,
        "decimal": decimal,
        "percent": percent,
        "extent": lambda size: "×".join(map(str, size)),
        "css_share": css_share,
        "sortable": _sortable,
        "amount": lambda value, quantity: shown(quantity, value),
        "counted": counted,
        "digest": _digest,
        "duration": duration,
    }
    environment.globals["ratio"] = ratio
    return environment.get_template(name)


def _sortable(value: Any) -> str:
    """What a column is sorted by: text as it is, numbers shortened, nothing for what is missing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _digest(script: str) -> str:
    """The digest by which the page's security policy lets its own script run, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
