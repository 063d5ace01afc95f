"""Other runs of a recorded network: what its example did not show of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ghostify.errors import TraceError
from ghostify.tracing.again import recorded_again
from ghostify.tracing.traced import Traced
from ghostify.tracing.training import may_differ_in_training


def other_runs(traced: Traced) -> list[Traced]:
    """The network recorded in training, and on maps of twice and of half the size, where it runs so and does anything
    else than on its example.

    They are not verified: they tell which other ways the code may go, and nobody runs them.
    """
    if traced.others is None:
        known = {_course(traced)}
        traced.others = []
        for run in _recorded(traced):
            if _course(run) not in known:
                known.add(_course(run))
                traced.others.append(run)
    return traced.others


def _recorded(traced: Traced) -> Iterator[Traced]:
    """Those runs that may show anything: in training, code that asks for the mode or has modules that did not run; at
    other sizes, code that asks for sizes."""
    others: list[Traced | None] = []
    if may_differ_in_training(traced):
        in_training = _attempted(traced, _as_it_is, training=True) or _attempted(traced, _two_samples, training=True)
        others.append(in_training)
    if traced.reads_sizes:
        others += [_attempted(traced, _larger), _attempted(traced, _smaller)]
    yield from (run for run in others if run is not None)


def _attempted(traced: Traced, change: Callable[[Tensor], Tensor], training: bool = False) -> Traced | None:
    """The network on a changed example, where it runs on it."""
    with suppress(TraceError):
        return recorded_again(traced.module, tree_map_only(Tensor, change, traced.example), training=training)
    return None


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _two_samples(x: Tensor) -> Tensor:
    """A batch norm cannot learn from a single value."""
    return torch.cat([x, x]) if x.dim() and len(x) == 1 else x


def _larger(x: Tensor) -> Tensor:
    """(N, c, H, W) → (N, c, 2 H, 2 W), and the like of other dimensions."""
    return x.repeat(1, 1, *[2] * (x.dim() - 2)) if x.dim() > 2 else x


def _smaller(x: Tensor) -> Tensor:
    """(N, c, H, W) → (N, c, H/2, W/2), and the like of other dimensions."""
    return x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.dim() - 2))].contiguous() if x.dim() > 2 else x


def _course(traced: Traced) -> tuple[Any, ...]:
    """What ran on what, whatever the sizes and the mode."""
    index = {node: place for place, node in enumerate(traced.graph.nodes)}
    return tuple((node.op, node.target, *map(index.__getitem__, node.all_input_nodes)) for node in traced.graph.nodes)
