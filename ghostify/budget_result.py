"""What was asked of a budget and what came of it: names and numbers, for a report and a run folder."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ghostify.tables import Table, quantity
from ghostify.targets import Quantity

_NAMES: dict[Quantity, str] = {
    "latency": "latency",
    "macs": "MACs",
    "params": "params",
    "activations": "activations",
    "size": "size",
}


class Amount(BaseModel):
    """One cost: as it was, what was asked, what the plan promised, and what came of it.

    Latency is in milliseconds, size in bytes, all else are plain counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: Quantity
    before: float
    bound: float | None = None
    """The most that was asked for; None where nothing was asked of this cost."""
    predicted: float
    measured: float | None = None
    """None where the network was not built."""

    @property
    def missed(self) -> float | None:
        """By what share of the bound the network costs more than that; less than nothing where it costs less."""
        if self.bound is None or self.measured is None:
            return None
        return self.measured / self.bound - 1

    @property
    def cells(self) -> list[str]:
        """As a table shows it."""
        values = (self.before, self.bound, self.predicted, self.measured)
        return [_NAMES[self.quantity], *("" if value is None else shown(self.quantity, value) for value in values)]


class Way(BaseModel):
    """One way to have a block or a layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: str
    """The settings of its swap, or ``as it is``."""
    m: int | None = None
    """How many maps are intrinsic, where it is a C-Ghost module."""
    harm: float
    """What that alone was expected to do to the network's outputs."""
    cost: float
    """Of the block or layer, at the width that its block keeps."""
    taken: bool


class Chosen(BaseModel):
    """A block or a layer, and the ways to have it that a plan chose among."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    quantity: Quantity
    """What costs are of: milliseconds of latency, or a count."""
    before: float
    """What it cost in the original."""
    ways: tuple[Way, ...]

    @property
    def taken(self) -> Way:
        """The way that the plan took."""
        return next(way for way in self.ways if way.taken)


class Budgeted(BaseModel):
    """What was asked of a network, what the plan promised, and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: tuple[str, ...]
    """The targets, or what was to be kept, as they were written."""
    place: str = ""
    """Where time was measured; empty where it was not."""
    amounts: tuple[Amount, ...]
    harm: float
    """Predicted: what the plan was expected to change in the network's outputs on images held out."""
    harm_measured: float | None = None
    unit: str = "proxy"
    """What a harm is: KL of class scores, error in shares of the outputs' variance, or a proxy without images."""
    agreement: float | None = None
    """Predicted: the share of images that get the original's answer."""
    agreement_measured: float | None = None
    images: int = 0
    """On how many images held out harm and agreement were measured."""
    rounds: int = 0
    """How often it was solved again, because what was measured was not what was predicted."""
    gap: float = 0.0
    """By what share of its harm (or cost) a better plan might be better, by the same predictions."""
    choices: tuple[Chosen, ...] = ()
    """What the plan chose among, and what it took."""
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """What was asked beside what was predicted and measured, a row each."""
        rows = [amount.cells for amount in self.amounts]
        rows.append([f"harm ({self.unit})", "", "", f"{self.harm:.4g}", _number(self.harm_measured)])
        if self.agreement is not None or self.agreement_measured is not None:
            rows.append(["agreement", "", "", _percent(self.agreement), _percent(self.agreement_measured)])
        columns = ["", "original", "asked", "predicted", "measured"]
        return Table(f"Budget: {self.summary}", columns, rows, note="\n".join(self.notes))

    @property
    def summary(self) -> str:
        """What was asked, where, and how often it was solved."""
        where = f" ({self.place})" if self.place else ""
        again = f"; solved again {self.rounds}x" if self.rounds else ""
        return f"{', '.join(self.asked)}{where}{again}"

    def __str__(self) -> str:
        return str(self.table())


def shown(kind: Quantity, value: float) -> str:
    """An amount with its unit."""
    if kind == "latency":
        return f"{value:.3g} ms"
    if kind == "size":
        return f"{value / 1e6:.3g} MB"
    return quantity(round(value))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"
