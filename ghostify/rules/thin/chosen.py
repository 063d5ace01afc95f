"""Which channels of a network stay where its blocks become narrower, and what the network then costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ghostify.channels import Channels, Coupling, InnerBlock, Unreadable, follow, inner_blocks
from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError
from ghostify.rules.base import thinner
from ghostify.rules.thin.swap import ThinSwap
from ghostify.scanning import Scan, Site, network_nodes
from ghostify.tracing import Traced

REFUSED = "cannot be thinned inside its blocks"


def followed(scan: Scan) -> Coupling:
    """The channels of the whole network.  Raises ``PlanError`` where it was not asked for them, or they resist."""
    if (scan.coupling is None and not scan.uncoupled) or scan.stream != "kept":
        raise PlanError(
            f"The scan of {scan.network} has no channels of the whole network in it: "
            "scan(..., whole=True, stream='kept')."
        )
    if scan.coupling is None:
        raise PlanError(f"{scan.network} {REFUSED}: {scan.uncoupled}.")
    return scan.coupling


def block_of(scan: Scan, swap: ThinSwap) -> InnerBlock:
    """The block that a swap is about, which is there once the swap is checked."""
    return next(block for block in scan.inner_blocks if block.name == swap.target)


class Widths:
    """How many components of each segment settings ask for; worked out once for all swaps of the same settings.

    It takes a walk over all tensors of the network, as many as there are blocks.
    """

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self._known: dict[tuple[object, ...], list[int]] = {}

    def of(self, swap: ThinSwap) -> list[int]:
        """By segment, where the whole network has a swap's settings."""
        if swap.form not in self._known:
            target = thinner(swap.width, swap.round_to, swap.rounding)
            self._known[swap.form] = self.coupling.keep(target, swap.group_width, apart=True, step=swap.round_to)
        return self._known[swap.form]


class Chosen(NamedTuple):
    """How much of each segment of a network stays."""

    coupling: Coupling
    counts: list[int]
    """Components, by segment."""
    lanes: list[float]
    """Share of a group of grouped convolutions, by segment."""

    @classmethod
    def everything(cls, coupling: Coupling) -> Chosen:
        """All channels."""
        return cls(coupling, [segment.size for segment in coupling.segments], [1.0] * len(coupling.segments))

    def thinned(self, block: InnerBlock, swap: ThinSwap, widths: Widths) -> Chosen:
        """The same with what a swap leaves of a block."""
        counts, lanes, asked = [*self.counts], [*self.lanes], widths.of(swap)
        for segment in segments_of(block, swap):
            counts[segment], lanes[segment] = asked[segment], swap.group_width
        return self._replace(counts=counts, lanes=lanes)

    def cost(self, segments: Sequence[int]) -> Cost:
        """What the weights cost that make or read channels of some segments."""
        return self.coupling.cost_of(self.coupling.touching(segments), self.counts, self.lanes)

    def narrowed(self, site: Site) -> Site:
        """A layer with the channels that stay."""
        coupling, (filters, *others) = self.coupling, self.coupling.of_layer(site.name)
        weights = [filters.model_copy(update={"params": True}), *others]  # also where it shares them with another
        everything = [segment.size for segment in coupling.segments]
        cost = site.cost - coupling.cost_of(weights, everything) + coupling.cost_of(weights, self.counts, self.lanes)
        n = coupling.width(weights[0].out, self.counts, self.lanes)
        c, groups = self._read(site, n)
        update = {"in_channels": c, "out_channels": n, "groups": groups, "cost": cost}
        return site.model_copy(update=update)

    def _read(self, site: Site, n: int) -> tuple[int, int]:
        """The channels that a layer of n outputs reads, and its groups."""
        weight = self.coupling.of_layer(site.name)[0]
        if weight.reads is not None:
            return self.coupling.width(weight.reads, self.counts, self.lanes), site.groups
        old, made = site.in_channels // site.groups, site.out_channels // site.groups
        each = self.coupling.lanes_read(weight, self.lanes)
        groups = n // (each if old == made else made)
        return groups * each, groups


def segments_of(block: InnerBlock, swap: ThinSwap) -> list[int]:
    """The segments of a block that a swap narrows."""
    return [segment for segment, maker in zip(block.segments, block.makers, strict=True) if maker in swap.inner]


def selected(traced: Traced, swaps: Sequence[ThinSwap]) -> tuple[Channels, np.ndarray]:
    """The channels of a network, and by number whether each stays.  Raises ``RewriteError`` where they resist."""
    channels = channels_of(traced)
    return channels, kept_by(channels, swaps)


def channels_of(traced: Traced) -> Channels:
    """The channels of a network whose blocks may be thinned.  Raises ``RewriteError`` where they resist."""
    try:
        return follow(traced, *network_nodes(traced, inside=True), sums=True)
    except Unreadable as problem:
        raise RewriteError(f"{type(traced.module).__name__} {REFUSED}: {problem}.") from None


def kept_by(channels: Channels, swaps: Sequence[ThinSwap]) -> np.ndarray:
    """By number of a channel, whether it stays."""
    blocks = {block.name: block for block in inner_blocks(channels.coupling)}
    widths = Widths(channels.coupling)
    strengths = channels.strengths() if any(swap.keep == "strongest" for swap in swaps) else None
    # what the whole network would keep by each of the settings, of which every swap takes the part inside its block
    by_form = {swap.form: swap for swap in swaps}
    chosen = {
        form: channels.kept(widths.of(swap), swap.group_width, strengths if swap.keep == "strongest" else None)
        for form, swap in by_form.items()
    }
    kept = np.ones(len(channels.roots), dtype=bool)
    for swap in swaps:
        # A swap speaks for the channels inside its block, and leaves all others to the others.
        inside = [channels.members[segment] for segment in segments_of(blocks[swap.target], swap)]
        kept &= chosen[swap.form] | ~np.isin(channels.components, np.concatenate(inside))
    return kept


def priced(scan: Scan, swaps: Sequence[ThinSwap]) -> Iterator[ThinSwap]:
    """Swaps with their costs, each given those before it."""
    chosen, widths = Chosen.everything(followed(scan)), Widths(followed(scan))
    for swap in swaps:
        block = block_of(scan, swap)
        segments, less = segments_of(block, swap), chosen.thinned(block, swap, widths)
        yield swap.model_copy(update={"before": chosen.cost(segments), "after": less.cost(segments)})
        chosen = less
