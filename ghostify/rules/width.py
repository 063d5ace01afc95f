"""The width rule: every layer of a network becomes narrower by the same share; a baseline without ghosts.

    every convolution and linear layer   c → n   ⇒   w·c → w·n       (inputs and outputs of the network stay)

It is what the papers compare with (ResNet56-0.7x, ResNet34-0.8x), and it keeps the weights of the channels that stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ghostify.channels import Unreadable, follow, sliced, thinned
from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError
from ghostify.recipe import GhostSettings
from ghostify.rules.base import WidthSwap, thinner
from ghostify.scanning import Scan, network_nodes
from ghostify.tracing import Traced, is_leaf

WHOLE = "*"
"""Target of a swap that concerns the whole network."""


def propose(scan: Scan, settings: GhostSettings) -> WidthSwap:
    """The swap of a whole network.  Raises ``PlanError`` when its channels cannot be followed."""
    swap = WidthSwap(
        target=WHOLE,
        geometry=geometry(scan),
        width=settings.width,
        group_width=settings.group_width or settings.width,
        keep=settings.keep or "first",
        round_to=settings.round_to,
        rounding=settings.rounding,
    )
    return swap.model_copy(update={"before": scan.cost, "after": predict(scan, swap)})


def geometry(scan: Scan) -> str:
    """The network as a plan tells it."""
    return f"{len(scan.sites)} layers"


def predict(scan: Scan, swap: WidthSwap) -> Cost:
    """The exact cost of the narrower network.  Raises ``PlanError`` when it cannot be made."""
    if scan.coupling is None:
        raise PlanError(f"{scan.network} cannot be scaled as a whole: {scan.uncoupled or 'it was not scanned for it'}.")
    coupling = scan.coupling
    counts = coupling.keep(thinner(swap.width, swap.round_to, swap.rounding), swap.group_width)
    everything = [segment.size for segment in coupling.segments]
    return scan.cost - coupling.cost(0, everything) + coupling.cost(0, counts, swap.group_width)


def replacements(traced: Traced, swap: WidthSwap) -> dict[int, Any]:
    """By the ``id`` of each layer (and parameter outside of layers) that becomes narrower, what takes its place."""
    try:
        channels = follow(traced, *network_nodes(traced))
    except Unreadable as problem:
        raise RewriteError(f"{type(traced.module).__name__} cannot be scaled as a whole: {problem}.") from None
    counts = channels.coupling.keep(thinner(swap.width, swap.round_to, swap.rounding), swap.group_width)
    rank = channels.strengths() if swap.keep == "strongest" else None
    kept = channels.kept(counts, swap.group_width, rank)
    memo = sliced(channels, kept)
    for module in _layers(traced.module):
        if any(id(tensor) in memo for tensor in [*module.parameters(), *module.buffers()]):
            memo[id(module)] = thinned(channels, module, kept)
    return memo


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Modules without children."""
    return (part for part in module.modules() if is_leaf(part) or not any(True for _ in part.children()))
