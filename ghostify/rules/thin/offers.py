"""What a budget may choose among: blocks that share no layer, each by itself, and chains of those that do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ghostify.channels import InnerBlock
from ghostify.recipe import GhostSettings
from ghostify.rules.base import Skip, different, offered
from ghostify.rules.thin.chosen import Chosen, Widths, followed, priced, segments_of
from ghostify.rules.thin.proposing import proposed
from ghostify.rules.thin.swap import ThinSwap
from ghostify.scanning import Scan, Site

_SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Of its inner channels that a block may keep."""


def alone(scan: Scan, settings: GhostSettings, unfit: Mapping[str, Site]) -> dict[str, list[ThinSwap]]:
    """By block, of those that share no layer, its swaps, each priced as if it were the only one."""
    widths, blocks = Widths(followed(scan)), list(_separate(scan))
    return offered([_priced_alone(scan, block, one, unfit, widths) for block in blocks] for one in _each(settings))


def together(scan: Scan, settings: GhostSettings, unfit: Mapping[str, Site]) -> dict[str, list[tuple[ThinSwap, ...]]]:
    """By chain of blocks that share layers, the swaps of all at one share, each priced given those before it."""
    found = {}
    for blocks in _chained(scan.inner_blocks):
        ways = different(_evenly(scan, blocks, one, unfit) for one in _each(settings))
        if ways:
            found[f"{blocks[0].name} to {blocks[-1].name}"] = ways
    return found


def _each(settings: GhostSettings) -> list[GhostSettings]:
    return [settings.model_copy(update={"width": share}) for share in _SHARES]


def _priced_alone(
    scan: Scan, block: InnerBlock, settings: GhostSettings, unfit: Mapping[str, Site], widths: Widths
) -> ThinSwap | Skip:
    """A swap of a block with its cost where no other is thinned."""
    swap = proposed(scan, block, settings, unfit, widths)
    if isinstance(swap, Skip):
        return swap
    whole, segments = Chosen.everything(followed(scan)), segments_of(block, swap)
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
    entries = (proposed(scan, block, settings, unfit, widths) for block in blocks)
    return tuple(priced(scan, [entry for entry in entries if isinstance(entry, ThinSwap)]))
