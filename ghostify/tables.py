"""A table as a value: printed as plain text by ``str``, drawn by the CLI, and free of both."""

from __future__ import annotations

from dataclasses import dataclass, field

from ghostify.glossary import explained


@dataclass
class Table:
    """Rows of ready-made strings under a title.  Columns after the first are right-aligned unless named in ``left``."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    left: frozenset[str] = frozenset()
    note: str = ""

    def aligns_left(self, index: int) -> bool:
        return index == 0 or self.columns[index] in self.left

    @property
    def words(self) -> str:
        """What the short words in it mean, for who meets them for the first time."""
        found = explained(self.columns, self.rows)
        return f"In this table:\n{found}" if found else ""

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        rule = "  ".join("-" * width for width in widths)
        text = [self._line(line, widths) for line in lines]
        parts = [self.title, text[0], rule, *text[1:], self.note, self.words]
        return "\n".join(part for part in parts if part)

    def _line(self, cells: list[str], widths: list[int]) -> str:
        padded = [
            cell.ljust(width) if self.aligns_left(i) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()


def quantity(value: float) -> str:
    """A count in the field's units: ``12.3k``, ``4.09G``; below a thousand as it is."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:g}"


def ratio(before: float, after: float) -> str:
    """``before / after`` as ``1.90x``; ``-`` when there is nothing to divide by."""
    return f"{before / after:.2f}x" if after else "-"
