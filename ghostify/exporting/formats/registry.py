"""The formats by name."""

from __future__ import annotations

from ghostify.errors import RecipeError, did_you_mean
from ghostify.exporting.formats.onnx import Onnx
from ghostify.exporting.formats.protocol import Format

FORMATS: dict[str, Format] = {one.name: one for one in (Onnx(),)}


def format_named(name: str) -> Format:
    """The format of that name, with all that it needs.

    Raises ``RecipeError`` when there is none of the name, or when a package that it needs is not installed.
    """
    if name not in FORMATS:
        raise RecipeError(
            f"There is no format {name!r}; give one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
        )
    found = FORMATS[name]
    found.require_packages()
    return found
