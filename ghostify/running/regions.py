"""Regions: what a network switches while it runs (autocast, gradients), and what is switched around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import fx

_AUTOCASTS = ("cpu", "cuda")


def current_regions() -> tuple[bool, tuple[tuple[bool, torch.dtype], ...]]:
    """Whether gradients are on, and autocast by kind of device."""
    casts = ((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _AUTOCASTS)
    return torch.is_grad_enabled(), tuple(casts)


@contextmanager
def within_regions(node: fx.Node, differentiated: bool = False) -> Iterator[None]:
    """Autocast and gradients as they were when the node was recorded, where the network had switched them.

    What is ``differentiated`` has its gradients on all the same: a recording does not tell who had switched them off.
    """
    regions = node.meta.get("regions")
    if regions is None:
        yield
        return
    gradients, casts = regions
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradients or differentiated))
        for kind, now, then in zip(_AUTOCASTS, current_regions()[1], casts, strict=True):
            if now != then:
                stack.enter_context(torch.autocast(kind, enabled=then[0], dtype=then[1]))
        yield


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what is compiled as it was written, for a compiler does not call module by module."""
    if "torch._dynamo" not in sys.modules:
        yield  # nothing can be compiled, and the compiler takes long to load
        return
    with torch.compiler.set_stance("force_eager"):
        yield
