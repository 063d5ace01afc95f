"""A network in its inference form, as a value."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost
from ghostify.rewriting import Ghosted


class Change(BaseModel):
    """One thing that was done: a C-Ghost module ``merged`` into plain layers, or its order put into its readers
    (``reordered``), a norm ``folded`` into a layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    what: Literal["merged", "reordered", "folded"]
    into: str = ""
    """The layer that takes it in."""

    def within(self, part: str) -> Change:
        """The same in the names of the whole that has such a part."""
        if not part:
            return self
        into = f"{part}.{self.into}" if self.into else ""
        return self.model_copy(update={"target": f"{part}.{self.target}", "into": into})


@dataclass(kw_only=True)
class Optimized(Ghosted):
    """A rewritten network whose ``module`` is its inference form; the scans before and after are those of the plan."""

    inference: Cost
    """What the inference form costs."""
    changes: tuple[Change, ...] = ()

    def __str__(self) -> str:
        done = Counter(change.what for change in self.changes)
        return f"{type(self.module).__name__}: {done['merged']} ghost modules merged, {done['folded']} norms folded"
