"""The stages of a network, found on its recorded graph and not by names.

A stage is n ≥ 3 blocks in a row of one width and resolution, of which the first may downsample or widen (IJCV, Sec. 4).
How it is found:

1. *Regions.*  Over the nodes between inputs and outputs, b follows a when b is the nearest post-dominator of a and a
   the nearest dominator of b: whatever leaves a enters b, and nothing else does.  Such links form chains, and the
   nodes between two links are a region with one entry and one exit.  The node before a chain may be read elsewhere
   too (by an FPN, say), and so may its last.  Chains lie inside the regions of others: a branch of HRNet, of a CSP net.
2. *Pieces.*  A region with a convolution or linear layer on the full map is a piece.  Weightless regions join the
   piece before, as long as they keep the shape (a pool between two pieces belongs to neither); so do gates (SE, CBAM);
   a depthwise convolution joins the piece after it.
3. *Runs.*  A block is one to three pieces (``period``) that give back the shape they take; a run is blocks in a row
   with the same convolutions (kernel, and dense, grouped or depthwise).  The stage's first block is what stands
   before the run with a matching set of convolutions, a shortcut's projection allowed, else the first of the run.
4. *Choice.*  At least one spatial convolution; longer runs first, outer chains before the ones inside their regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import fx

from ghostify.errors import PlanError
from ghostify.stages.building import Description, named_region
from ghostify.stages.flow import Flow, chains
from ghostify.stages.pieces import Chain, Span
from ghostify.stages.runs import fitted, runs
from ghostify.stages.stage import MIN_BLOCKS, Block, Modules, Stage
from ghostify.tracing import Traced

__all__ = ["Block", "Modules", "Stage", "find_stages", "name_stage", "stage_nodes"]


def find_stages(traced: Traced) -> list[Stage]:
    """The stages of a recorded network in the order they run; none where it has none that can be read."""
    flow = Flow(traced)
    taken: set[int] = set()
    found: list[tuple[Chain, list[Span]]] = []
    for nodes in sorted(chains(flow), key=lambda nodes: nodes[0] - nodes[-1]):  # outer chains first
        if taken.isdisjoint(nodes[1:]):
            chain = Chain(flow, nodes)
            for spans in fitted(chain, runs(chain)):
                found.append((chain, spans))
                taken.update(chain.nodes(spans[0].start, spans[-1].end))
    described = Description(flow)
    return [described.stage(chain, spans) for chain, spans in sorted(found, key=lambda one: one[0].at[one[1][0].end])]


def stage_nodes(traced: Traced, stage: Stage) -> list[list[fx.Node]]:
    """The nodes of each block in the order they run: its exit, and what lies between entry and exit.

    What a block computes from parameters alone (a standardised weight) is not among them.
    """
    flow = Flow(traced)
    at = {node.name: index for index, node in enumerate(flow.nodes)}
    return [[flow.nodes[index] for index in flow.between(at[block.entry], at[block.exit])] for block in stage.blocks]


def name_stage(traced: Traced, modules: Sequence[str]) -> Stage:
    """The stage whose blocks are these modules, one after the other, whether or not it would have been found.

    Raises ``PlanError`` where they are no such thing.
    """
    flow = Flow(traced)
    regions = [named_region(flow, name) for name in modules]
    for (first, one), (second, other) in pairwise(zip(modules, regions, strict=True)):
        if other[0] != one[-1]:
            raise PlanError(f"{second!r} does not read what {first!r} gives, so they are no blocks of one stage.")
    described = Description(flow)
    stage = described.of([(region[0], region[1:]) for region in regions])
    uneven = next((b for b in stage.blocks[1:] if not b.in_shape == b.out_shape == stage.blocks[0].out_shape), None)
    if len(modules) < MIN_BLOCKS or uneven:
        why = f"{uneven.name!r} changes its maps' shape" if uneven else f"a stage has at least {MIN_BLOCKS} blocks"
        raise PlanError(f"The blocks {modules[0]!r} to {modules[-1]!r} are no stage: {why}.")
    return stage
