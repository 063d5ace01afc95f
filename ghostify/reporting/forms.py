"""The two forms of a rewritten network beside each other: the one that trains and the one that runs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost
from ghostify.inference import Optimized
from ghostify.measuring import Comparison, Timings
from ghostify.tables import Table, quantity, ratio


class InferenceReport(BaseModel):
    """What the inference form is, what it costs, and how fast it is beside the other two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    merged: int
    """C-Ghost modules that became plain layers."""
    folded: int
    """Norms that were folded into layers."""
    cost: Cost
    latency: Comparison | None = None
    """The original beside the inference form."""
    trained: Comparison | None = None
    """The form that trains beside the inference form."""

    def table(self, title: str, original: Cost, trained: Cost) -> Table:
        """Original, the form that trains and the form that runs, a column each; ``ratio`` is original / as it runs."""
        rows = [
            [name, *(quantity(cost) for cost in costs), ratio(costs[0], costs[-1])]
            for name, costs in (
                ("params", (original.params, trained.params, self.cost.params)),
                ("MACs", (original.macs, trained.macs, self.cost.macs)),
                ("activations", (original.acts, trained.acts, self.cost.acts)),
            )
        ]
        if self.latency and self.trained:
            rows.append(_latency_row(self.latency, self.trained))
        done = f"{self.merged} ghost modules merged, {self.folded} norms folded"
        return Table(f"{title}: {done}", ["", "original", "as it trains", "as it runs", "ratio"], rows)


def inference_report(optimized: Optimized, timings: Timings | None = None) -> InferenceReport:
    """The report on an inference form; ``timings`` are those of "original", "trained" and "inference", in turns."""
    done = [change.what for change in optimized.changes]
    return InferenceReport(
        merged=done.count("merged"),
        folded=done.count("folded"),
        cost=optimized.inference,
        latency=timings.compare("original", "inference") if timings else None,
        trained=timings.compare("trained", "inference") if timings else None,
    )


def _latency_row(original: Comparison, trained: Comparison) -> list[str]:
    times = (original.before, trained.before, original.after)
    where = f"latency ({times[0].place})"
    return [where, *(f"{time.median_ms:.2f} ms" for time in times), f"{original.speedup:.2f}x"]
