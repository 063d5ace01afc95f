"""Layers that multiply by weights and that no rule takes, each with the reason."""

from __future__ import annotations

import sys
from collections.abc import Collection

from torch import nn

from ghostify.names import within
from ghostify.scanning.obstacles import IDLE
from ghostify.scanning.sites import weighted_calls
from ghostify.tracing import Traced

_LAYERS = (nn.Linear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def others_in(traced: Traced, sites: Collection[str]) -> dict[str, str]:
    """What multiplies by weights and is none of the ``sites``, by name, and why it is left alone.

    What lies in another such layer is told with that.
    """
    calls = weighted_calls(traced)
    ran = {str(node.target if node.op == "call_module" else node.meta.get("module")) for node in traced.graph.nodes}
    others: dict[str, str] = {}
    for module, names in traced.names.items():
        known = names[0] in sites or any(within(name, home) for name in names for home in others)
        if not known and (isinstance(module, _LAYERS) or _is_deformable(module)):
            did_run = module in calls or any(within(node, name) for node in ran for name in names)
            others[names[0]] = _reason(module) if did_run else IDLE
    return others


def _is_deformable(module: nn.Module) -> bool:
    """Whether it is a DeformConv2d of torchvision's."""
    # importing torchvision takes as long as importing torch, and who has no such layer need not wait for it
    vision = sys.modules.get("torchvision.ops")
    return vision is not None and isinstance(module, vision.DeformConv2d)


def _reason(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "is a linear layer on tokens, which have no neighbours that a cheap operation could look at"
    if _is_deformable(module):
        return "is a DeformConv2d, which reads each image at places of its own, as no C-Ghost module does"
    return f"is a layer of class {type(module).__name__}, not a convolution, and C-Ghost modules replace convolutions"
