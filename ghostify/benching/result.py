"""Networks timed side by side, as a value."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from ghostify.benching.verdicts import Verdict
from ghostify.clock import Place
from ghostify.measuring import Latency
from ghostify.tables import Table, quantity


class Benched(BaseModel):
    """A network that was timed: its name, the form it was timed in, and what it costs where that is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    form: str
    params: int | None = None
    macs: int | None = None


class Result(BaseModel):
    """What a network did at a place.

    ``speedup`` over the baseline, with ``low`` and ``high`` around it, between which it lies with a confidence of
    95 %; ``verdict`` says whether that is a difference.  ``peak_bytes`` is the most memory it took while it ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    place: Place
    latency: Latency
    speedup: float
    low: float
    high: float
    verdict: Verdict
    peak_bytes: int | None = None


class Bench(BaseModel):
    """Networks timed side by side; the first is the baseline.  Printing it shows a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    networks: tuple[Benched, ...]
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    environment: dict[str, Any] = {}

    def table(self) -> Table:
        """A line for each network at each place."""
        table = Table(self.title, _COLUMNS, left=frozenset({"runtime", "verdict", "form"}), note="\n".join(self.notes))
        known = {network.name: network for network in self.networks}
        table.rows = [_row(known[one.network], one) for one in self.results]
        return table

    @property
    def title(self) -> str:
        """What was compared with what."""
        others = len(self.networks) - 1
        beside = f"{others} other{'s' * (others > 1)} beside it" if others else "nothing beside it"
        return f"{self.networks[0].name} as the baseline, {beside}"

    def of(self, network: str) -> tuple[Result, ...]:
        """What a network did at each place."""
        return tuple(one for one in self.results if one.network == network)

    def __str__(self) -> str:
        return str(self.table())


_COLUMNS = ["network", "form", "MACs", "params", "runtime", "batch", "latency", "10th to 90th", "speed-up"]
_COLUMNS += ["95 % between", "verdict", "memory"]


def _row(network: Benched, one: Result) -> list[str]:
    times = f"{one.latency.low_ms:.2f} to {one.latency.high_ms:.2f}"
    is_baseline = one.verdict == "baseline"
    return [
        network.name,
        network.form,
        _count(network.macs),
        _count(network.params),
        _where(one.place),
        str(one.place.batch),
        f"{one.latency.median_ms:.2f} ms",
        times,
        "" if is_baseline else f"{one.speedup:.2f}x",
        "" if is_baseline else f"{one.low:.2f} to {one.high:.2f}",
        one.verdict,
        "-" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:.0f} MB",
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else quantity(value)


def _where(place: Place) -> str:
    threads = f"{place.threads} thread{'s' * (place.threads > 1)}"
    return f"{place.runtime}, {threads if place.device == 'cpu' else place.device}"
