"""The Report noun.  Theory (Eq. 4 and 5), count and clock are three different numbers and always stand side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost, approximate_ratio, compression_ratio, speedup_ratio
from ghostify.measuring import Accuracy, Comparison
from ghostify.rewriting import Ghosted
from ghostify.rules import Swap
from ghostify.scanning import Scan, Site
from ghostify.tables import Table, quantity, ratio

STAGES = {"original": "original", "converted": "right after conversion", "finetuned": "after fine-tuning"}
"""The moments at which accuracy is measured, in order."""


class Ratios(BaseModel):
    """Theoretical ratios: r_s and r_c by the first forms of Eq. 4 and 5, and their approximations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    r_s: float
    r_c: float
    approx_r_s: float
    approx_r_c: float


class LayerReport(BaseModel):
    """One swapped layer: what it cost, what it costs, and what theory says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    geometry: str
    s: int
    d: int
    before: Cost
    after: Cost
    theory: Ratios


class Report(BaseModel):
    """What a rewrite did to a network.  ``theory`` of the whole leaves the untouched layers as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[LayerReport, ...]
    before: Cost
    after: Cost
    theory: Ratios
    latency: Comparison | None = None
    accuracy: dict[str, Accuracy] = {}
    """By stage: original, converted, finetuned."""
    notes: tuple[str, ...] = ()

    def summary(self) -> Table:
        """The whole network in a few rows."""
        rows = [
            _cost_row("params", self.before.params, self.after.params, self.theory.r_c, self.theory.approx_r_c),
            _cost_row("MACs", self.before.macs, self.after.macs, self.theory.r_s, self.theory.approx_r_s),
            _cost_row("activations", self.before.acts, self.after.acts),
        ]
        if self.latency:
            rows.append(_latency_row(self.latency, self.theory))
        rows += [
            [f"accuracy {STAGES[stage]}", *_in_column(stage, f"{100 * accuracy.top1:.2f}%"), "", "", ""]
            for stage, accuracy in self.accuracy.items()
        ]
        inputs = " and ".join("x".join(map(str, shape)) for shape in self.inputs)
        became = f"{len(self.layers)} layers became C-Ghost modules" if self.layers else "no layer was replaced"
        title = f"{self.network} on {inputs}: {became}"
        return Table(title, ["", "original", "ghosted", "ratio", "theory", "approx."], rows, note="\n".join(self.notes))

    def by_layer(self) -> Table:
        """Each swapped layer in a row."""
        rows = [
            [
                layer.target,
                layer.geometry,
                f"s={layer.s} d={layer.d}",
                quantity(layer.after.params),
                ratio(layer.before.params, layer.after.params),
                quantity(layer.after.macs),
                ratio(layer.before.macs, layer.after.macs),
                f"{layer.theory.r_s:.2f}x",
                f"{layer.theory.approx_r_s:.2f}x",
            ]
            for layer in self.layers
        ]
        columns = ["layer", "geometry", "ghost", "params", "r_c", "MACs", "r_s", "theory", "approx."]
        return Table("Layer by layer (after; counted ratio; theory)", columns, rows, left=frozenset({"geometry"}))

    def __str__(self) -> str:
        return f"{self.by_layer()}\n\n{self.summary()}"


def compare(
    ghosted: Ghosted,
    latency: Comparison | None = None,
    accuracy: Mapping[str, Accuracy] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """The report on a rewrite: its counts beside theory, with whatever was measured (``accuracy`` by stage)."""
    sites = [_site(ghosted.before, swap) for swap in ghosted.plan.swaps]
    layers = tuple(
        LayerReport(
            target=swap.target,
            geometry=swap.geometry,
            s=swap.s,
            d=swap.d,
            before=swap.before,
            after=ghosted.after.within(swap.target),
            theory=layer_theory(site, swap),
        )
        for swap, site in zip(ghosted.plan.swaps, sites, strict=True)
    )
    return Report(
        network=ghosted.before.network,
        inputs=ghosted.before.inputs,
        layers=layers,
        before=ghosted.before.cost,
        after=ghosted.after.cost,
        theory=_whole_theory(ghosted.before.cost, layers, sites),
        latency=latency,
        accuracy={stage: accuracy[stage] for stage in STAGES if accuracy and stage in accuracy},
        notes=(*_observations(ghosted.before, latency), *notes),
    )


def _observations(before: Scan, latency: Comparison | None) -> Iterator[str]:
    """What a reader of the numbers must not miss."""
    if before.uncounted:
        yield before.uncounted
    if latency and latency.high < 1:
        yield (
            "The clock disagrees with theory: the ghosted network is slower here. On small maps and few channels, "
            "starting operations and moving memory outweigh the MACs saved (docs/counting.md)."
        )


def layer_theory(site: Site, swap: Swap) -> Ratios:
    """What Eq. 4 and 5 promise for one layer (c is the input channels one filter reads)."""
    c, k = site.in_channels // site.groups, math.sqrt(math.prod(site.kernel))
    return Ratios(
        r_s=speedup_ratio(c, k, swap.s, swap.d),
        r_c=compression_ratio(c, k, swap.s, swap.d),
        approx_r_s=approximate_ratio(c, swap.s),
        approx_r_c=approximate_ratio(c, swap.s),
    )


def _whole_theory(whole: Cost, layers: Sequence[LayerReport], sites: Sequence[Site]) -> Ratios:
    """The ratios of the whole, when each swapped layer shrinks as promised and every other cost stays."""
    macs = [(layer.before.macs, layer.theory) for layer in layers]
    weights = [(site.out_channels * site.fan_in, layer.theory) for site, layer in zip(sites, layers, strict=True)]
    return Ratios(
        r_s=_shrunk(whole.macs, [(part, theory.r_s) for part, theory in macs]),
        r_c=_shrunk(whole.params, [(part, theory.r_c) for part, theory in weights]),
        approx_r_s=_shrunk(whole.macs, [(part, theory.approx_r_s) for part, theory in macs]),
        approx_r_c=_shrunk(whole.params, [(part, theory.approx_r_c) for part, theory in weights]),
    )


def _shrunk(whole: float, parts: Sequence[tuple[float, float]]) -> float:
    left = whole - sum(part for part, _ in parts) + sum(part / by for part, by in parts)
    return whole / left if left else 1.0


def _site(before: Scan, swap: Swap) -> Site:
    site = before.site(swap.target)
    assert site is not None, swap.target
    return site


def _cost_row(
    name: str, before: int, after: int, theory: float | None = None, approximate: float | None = None
) -> list[str]:
    promised = [f"{value:.2f}x" if value else "" for value in (theory, approximate)]
    return [name, quantity(before), quantity(after), ratio(before, after), *promised]


def _latency_row(latency: Comparison, theory: Ratios) -> list[str]:
    threads, device = latency.before.threads, latency.before.device
    where = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
    times = [f"{part.median_ms:.2f} ms" for part in (latency.before, latency.after)]
    return [f"latency ({where})", *times, f"{latency.speedup:.2f}x", f"{theory.r_s:.2f}x", f"{theory.approx_r_s:.2f}x"]


def _in_column(stage: str, text: str) -> list[str]:
    return [text, ""] if stage == "original" else ["", text]
