"""The Sweep noun: plans for several targets, and what a person would set by hand, each measured beside the original."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost
from ghostify.errors import RunError
from ghostify.measuring import Accuracy, Comparison, Latency, Score
from ghostify.recipe import read_yaml, validated
from ghostify.tables import Table, quantity, ratio
from ghostify.targets import Quantity

FORMAT = 1
SWEEP = "sweep.json"
"""Of the file in a folder that holds a sweep."""
Family = Literal["plan", "c-ghost", "thin", "width"]
FAMILIES: dict[Family, str] = {
    "plan": "planned",
    "c-ghost": "ghosts of one s",
    "thin": "thinner blocks",
    "width": "narrower layers",
}
"""What each family of networks is, in words."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kept(_Value):
    """What a network is good for on the test images."""

    accuracy: Accuracy | None = None
    score: Score | None = None
    """By a metric of the user's, in place of accuracy."""
    agreement: float | None = None
    """Share of images that it puts where the original does."""

    @property
    def name(self) -> str:
        """What the value is."""
        measured = self.accuracy or self.score
        return measured.name if measured else "agreement"

    @property
    def value(self) -> float | None:
        """Accuracy and agreement as shares; None where nothing was measured."""
        if self.accuracy is not None:
            return self.accuracy.top1
        return self.agreement if self.score is None else self.score.value

    @property
    def cells(self) -> dict[str, str]:
        """As a table has it, by heading."""
        measured = self.accuracy or self.score
        agreement = "" if self.agreement is None else f"{100 * self.agreement:.2f}%"
        return {measured.name if measured else "accuracy": self.shown, "agreement": agreement}

    @property
    def shown(self) -> str:
        """The value as a table has it, but for agreement."""
        measured = self.accuracy or self.score
        return measured.shown if measured else ""


class Point(_Value):
    """One network of a sweep."""

    name: str
    """``macs=0.6x``, ``s=2``, ``thin=0.5``."""
    family: Family
    cost: Cost
    kept: Kept
    harm: float | None = None
    """What the plan was expected to do to the outputs, in the sweep's unit of harm."""
    latency: Comparison | None = None
    """Beside the original; None where it was not timed, or not yet."""
    plan: str
    """The file of its plan, in the sweep's folder."""


class Sweep(_Value):
    """Networks between the original and the smallest that was asked for."""

    format: int = FORMAT
    network: str
    source: str
    targets: tuple[str, ...]
    of: Quantity
    """What the targets are of."""
    data: str = ""
    before: Cost
    original: Kept
    place: str = ""
    """Where time was measured; empty where it was not."""
    points: tuple[Point, ...] = ()
    failed: dict[str, str] = {}
    """Networks that could not be made, and why."""
    complete: bool = False
    """Whether all of it is done: False while it goes on, or after an interruption."""
    notes: tuple[str, ...] = ()

    @property
    def by(self) -> Quantity:
        """By what networks are compared: time where it was measured, else what the targets are of, or MACs."""
        timed = self.points and all(point.latency for point in self.points)
        return "latency" if timed else "macs" if self.of == "latency" else self.of

    def share(self, point: Point) -> float:
        """What a network costs, of what the original costs."""
        if self.by == "latency" and point.latency is not None:
            return 1 / point.latency.speedup
        name = {"macs": "macs", "activations": "acts"}.get(self.by, "params")  # of which the size is a multiple
        return getattr(point.cost, name) / max(1, getattr(self.before, name))

    def of_family(self, family: Family) -> list[Point]:
        """Its networks, the cheapest first."""
        return sorted((point for point in self.points if point.family == family), key=self.share)

    def table(self) -> Table:
        """The original, and each network in a row; columns that nobody has anything in are left out."""
        beside = [point for family in FAMILIES for point in self.of_family(family)[::-1]]
        rows = [self._original(), *map(self._row, beside)]
        columns = [head for head in rows[0] if any(row[head] for row in rows)]
        failed = [f"{name} was not made: {reason}" for name, reason in self.failed.items()]
        unfinished = [] if self.complete else ["It was interrupted: only what was done is here."]
        where = f", timed on {self.place}" if self.place else ""
        return Table(
            title=f"{self.network}: {len(self.points)} networks beside the original{where}",
            columns=columns,
            rows=[[row[head] for head in columns] for row in rows],
            left=frozenset({"how"}),
            note="\n".join([*failed, *unfinished, *self.notes]),
        )

    def _original(self) -> dict[str, str]:
        latency = next((point.latency.before for point in self.points if point.latency), None)
        return {
            "network": "original",
            "how": "",
            **self._costs(self.before, latency),
            "faster": "",
            **self.original.cells,
        }

    def _row(self, point: Point) -> dict[str, str]:
        """The cells of a network by their headings."""
        timed = point.latency
        costs = self._costs(point.cost, timed.after if timed else None)
        faster = f"{timed.speedup:.2f}x" if timed else ""
        return {"network": point.name, "how": point.family, **costs, "faster": faster, **point.kept.cells}

    def _costs(self, cost: Cost, latency: Latency | None) -> dict[str, str]:
        return {
            "MACs": quantity(cost.macs),
            "ratio": ratio(self.before.macs, cost.macs),
            "params": quantity(cost.params),
            "latency": f"{latency.median_ms:.2f} ms" if latency else "",
        }

    @property
    def verdict(self) -> str:
        """What the sweep found, in a sentence or two."""
        found = best_lead(self)
        if found is None:
            return ""
        ours, theirs = found
        what = {"latency": "of the time", "macs": "of the multiply-adds"}.get(self.by, f"of the {self.by}")
        said = f"With {self.share(ours):.0%} {what}, {ours.name} has {_told(ours.kept)} (the original: "
        said += f"{_told(self.original)})"
        if theirs is None:
            return f"{said}.{self._doubt(ours)}"
        beside = f"with {self.share(theirs):.0%}, {theirs.name}, the best set by hand for about as much,"
        return f"{said}; {beside} has {_told(theirs.kept)}.{self._doubt(ours, theirs)}"

    def _doubt(self, *compared: Point) -> str:
        """A sentence where networks are compared by times that were measured on a busy machine; else empty."""
        times = [point.latency for point in compared if point.latency is not None]
        if self.by != "latency" or not any(time.is_rough for time in times):
            return ""
        widest = max(times, key=lambda time: time.high / time.low)
        return f" These times are rough ({widest.spread}): sweep again on an idle machine before you choose by them."


ALIKE = 1.1
"""By how much more a network may cost than another to be set beside it: those set by hand hit no target exactly."""


def best_lead(sweep: Sweep) -> tuple[Point, Point | None] | None:
    """The planned network in the middle, and the best set by hand for about as much; None where there is no plan."""
    plans = [point for point in sweep.of_family("plan") if point.kept.value is not None]
    if not plans:
        return None
    middle = plans[len(plans) // 2]
    most = ALIKE * sweep.share(middle)
    others = [point for point in sweep.points if point.family != "plan" and sweep.share(point) <= most]
    return middle, max(others, key=lambda point: point.kept.value or 0.0, default=None)


def read_sweep(folder: str | Path) -> Sweep:
    """The sweep in a folder.  Raises ``RunError``."""
    path = Path(folder) / SWEEP
    read = validated(Sweep, read_yaml(path, RunError, "Sweep"), f"Sweep {str(path)!r}", RunError)
    if read.format != FORMAT:
        raise RunError(f"Sweep {str(path)!r} has format {read.format}; this version reads format {FORMAT}.")
    return read


def _told(kept: Kept) -> str:
    if kept.shown:
        return f"{kept.shown} {kept.name}"
    return "all answers" if kept.agreement is None else f"{kept.agreement:.1%} of the answers"
