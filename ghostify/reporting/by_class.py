"""Accuracy class by class: of few classes all, of many the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostify.measuring import Accuracy
from ghostify.tables import Table

ALL, WORST = 20, 10
"""Up to so many classes are all shown; of more, so many."""


def class_table(accuracy: Mapping[str, Accuracy], names: Sequence[str], stages: Mapping[str, str]) -> Table | None:
    """A row for each class, with what it has at each stage; None where nothing was counted.

    Worst are those with the least accuracy at the last stage.  ``stages`` gives the column of each stage.
    """
    known = {stage: found.by_class for stage, found in accuracy.items() if found.by_class}
    if not known:
        return None
    last = list(known.values())[-1]
    present = [label for label, (total, _) in enumerate(last) if total]
    worst = sorted(present, key=lambda label: _share(last, label))
    shown = present if len(present) <= ALL else worst[:WORST]
    rows = [
        [
            names[label] if label < len(names) else f"class {label}",
            f"{last[label][0]:,}",
            *(f"{100 * _share(counts, label):.2f}%" for counts in known.values()),
        ]
        for label in shown
    ]
    title = "Accuracy by class" if shown is present else f"The {WORST} worst of {len(present):,} classes"
    return Table(title, ["class", "images", *(stages[stage] for stage in known)], rows)


def _share(counts: Sequence[tuple[int, int]], label: int) -> float:
    total, correct = counts[label]
    return correct / total
