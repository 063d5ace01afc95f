"""Samples that cannot be read: who finds them, and what becomes of a batch that was to hold them.

    where            skip, in training                              skip, elsewhere
    a batch          the next sample of the set that can be read    the sample is left out of its batch
                     stands in its place, with its own label

Both hang on nothing but which samples are damaged, so that a resumed run goes on as the one that was not stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ghostify.errors import DataError

NAMED = 3
"""Damaged samples that are named in a sentence; the others are counted."""
_Made = TypeVar("_Made")


class Damaged(DataError):
    """Some samples of a batch cannot be read: why, by their place in the batch."""

    def __init__(self, problems: Mapping[int, str]) -> None:
        super().__init__(next(iter(problems.values())))
        self.problems = problems


@dataclass
class Skipped:
    """What was left out because it cannot be read, each sample once, however often it was tried."""

    problems: dict[str, None] = field(default_factory=dict)

    def add(self, problems: Sequence[str]) -> None:
        self.problems.update(dict.fromkeys(problems))

    def __str__(self) -> str:
        """In a sentence, how many were left out and why; empty where none were."""
        if not self.problems:
            return ""
        count, named = len(self.problems), list(self.problems)[:NAMED]
        more = f" (and {count - NAMED} more)" if count > NAMED else ""
        were = "sample was" if count == 1 else "samples were"
        return f"{count} damaged {were} left out: {' '.join(named)}{more}"


def read_each(read: Callable[[int], _Made], count: int) -> list[_Made]:
    """What ``read`` gives for places 0 .. count - 1.  Raises ``Damaged`` once all were tried."""
    made, problems = [], {}
    for place in range(count):
        try:
            made.append(read(place))
        except DataError as problem:
            problems[place] = str(problem)
    if problems:
        raise Damaged(problems)
    return made


def read_others(
    read: Callable[[Sequence[int], Sequence[int]], Any], indices: Sequence[int], of: int, replace: bool
) -> tuple[Any, list[str]]:
    """A batch without its damaged samples, and why those are: of ``of`` samples, those at ``indices``.

    ``read(indices, places)`` reads samples, which stand for those at these places of the batch.  With ``replace`` the
    next ones stand in the place of damaged ones, else the batch is shorter: None where nothing is left of it.  Raises
    ``DataError`` where not one sample of the whole set can be read.
    """
    present, places, found = list(indices), list(range(len(indices))), dict[str, None]()
    for _ in range(of):
        try:
            return (read(present, places) if present else None), list(found)
        except Damaged as damage:
            found.update(dict.fromkeys(damage.problems.values()))
            if replace:
                for place in damage.problems:
                    present[place] = (present[place] + 1) % of
            else:
                stay = [place for place in range(len(present)) if place not in damage.problems]
                present, places = [present[place] for place in stay], [places[place] for place in stay]
    raise DataError(f"None of {of:,} samples can be read: {next(iter(found))}")
