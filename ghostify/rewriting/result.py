"""``Ghosted``: a rewritten network as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ghostify.arguments import instance
from ghostify.budget_result import Budgeted
from ghostify.errors import PlanError, RewriteError, TraceError
from ghostify.fit_result import Fit
from ghostify.measuring.span import Span
from ghostify.planning import Plan
from ghostify.scanning import Scan
from ghostify.tracing import Recording, Traced
from ghostify.tracing.recording import WHOLE


@dataclass
class Ghosted:
    """A rewritten module, the plan that made it, the scans of the network before and after, and what was fitted.

    All names are those of the whole network, also where it was rewritten in parts.
    """

    module: nn.Module
    plan: Plan
    before: Scan
    after: Scan
    fit: Fit | None = None
    notes: tuple[str, ...] = ()
    """What a reader of its report must know."""
    budget: Budgeted | None = None
    """What was asked of a budget and what came of it, where there was one."""
    parts: Mapping[str, Ghosted] = field(default_factory=dict)
    """Of a network rewritten in parts, what became of each, by qualified name and told in names of its own."""
    run: Traced | None = field(default=None, repr=False, compare=False)
    """Of a whole, the run that it was checked by, for whoever goes on with it."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Of such a network, by qualified name, why other parts were left alone."""
    span: Span | None = field(default=None, repr=False, compare=False)
    """Of a whole that was fitted to images, what its layers read of these."""

    @property
    def ghosted(self) -> Mapping[str, Ghosted]:
        """What was rewritten, by qualified name: its parts, or itself as the part ``""``."""
        return self.parts or {WHOLE: self}

    @property
    def whole(self) -> Ghosted:
        """Itself, which stands for all of the network."""
        return self

    def __str__(self) -> str:
        lines = [f"{name}: {part}" for name, part in self.parts.items()] or [self.plan.table().title]
        lines += [f"{name or 'the whole'}: left alone: {reason}" for name, reason in self.left.items()]
        return "\n".join(filter(None, (*lines, self.plan.partly)))


rewritten = instance(Ghosted, maker="ghostify.convert(model, example)", error=RewriteError)
a_plan = instance(
    Plan, maker="ghostify.plan(ghostify.scan(model, example)) or ghostify.read_plan(path)", error=PlanError
)
_a_run = instance(Traced, maker="ghostify.trace(model, example)", error=TraceError)


def a_recording(value: Any) -> Recording:
    """What was recorded, as a whole or in parts.  Raises ``TraceError`` for anything else."""
    return Recording.of(value if isinstance(value, Recording) else _a_run(value))
