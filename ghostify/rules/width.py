"""The width rule: every layer of a network becomes narrower by the same share; a baseline without ghosts.

    every convolution and linear layer   c → n   ⇒   w·c → w·n       (inputs and outputs of the network stay)

It is what the papers compare with (ResNet56-0.7x, ResNet34-0.8x), and it keeps the weights of the channels that stay.
With a stream that is kept, as plans had it before rule ``thin`` was one of blocks, channels that are added to others
stay, and so does all that is tied to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from ghostify.channels import Channels, Coupling, Unreadable, follow
from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError
from ghostify.names import within
from ghostify.patterns import meant
from ghostify.recipe import GhostSettings, Keep, Rounding, Stream
from ghostify.rules.base import Skip, Swap, cannot_be_fitted, thinner, unfittable
from ghostify.rules.narrower import add_origins, narrower, steady, written
from ghostify.rules.origins import Origins
from ghostify.rules.protocol import Needs, Original, Rule
from ghostify.rules.rows import Promise, Ratios, Rows
from ghostify.scanning import Scan, network_nodes
from ghostify.tracing import Traced

WHOLE = "*"
"""Target of a swap that concerns the whole network."""
_REFUSED: dict[Stream, str] = {"scaled": "cannot be scaled as a whole", "kept": "cannot be thinned inside its blocks"}


class WidthSwap(Swap):
    """A whole network, every layer of which (or what lies inside blocks) becomes narrower; no ghosts."""

    rule: Literal["width"] = "width"
    width: Annotated[float, Field(gt=0, lt=1)]
    stream: Stream = "scaled"
    """Whether channels that are added to each other become fewer, too, or all are kept."""
    group_width: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a group kept in grouped convolutions; where it is 1, groups are dropped whole."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that keep their outputs."""
    keep: Keep = "first"
    round_to: Annotated[int, Field(ge=1)] = 8
    rounding: Rounding = "nearest"

    @property
    def settings(self) -> str:
        """As a table shows them."""
        return f"{'width' if self.stream == 'scaled' else 'thin'}={self.width:g}"

    @property
    def touches(self) -> tuple[str, ...]:
        return ("",)  # the root, and with it everything

    @property
    def kept(self) -> tuple[str, ...]:
        return self.exclude


class WidthRule(Rule[WidthSwap]):
    """A narrower network in place of the whole."""

    name = "width"
    swap = WidthSwap
    methods = frozenset({"width"})
    noun = "network"
    alone = True

    def needs(self, settings: GhostSettings) -> Needs:
        return Needs(whole=True, steady=settings.exclude)

    def needed_by(self, swap: WidthSwap) -> Needs:
        return Needs(whole=True, steady=swap.exclude, stream=swap.stream)

    def subjects(self, scan: Scan) -> dict[str, str]:
        return {name: name for name in (*scan.idle, *scan.closed, *scan.written)}

    def admit(self, scan: Scan, settings: GhostSettings) -> None:
        if settings.include != ("*",) or settings.set:
            raise PlanError("Method width takes the whole network, so include and set say nothing to it; exclude does.")

    def propose(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> list[WidthSwap | Skip]:
        # What cannot be fitted is planned as if it were excluded, and the plan says why.
        unfit = unfittable(scan, settings.exclude) if fitted else []
        exclude = (*settings.exclude, *(site.name for site in unfit))
        kept = [Skip(target=site.name, reason=cannot_be_fitted(f"it {site.unfit}")) for site in unfit]
        kept += written(scan, kept)
        try:
            swap = propose(scan, settings.model_copy(update={"exclude": exclude}))
        except PlanError as problem:
            if not kept or scan.coupling is None:
                raise
            raise PlanError(f"{problem} Besides, {kept[0].target} {kept[0].reason}.") from None
        return [swap, *steady(scan), *kept]

    def named(self, swap: WidthSwap, scan: Scan) -> WidthSwap:
        return swap.model_copy(update={"target": WHOLE})

    def check(self, said: Mapping[str, Swap | Skip], scan: Scan) -> list[WidthSwap | Skip]:
        swap = said.get(WHOLE)
        if not isinstance(swap, WidthSwap):  # a plan of other rules
            return []
        if swap.geometry != geometry(scan):
            raise PlanError(
                f"The plan was made for another network: {scan.network} has {geometry(scan)}, not {swap.geometry}."
            )
        kept = meant(scan, swap.exclude)
        checked = swap.model_copy(update={"before": scan.cost, "after": predict(scan, swap)})
        told = [entry for entry in said.values() if isinstance(entry, Skip) and entry.target in kept]
        return [checked, *steady(scan), *told, *written(scan, told)]

    def require_kept(self, swap: WidthSwap, scan: Scan, kept: Sequence[str]) -> None:
        # It touches everything, so the plan may exclude only what the swap itself was told to leave.
        own = meant(scan, swap.exclude)
        apart = next((name for name in kept if not any(within(name, home) for home in own)), None)
        if apart is not None:
            raise PlanError(f"The plan's exclude names {apart!r}, which its swap does not; write it under both.")

    def after(self, scan: Scan, swaps: Sequence[WidthSwap]) -> Scan:
        # Every layer is in the swap, so a later rule finds nothing.
        return scan.model_copy(update={"sites": (), "others": {}, "stages": ()}) if swaps else scan

    def replacements(self, original: Original, swaps: Sequence[WidthSwap], memo: Mapping[int, Any]) -> dict[int, Any]:
        (swap,) = swaps
        channels, kept = _selected(original.traced, swap)
        return narrower(channels, kept, f"{type(original.module).__name__} {_REFUSED[swap.stream]}")

    def counted(self, swap: WidthSwap, before: Scan, after: Scan) -> Cost:
        return after.cost

    def origins(self, found: Origins, original: Original, swaps: Sequence[WidthSwap], module: nn.Module) -> None:
        (swap,) = swaps
        add_origins(found, *_selected(original.traced, swap), module)

    def report(self, rows: Rows, swaps: Sequence[WidthSwap], before: Scan, after: Scan) -> None:
        (swap,) = swaps
        rows.width, rows.stream = swap.width, swap.stream
        r_s, r_c = promise(before, swap)
        ratios = Ratios(r_s=r_s, r_c=r_c, approx_r_s=r_s, approx_r_c=r_c)
        rows.promises.append(Promise(before.cost.macs, before.cost.params, ratios))


def propose(scan: Scan, settings: GhostSettings) -> WidthSwap:
    """The swap of a whole network.

    Raises ``PlanError`` when its channels cannot be followed or nothing changes.
    """
    swap = WidthSwap(
        target=WHOLE,
        geometry=geometry(scan),
        width=settings.width,
        group_width=settings.group_width or settings.width,
        exclude=settings.exclude,
        keep=settings.keep or "first",
        round_to=settings.round_to,
        rounding=settings.rounding,
    )
    swap = swap.model_copy(update={"before": scan.cost, "after": predict(scan, swap)})
    if swap.after == swap.before:
        fixed = not any(vector.parts for vector in scan.coupling.producers) if scan.coupling else True
        rounds = f"at {settings.width:g} they round to what they are (round_to is {settings.round_to})"
        why = _why_fixed(scan) if fixed else rounds
        raise PlanError(f"{scan.network} has no width that may change: {why}.")
    return swap


def _why_fixed(scan: Scan) -> str:
    if not scan.idle:
        return "all its channels are outputs"
    return f"{', '.join(scan.idle)} did not run on the example or in training, and what may be read there stays"


def geometry(scan: Scan) -> str:
    """The network as a plan tells it."""
    return f"{sum(site.role != 'channels-last' for site in scan.sites)} layers"


def predict(scan: Scan, swap: WidthSwap) -> Cost:
    """The exact cost of the narrower network.  Raises ``PlanError`` when it cannot be made."""
    unasked = scan.coupling is None and not scan.uncoupled
    if unasked or (scan.steady, scan.stream) != (swap.exclude, swap.stream):
        asked = "whole=True"
        asked += f", steady={swap.exclude!r}" if swap.exclude else ""
        asked += f", stream={swap.stream!r}" if swap.stream != "scaled" else ""
        raise PlanError(f"The scan of {scan.network} has no channels of the whole network in it: scan(..., {asked}).")
    if scan.coupling is None:
        raise PlanError(f"{scan.network} {_REFUSED[swap.stream]}: {scan.uncoupled}.")
    coupling = scan.coupling
    counts = _counts(coupling, swap)
    everything = [segment.size for segment in coupling.segments]
    # what has no channels that may change stays in the sum as it was
    return scan.cost - coupling.cost(0, everything) + coupling.cost(0, counts, swap.group_width)


def promise(scan: Scan, swap: WidthSwap) -> tuple[float, float]:
    """By how much MACs and parameters shrink where every width that changes does so by the share itself, unrounded.

    With the stream scaled width⁻², as the papers count; with it kept, a weight between the stream and the inside of a
    block costs the share of what it did, one between two inner layers its square, and what else the network has stays.
    """
    if swap.stream == "scaled" or scan.coupling is None:
        return swap.width**-2, swap.width**-2
    count = len(scan.coupling.segments)
    before = scan.coupling.shared([1.0] * count, [1.0] * count)
    after = scan.coupling.shared([swap.width] * count, [swap.group_width] * count)
    macs, params = (
        whole / (whole - old + new)
        for whole, old, new in zip((scan.cost.macs, scan.cost.params), before, after, strict=True)
    )
    return macs, params


def _selected(traced: Traced, swap: WidthSwap) -> tuple[Channels, np.ndarray]:
    try:
        inside = swap.stream == "kept"
        channels = follow(traced, *network_nodes(traced, swap.exclude, inside), sums=inside)
    except Unreadable as problem:
        raise RewriteError(f"{type(traced.module).__name__} {_REFUSED[swap.stream]}: {problem}.") from None
    counts = _counts(channels.coupling, swap)
    return channels, channels.kept(counts, swap.group_width, channels.strengths() if swap.keep == "strongest" else None)


def _counts(coupling: Coupling, swap: WidthSwap) -> list[int]:
    """How many components of each segment stay."""
    target = thinner(swap.width, swap.round_to, swap.rounding)
    return coupling.keep(target, swap.group_width, apart=swap.stream == "kept", step=swap.round_to)
