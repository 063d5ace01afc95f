"""``Recording``: what is recorded of a model, its run as a whole or, where it resists, those of its largest parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ghostify.errors import PlanError
from ghostify.names import within
from ghostify.tracing.traced import Traced

WHOLE = ""
"""The name of the part that a model is which was recorded as a whole."""


class NoParts(PlanError):
    """A network has no part that can be rewritten by itself."""


@dataclass(eq=False)
class Recording:
    """A model and the recorded runs of its parts, each on what it is given in one run of the model.

    A model that was recorded as a whole is a part of itself, the only one, and that is named ``""``.
    """

    model: nn.Module
    example: Any
    parts: dict[str, Traced]
    """By qualified name."""
    reason: str = ""
    """Why it is not recorded as a whole, as a sentence without its end."""
    left: dict[str, str] = field(default_factory=dict)
    """Parts that can be recorded and must not be rewritten alone, and why."""
    course: list[str] = field(default_factory=list)
    """In parts, the modules with parameters of their own, as they were called in a run of the whole."""

    @staticmethod
    def of(recorded: Traced | Recording) -> Recording:
        """What was recorded; a run is that of a whole."""
        if isinstance(recorded, Recording):
            return recorded
        return Recording(recorded.module, recorded.example, {WHOLE: recorded})

    @property
    def whole(self) -> Traced | None:
        """The run of the model as a whole, where it was recorded so."""
        return self.parts.get(WHOLE)

    @property
    def name(self) -> str:
        """The class of the model."""
        return type(self.model).__name__

    def part_of(self, names: Iterable[str]) -> str | None:
        """The part that all of these modules lie in."""
        names = list(names)
        return next((part for part in self.parts if all(within(name, part) for name in names)), None)

    def require_parts(self) -> Recording:
        """Itself, or ``NoParts`` when there is nothing to rewrite."""
        if self.parts:
            return self
        reasons = (f"{name} {reason}" for name, reason in self.left.items())
        why = next(reasons, "it has no part with convolutions that can be recorded")
        raise NoParts(f"No part of {self.name} would change: {why}.")

    def __str__(self) -> str:
        if self.whole:
            return str(self.whole)
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.name} in parts{why}: {', '.join(self.parts)}"
