"""What is asked of a file, and whether its format can do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ghostify.errors import RecipeError, did_you_mean
from ghostify.exporting.formats import Format, format_named
from ghostify.exporting.portable import DYNAMICS, PRECISIONS


@dataclass(frozen=True)
class Wanted:
    """A format, and what may be said of a file of it."""

    format: Format
    dynamic: str = ""
    precision: str = "fp32"
    half_io: bool = False
    opset: int | None = None

    def require_ending(self, file: Path) -> None:
        """Raises ``RecipeError`` for a file that does not end as those of the format do."""
        suffix = self.format.suffix
        if not file.name.endswith(suffix) or file.name == suffix:
            raise RecipeError(f"Files of the format {self.format.name} end in {suffix}, and {file.name!r} does not.")


def wanted(
    to: str, dynamic: str = "", precision: str = "fp32", half_io: bool = False, opset: int | None = None
) -> Wanted:
    """What is asked, checked.  Raises ``RecipeError`` for what there is not, or not in this format."""
    format = format_named(to)
    _require_one_of("dynamic", dynamic, tuple(filter(None, DYNAMICS)))
    _require_one_of("precision", precision, PRECISIONS)
    _require_within(format, "dynamic", dynamic, format.dynamics)
    _require_within(format, "precision", precision, format.precisions)
    if half_io and precision != "fp16":
        raise RecipeError(f"Inputs and outputs of 16 bits are those of precision fp16, not of {precision}.")
    _require_opset(format, opset)
    return Wanted(format, dynamic, precision, half_io, opset)


def _require_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value and value not in known:
        raise RecipeError(
            f"{what} is {', '.join(known[:-1])} or {known[-1]}, not {value!r}.{did_you_mean(value, known)}"
        )


def _require_within(format: Format, what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(
            f"Files of the format {format.name} cannot have {what} {value}, only {', '.join(filter(None, known))}."
        )


def _require_opset(format: Format, opset: int | None) -> None:
    if opset is None:
        return
    if format.opsets is None:
        raise RecipeError(f"An opset is that of an ONNX file, and files of the format {format.name} have none.")
    if opset not in format.opsets:
        raise RecipeError(f"The opset is {format.opsets[0]} to {format.opsets[-1]} here, not {opset}.")
