"""Layers that multiply by weights and that no rule takes, each with the reason."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torchvision.ops import DeformConv2d

from ghostify.names import within
from ghostify.scanning.obstacles import IDLE
from ghostify.scanning.sites import weighted_calls
from ghostify.tracing import Traced

_LAYERS = (nn.Linear, DeformConv2d, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def others_in(traced: Traced, sites: Collection[str]) -> dict[str, str]:
    """What multiplies by weights and is none of the ``sites``, by name, and why it is left alone.

    What lies in another such layer is told with that.
    """
    calls = weighted_calls(traced)
    ran = {str(node.target if node.op == "call_module" else node.meta.get("module")) for node in traced.graph.nodes}
    others: dict[str, str] = {}
    for module, names in traced.names.items():
        known = names[0] in sites or any(within(name, home) for name in names for home in others)
        if isinstance(module, _LAYERS) and not known:
            did_run = module in calls or any(within(node, name) for node in ran for name in names)
            others[names[0]] = _reason(module) if did_run else IDLE
    return others


def _reason(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "is a linear layer on tokens, which have no neighbours that a cheap operation could look at"
    if isinstance(module, DeformConv2d):
        return "is a DeformConv2d, which reads each image at places of its own, as no C-Ghost module does"
    return f"is a layer of class {type(module).__name__}, not a convolution, and C-Ghost modules replace convolutions"
