"""The thin rule: a block becomes narrower inside, and what it adds to others stays as wide as it was; no ghosts.

    basic block    c → n → c         ⇒   c → w·n → c          (n: channels that are added to nothing)
    bottleneck     c → n → n' → c    ⇒   c → w·n → w·n' → c
    chain          c → n → n'        ⇒   c → w·n → w·n'       (each n a block of its own)

Every channel that is added to another stays, with all that is tied to it.  The weights of the channels kept are
carried over.  Blocks are those of ``channels/blocks.py``.  Between two blocks of a chain lies a weight that belongs to
both, so each swap is priced given those before it; their sum is exact.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from ghostify.channels import Coupling, InnerBlock
from ghostify.costs import Cost
from ghostify.errors import PlanError, did_you_mean
from ghostify.recipe import GhostSettings
from ghostify.rules.base import Skip, Swap, cannot_be_fitted, unfittable
from ghostify.rules.g_ghost.swap import GGhostSwap
from ghostify.rules.narrower import add_origins, narrower, steady, written
from ghostify.rules.origins import Origins
from ghostify.rules.protocol import Needs, Original, Rule, require_geometry, unknown
from ghostify.rules.rows import BlockReport, Promise, Ratios, Rows
from ghostify.rules.thin.chosen import (
    REFUSED,
    Chosen,
    Widths,
    block_of,
    channels_of,
    followed,
    kept_by,
    priced,
    segments_of,
    selected,
)
from ghostify.rules.thin.offers import alone, together
from ghostify.rules.thin.proposing import geometry, is_meant, proposed, why_none
from ghostify.rules.thin.swap import ThinSwap
from ghostify.scanning import Scan, Site

__all__ = ["ThinRule", "ThinSwap", "channels_of", "kept_by", "selected"]


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
        blocks = (block.name for block in scan.inner_blocks)
        return {name: name for name in (*blocks, *scan.idle, *scan.closed, *scan.written)}

    def propose(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> list[ThinSwap | Skip]:
        unfit = _unfit(scan, settings, fitted)
        widths = Widths(followed(scan))
        entries = [proposed(scan, block, settings, unfit, widths) for block in scan.inner_blocks]
        swaps = [entry for entry in entries if isinstance(entry, ThinSwap)]
        left = [entry for entry in entries if isinstance(entry, Skip)]
        kept = [Skip(target=name, reason=cannot_be_fitted(f"it {site.unfit}")) for name, site in unfit.items()]
        left += written(scan, [*swaps, *left, *kept])
        if not swaps and settings.method == "thin":
            raise PlanError(f"{scan.network} has no width that may change: {why_none(scan, left, settings)}.")
        if not entries:  # method mixed goes on to ghosts alone, and the plan says so
            why = f"has no width that may change ({why_none(scan, left, settings)}), so ghosts alone are made"
            return [Skip(target="", reason=why), *steady(scan)]
        if settings.method != "thin":  # of a block that is one layer, a later rule has more to say
            left = [skip for skip in left if scan.site(skip.target) is None]
        if not swaps:  # so that the plan is read again without its blocks, where only modules are known by their names
            modules = {name for names in scan.modules for name in names}
            left = [skip for skip in left if skip.target in modules]
        return [*priced(scan, swaps), *left, *kept, *steady(scan)]

    def candidates(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> Mapping[str, Sequence[ThinSwap]]:
        return alone(scan, settings, _unfit(scan, settings, fitted)) if scan.coupling else {}

    def chains(
        self, scan: Scan, settings: GhostSettings, *, fitted: bool
    ) -> Mapping[str, Sequence[tuple[ThinSwap, ...]]]:
        return together(scan, settings, _unfit(scan, settings, fitted)) if scan.coupling else {}

    def why_outside(self, scan: Scan, name: str) -> str:
        block = next((block.name for block in scan.inner_blocks if name in block.layers), None)
        return self.outside if block is None else f"is kept, because the block {block!r} is left alone"

    def is_meant(self, scan: Scan, target: str, pattern: str) -> bool:
        block = next((block for block in scan.inner_blocks if block.name == target), None)
        return block is not None and is_meant(block, pattern)

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
        touched = followed(scan).touching(segments_of(block_of(scan, swap), swap))
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
        return narrower(channels, kept, f"{type(original.module).__name__} {REFUSED}")

    def counted(self, swap: ThinSwap, before: Scan, after: Scan) -> Cost | None:
        return None  # neighbours may share a weight, so only what all of them save together can be counted

    def origins(self, found: Origins, original: Original, swaps: Sequence[ThinSwap], module: nn.Module) -> None:
        add_origins(found, *selected(original.traced, swaps), module)

    def report(self, rows: Rows, swaps: Sequence[ThinSwap], before: Scan, after: Scan) -> None:
        coupling, blocks = followed(before), before.inner_blocks
        everything = Chosen.everything(coupling)
        for swap in swaps:
            segments = segments_of(block_of(before, swap), swap)
            theory = _theory(coupling, blocks, [swap], segments, everything.cost(segments))
            row = swap.model_dump(include={"target", "geometry", "width", "before", "after"})
            rows.blocks.append(BlockReport(**row, form=swap.settings, theory=theory))
        whole = _theory(coupling, blocks, swaps, range(len(coupling.segments)), before.cost)
        rows.promises.append(Promise(before.cost.macs, before.cost.params, whole))


def _unfit(scan: Scan, settings: GhostSettings, fitted: bool) -> dict[str, Site]:
    """By name, the layers that no weights can be fitted to, where a fit is to follow."""
    return {site.name: site for site in unfittable(scan, settings.exclude)} if fitted else {}


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
        for segment in segments_of(by_name[swap.target], swap):
            shares[segment], lanes[segment] = swap.width, swap.group_width
    touched = coupling.touching(segments)
    before = coupling.shared([1.0] * len(shares), [1.0] * len(shares), touched)
    after = coupling.shared(shares, lanes, touched)
    r_s, r_c = (
        cost / (cost - old + new) for cost, old, new in zip((whole.macs, whole.params), before, after, strict=True)
    )
    return Ratios(r_s=r_s, r_c=r_c, approx_r_s=r_s, approx_r_c=r_c)
