"""The thin rule: a block becomes narrower inside, and what it adds to others stays as wide as it was; no ghosts.

    basic block    c → n → c         ⇒   c → w·n → c          (n: channels that are added to nothing)
    bottleneck     c → n → n' → c    ⇒   c → w·n → w·n' → c
    chain          c → n → n'        ⇒   c → w·n → w·n'       (each n a block of its own)

Every channel that is added to another stays, with all that is tied to it.  The weights of the channels kept are
carried over.  Blocks are those of ``channels/blocks.py``.  Between two blocks of a chain lies a weight that belongs to
both, so each swap is priced given those before it; their sum is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field
from torch import nn

from ghostify.channels import Channels, Coupling, InnerBlock, Unreadable, follow, inner_blocks
from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError, did_you_mean
from ghostify.names import matches
from ghostify.recipe import GhostSettings, Keep, Rounding
from ghostify.rules.base import Skip, Swap, cannot_be_fitted, different, offered, thinner, unfittable
from ghostify.rules.g_ghost.swap import GGhostSwap
from ghostify.rules.narrower import add_origins, narrower, steady
from ghostify.rules.origins import Origins
from ghostify.rules.protocol import Needs, Original, Rule, require_geometry, unknown
from ghostify.rules.rows import BlockReport, Promise, Ratios, Rows
from ghostify.scanning import Scan, Site, network_nodes
from ghostify.tracing import Traced

_REFUSED = "cannot be thinned inside its blocks"
_WIDTHS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""What a budget may choose among."""
_STREAMS = "none of its channels is inside a block, because all are outputs or added to others"


class ThinSwap(Swap):
    """A block that becomes narrower inside; what it adds to others stays as it is.  No ghosts.

    Its costs are those of the layers that make or read its inner channels, given the swaps before it.
    """

    rule: Literal["thin"] = "thin"
    inner: Annotated[tuple[str, ...], Field(min_length=1)]
    """The layers inside the block that become narrower, each with those that read it."""
    width: Annotated[float, Field(gt=0, le=1)]
    group_width: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a group kept in grouped convolutions; where it is 1, groups are dropped whole."""
    keep: Keep = "strongest"
    round_to: Annotated[int, Field(ge=1)] = 8
    rounding: Rounding = "nearest"

    @property
    def settings(self) -> str:
        """As a table shows them."""
        return f"thin={self.width:g}"

    @property
    def form(self) -> tuple[object, ...]:
        """The settings that decide which channels stay, wherever the block is."""
        return self.width, self.group_width, self.keep, self.round_to, self.rounding

    @property
    def touches(self) -> tuple[str, ...]:
        return self.inner

    def renamed(self, rename: Callable[[str], str]) -> Self:
        return super().renamed(rename).model_copy(update={"inner": tuple(map(rename, self.inner))})


class ThinRule(Rule[ThinSwap]):
    """A narrower inside in place of each block's."""

    name = "thin"
    swap = ThinSwap
    methods = frozenset({"thin", "mixed"})
    noun = "block"
    opens = True
    outside = "is kept, because it makes and reads only channels that are outputs or are added to others"

    def needs(self, settings: GhostSettings) -> Needs:
        return Needs(whole=True, stream="kept")

    def needed_by(self, swap: ThinSwap) -> Needs:
        return Needs(whole=True, stream="kept")

    def subjects(self, scan: Scan) -> dict[str, str]:
        return {name: name for name in (*(block.name for block in scan.inner_blocks), *scan.idle, *scan.closed)}

    def propose(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> list[ThinSwap | Skip]:
        unfit = {site.name: site for site in unfittable(scan, settings.exclude)} if fitted else {}
        widths = Widths(followed(scan))
        entries = [_proposed(scan, block, settings, unfit, widths) for block in scan.inner_blocks]
        swaps = [entry for entry in entries if isinstance(entry, ThinSwap)]
        left = [entry for entry in entries if isinstance(entry, Skip)]
        if not swaps and settings.method == "thin":
            raise PlanError(f"{scan.network} has no width that may change: {_why_none(scan, left, settings)}.")
        if not entries:  # method mixed goes on to ghosts alone, and the plan says so
            why = f"has no width that may change ({_why_none(scan, left, settings)}), so ghosts alone are made"
            return [Skip(target="", reason=why), *steady(scan)]
        if settings.method != "thin":  # of a block that is one layer, a later rule has more to say
            left = [skip for skip in left if scan.site(skip.target) is None]
        if not swaps:  # so that the plan is read again without its blocks, where only modules are known by their names
            modules = {name for names in scan.modules for name in names}
            left = [skip for skip in left if skip.target in modules]
        kept = [Skip(target=name, reason=cannot_be_fitted(f"it {site.unfit}")) for name, site in unfit.items()]
        return [*priced(scan, swaps), *left, *kept, *steady(scan)]

    def candidates(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> Mapping[str, Sequence[ThinSwap]]:
        if scan.coupling is None:
            return {}
        unfit = {site.name: site for site in unfittable(scan, settings.exclude)} if fitted else {}
        widths = Widths(scan.coupling)
        each = [settings.model_copy(update={"width": width}) for width in _WIDTHS]
        blocks = list(_separate(scan))
        return offered([_priced_alone(scan, block, one, unfit, widths) for block in blocks] for one in each)

    def chains(
        self, scan: Scan, settings: GhostSettings, *, fitted: bool
    ) -> Mapping[str, Sequence[tuple[ThinSwap, ...]]]:
        if scan.coupling is None:
            return {}
        unfit = {site.name: site for site in unfittable(scan, settings.exclude)} if fitted else {}
        each = [settings.model_copy(update={"width": width}) for width in _WIDTHS]
        found = {}
        for blocks in _chained(scan.inner_blocks):
            ways = different(_evenly(scan, blocks, one, unfit) for one in each)
            if ways:
                found[f"{blocks[0].name} to {blocks[-1].name}"] = ways
        return found

    def why_outside(self, scan: Scan, name: str) -> str:
        block = next((block.name for block in scan.inner_blocks if name in block.layers), None)
        return self.outside if block is None else f"is kept, because the block {block!r} is left alone"

    def is_meant(self, scan: Scan, target: str, pattern: str) -> bool:
        block = next((block for block in scan.inner_blocks if block.name == target), None)
        return block is not None and _is_meant(block, pattern)

    def named(self, swap: ThinSwap, scan: Scan) -> ThinSwap:
        names = {block.name: block.name for block in scan.inner_blocks}
        if swap.target not in names:
            followed(scan)
            raise unknown(swap.target, scan, names, what="the block ")
        return swap

    def check(self, said: Mapping[str, Swap | Skip], scan: Scan) -> list[ThinSwap | Skip]:
        blocks = [said[block.name] for block in scan.inner_blocks if block.name in said]
        swaps = [entry for entry in blocks if isinstance(entry, ThinSwap)]
        for swap in swaps:
            _require_valid(swap, scan)
            _require_no_stage(swap, self.touches(swap, scan), scan, said)
        told = [one for one in blocks if isinstance(one, Skip) and not scan.site(one.target)]
        return [*priced(scan, swaps), *told, *steady(scan)] if swaps else []

    def touches(self, swap: ThinSwap, scan: Scan) -> Sequence[str]:
        touched = followed(scan).touching(_segments(block_of(scan, swap), swap))
        return tuple(dict.fromkeys(weight.layer for weight in touched if weight.layer))

    def after(self, scan: Scan, swaps: Sequence[ThinSwap]) -> Scan:
        if not swaps:
            return scan
        chosen, widths = Chosen.everything(followed(scan)), Widths(followed(scan))
        for swap in swaps:
            chosen = chosen.thinned(block_of(scan, swap), swap, widths)
        changed = {layer for swap in swaps for layer in self.touches(swap, scan)}
        sites = tuple(chosen.narrowed(site) if site.name in changed else site for site in scan.sites)
        stages = tuple(stage for stage in scan.stages if not any(map(stage.holds, changed)))
        return scan.model_copy(update={"sites": sites, "stages": stages, "changed": frozenset(changed)})

    def replacements(self, original: Original, swaps: Sequence[ThinSwap], memo: Mapping[int, Any]) -> dict[int, Any]:
        channels, kept = selected(original.traced, swaps)
        return narrower(channels, kept, f"{type(original.module).__name__} {_REFUSED}")

    def counted(self, swap: ThinSwap, before: Scan, after: Scan) -> Cost | None:
        return None  # neighbours may share a weight, so only what all of them save together can be counted

    def origins(self, found: Origins, original: Original, swaps: Sequence[ThinSwap], module: nn.Module) -> None:
        add_origins(found, *selected(original.traced, swaps), module)

    def report(self, rows: Rows, swaps: Sequence[ThinSwap], before: Scan, after: Scan) -> None:
        coupling, blocks = followed(before), before.inner_blocks
        everything = Chosen.everything(coupling)
        for swap in swaps:
            segments = _segments(block_of(before, swap), swap)
            theory = _theory(coupling, blocks, [swap], segments, everything.cost(segments))
            row = swap.model_dump(include={"target", "geometry", "width", "before", "after"})
            rows.blocks.append(BlockReport(**row, form=swap.settings, theory=theory))
        whole = _theory(coupling, blocks, swaps, range(len(coupling.segments)), before.cost)
        rows.promises.append(Promise(before.cost.macs, before.cost.params, whole))


def followed(scan: Scan) -> Coupling:
    """The channels of the whole network.  Raises ``PlanError`` where it was not asked for them, or they resist."""
    if (scan.coupling is None and not scan.uncoupled) or scan.stream != "kept":
        raise PlanError(
            f"The scan of {scan.network} has no channels of the whole network in it: "
            "scan(..., whole=True, stream='kept')."
        )
    if scan.coupling is None:
        raise PlanError(f"{scan.network} {_REFUSED}: {scan.uncoupled}.")
    return scan.coupling


def block_of(scan: Scan, swap: ThinSwap) -> InnerBlock:
    """The block that a swap is about, which is there once the swap is checked."""
    return next(block for block in scan.inner_blocks if block.name == swap.target)


# -- which channels stay ---------------------------------------------------------------------------------------


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
        for segment in _segments(block, swap):
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


def _segments(block: InnerBlock, swap: ThinSwap) -> list[int]:
    """The segments of a block that a swap narrows."""
    return [segment for segment, maker in zip(block.segments, block.makers, strict=True) if maker in swap.inner]


def selected(traced: Traced, swaps: Sequence[ThinSwap]) -> tuple[Channels, np.ndarray]:
    """The channels of a network, and by number whether each stays.  Raises ``RewriteError`` where they resist."""
    channels = channels_of(traced)
    return channels, kept_by(channels, swaps)


def channels_of(traced: Traced) -> Channels:
    """The channels of a network whose blocks may be thinned.  Raises ``RewriteError`` where they resist."""
    try:
        return follow(traced, *network_nodes(traced), sums=True)
    except Unreadable as problem:
        raise RewriteError(f"{type(traced.module).__name__} {_REFUSED}: {problem}.") from None


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
        inside = [channels.members[segment] for segment in _segments(blocks[swap.target], swap)]
        kept &= chosen[swap.form] | ~np.isin(channels.components, np.concatenate(inside))
    return kept


# -- swaps -----------------------------------------------------------------------------------------------------


def priced(scan: Scan, swaps: Sequence[ThinSwap]) -> Iterator[ThinSwap]:
    """Swaps with their costs, each given those before it."""
    chosen, widths = Chosen.everything(followed(scan)), Widths(followed(scan))
    for swap in swaps:
        block = block_of(scan, swap)
        segments, less = _segments(block, swap), chosen.thinned(block, swap, widths)
        yield swap.model_copy(update={"before": chosen.cost(segments), "after": less.cost(segments)})
        chosen = less


def _priced_alone(
    scan: Scan, block: InnerBlock, settings: GhostSettings, unfit: Mapping[str, Site], widths: Widths
) -> ThinSwap | Skip:
    """A swap of a block with its cost where no other is thinned."""
    swap = _proposed(scan, block, settings, unfit, widths)
    if isinstance(swap, Skip):
        return swap
    whole, segments = Chosen.everything(followed(scan)), _segments(block, swap)
    after = whole.thinned(block, swap, widths).cost(segments)
    return swap.model_copy(update={"before": whole.cost(segments), "after": after})


def _separate(scan: Scan) -> Iterator[InnerBlock]:
    """Blocks of which no two share a layer, so that what they save adds up: of neighbours in a chain the dearer."""
    whole = Chosen.everything(followed(scan))
    taken: set[str] = set()
    for block in sorted(scan.inner_blocks, key=lambda block: -whole.cost(block.segments).macs):
        if taken.isdisjoint(block.layers):
            taken.update(block.layers)
            yield block


def _chained(blocks: Sequence[InnerBlock]) -> Iterator[list[InnerBlock]]:
    """Blocks that share layers with their neighbours, from one end of the chain to the other."""
    chains: list[list[InnerBlock]] = []
    for block in blocks:
        joined = [chain for chain in chains if any(not set(block.layers).isdisjoint(one.layers) for one in chain)]
        chains = [chain for chain in chains if chain not in joined]
        chains.append([*(one for chain in joined for one in chain), block])
    return (chain for chain in chains if len(chain) > 1)


def _evenly(
    scan: Scan, blocks: Sequence[InnerBlock], settings: GhostSettings, unfit: Mapping[str, Site]
) -> tuple[ThinSwap, ...]:
    """All blocks of a chain at one width, those that may change; each priced given those before it."""
    widths = Widths(followed(scan))
    entries = (_proposed(scan, block, settings, unfit, widths) for block in blocks)
    return tuple(priced(scan, [entry for entry in entries if isinstance(entry, ThinSwap)]))


def _proposed(
    scan: Scan, block: InnerBlock, settings: GhostSettings, unfit: Mapping[str, Site], widths: Widths
) -> ThinSwap | Skip:
    """A swap of a block, or the reason there is none."""
    coupling = followed(scan)
    reasons: list[str] = []
    inner: list[str] = []
    for segment, maker in zip(block.segments, block.makers, strict=True):
        layers = {weight.layer for weight in coupling.touching([segment])}
        reason = _left_alone(scan, block, maker, layers, settings, unfit)
        if reason:
            reasons.append(reason)
        else:
            inner.append(maker)
    if not inner:
        return Skip(target=block.name, reason=reasons[0])
    swap = _swap(scan, block, tuple(dict.fromkeys(inner)), settings)
    whole = Chosen.everything(coupling)
    # Whether rounding leaves anything to be changed is simplest seen by the cost.
    if whole.thinned(block, swap, widths).cost(block.segments) == whole.cost(block.segments):
        return Skip(target=block.name, reason=f"keeps its inner width, because {_rounds(swap)}")
    return swap


def _swap(scan: Scan, block: InnerBlock, inner: tuple[str, ...], settings: GhostSettings) -> ThinSwap:
    """A swap by what is set for all, and over it what is set by name; not yet priced."""
    width, group_width, keep = settings.width, settings.group_width, settings.keep
    for pattern, own in settings.set.items():
        if _is_meant(block, pattern):
            width = own.width or width
            group_width = own.group_width or group_width
            keep = own.keep or keep
    return ThinSwap(
        target=block.name,
        geometry=geometry(scan, block),
        inner=inner,
        width=width,
        group_width=group_width or width,
        keep=keep or "strongest",
        round_to=settings.round_to,
        rounding=settings.rounding,
    )


def _left_alone(
    scan: Scan,
    block: InnerBlock,
    maker: str,
    layers: Collection[str],
    settings: GhostSettings,
    unfit: Mapping[str, Site],
) -> str | None:
    """Why the channels that ``maker`` makes stay: nothing a layer makes or reads changes where it is excluded."""
    if not any(matches(name, pattern) for name in (block.name, maker) for pattern in settings.include):
        return "is matched by no include pattern"
    for pattern in settings.exclude:
        if any(matches(name, pattern) for layer in layers for name in _names(scan, layer)):
            return f"is excluded by {pattern!r}"
    if (layer := next((name for name in unfit if name in layers), None)) is not None:
        return cannot_be_fitted(f"{layer} {unfit[layer].unfit}")
    return None


def _names(scan: Scan, layer: str) -> Sequence[str]:
    """All names of a layer."""
    return next((names for names in scan.modules if layer in names), (layer,))


def _is_meant(block: InnerBlock, pattern: str) -> bool:
    """Whether a pattern means a block: by its name, or by that of a layer that makes its channels."""
    return any(matches(name, pattern) for name in (block.name, *block.makers))


def geometry(scan: Scan, block: InnerBlock) -> str:
    """The inner widths of a block as a person writes them: ``64+64 inside``."""
    coupling = followed(scan)
    widths = [coupling.width(coupling.of_layer(maker)[0].out) for maker in dict.fromkeys(block.makers)]
    return f"{'+'.join(map(str, widths))} inside"


def _rounds(swap: ThinSwap) -> str:
    if swap.width == 1:
        return "its width is set to 1"
    return f"at {swap.width:g} it rounds to what it is (round_to is {swap.round_to})"


def _why_none(scan: Scan, skips: Sequence[Skip], settings: GhostSettings) -> str:
    """Why no block of a network becomes narrower."""
    if scan.idle and not skips:
        return f"{', '.join(scan.idle)} did not run on the example or in training, and what may be read there stays"
    if not skips:
        return _STREAMS
    telling = next((skip for skip in skips if not skip.reason.startswith("keeps its inner width")), None)
    if telling is None:
        return f"at {settings.width:g} they round to what they are (round_to is {settings.round_to})"
    return f"{telling.target} {telling.reason}"


def _require_valid(swap: ThinSwap, scan: Scan) -> None:
    """Refuse a swap of a plan that was made for another block, or names layers that make none of its channels."""
    block = block_of(scan, swap)
    require_geometry(swap, geometry(scan, block), scan)
    for layer in swap.inner:
        if layer not in block.makers:
            raise PlanError(
                f"The plan's swap of {swap.target!r} names {layer!r} under inner, which makes none of its channels."
                f"{did_you_mean(layer, block.makers)}"
            )


def _require_no_stage(swap: ThinSwap, layers: Sequence[str], scan: Scan, said: Mapping[str, Swap | Skip]) -> None:
    """Refuse a block of which a G-Ghost stage replaces layers; the first block of a stage stays, and may be thinned."""
    stages = (scan.stage(entry.blocks) for entry in said.values() if isinstance(entry, GGhostSwap))
    stage = next((stage for stage in stages if stage and any(map(stage.holds, layers))), None)
    if stage is not None:
        raise PlanError(
            f"The plan thins {swap.target!r}, and the G-Ghost stage {stage.name!r} takes its layers; take out one."
        )


# -- theory ----------------------------------------------------------------------------------------------------


def _theory(
    coupling: Coupling, blocks: Sequence[InnerBlock], swaps: Sequence[ThinSwap], segments: Collection[int], whole: Cost
) -> Ratios:
    """By how much ``whole`` shrinks where every inner width is the share itself, unrounded.

    A weight between a stream and the inside of a block costs the share of what it did, one between two inner layers
    its square, and what touches no channel of ``segments`` stays.
    """
    shares, lanes = ([1.0] * len(coupling.segments) for _ in range(2))
    by_name = {block.name: block for block in blocks}
    for swap in swaps:
        for segment in _segments(by_name[swap.target], swap):
            shares[segment], lanes[segment] = swap.width, swap.group_width
    touched = coupling.touching(segments)
    before = coupling.shared([1.0] * len(shares), [1.0] * len(shares), touched)
    after = coupling.shared(shares, lanes, touched)
    r_s, r_c = (
        cost / (cost - old + new) for cost, old, new in zip((whole.macs, whole.params), before, after, strict=True)
    )
    return Ratios(r_s=r_s, r_c=r_c, approx_r_s=r_s, approx_r_c=r_c)
