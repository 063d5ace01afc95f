"""After the closed form, a short descent: the network's outputs, as a whole, are brought nearer to the original's.

No labels: the loss is the squared difference of the outputs over their variance.  Norms stay lines, as in eval mode.
After each pass over the images the error on those held out decides; what was best is kept, which may be the beginning.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.batches import Batch, call
from ghostify.tracing import cloned

_RATE = 3e-4
_PATIENCE = 3
"""Passes without progress that end it."""


def polish(
    original: nn.Module, module: nn.Module, seen: Sequence[Batch], held: Sequence[Batch], seconds: float
) -> tuple[float, float]:
    """Train ``module`` in place (both networks in eval mode) for so many seconds; the held-out error before and after.

    Without ``held`` batches nothing could be judged, so nothing is done.
    """
    wanted, aims = ([_outputs(original, batch) for batch in part] for part in (seen, held))
    before = best = _error(module, held, aims)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not held or not parameters:
        return before, before
    kept = copy.deepcopy(module.state_dict())
    optimizer, began, idle = torch.optim.Adam(parameters, _RATE), time.perf_counter(), 0
    while idle < _PATIENCE and time.perf_counter() - began < seconds:
        _one_pass(module, optimizer, seen, wanted, began + seconds)
        error = _error(module, held, aims)
        idle = 0 if error < best else idle + 1
        if error < best:
            best, kept = error, copy.deepcopy(module.state_dict())
    module.load_state_dict(kept)
    return before, best


def _one_pass(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    wanted: Sequence[list[Tensor]],
    until: float,
) -> None:
    for batch, aims in zip(batches, wanted, strict=True):
        with torch.enable_grad():
            found = [leaf for leaf in tree_leaves(call(module, cloned(batch))) if _learns(leaf)]
            loss = torch.stack([_missed(one, aim) for one, aim in zip(found, aims, strict=True)]).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        # One pass over many images may take longer than there is time.
        if time.perf_counter() > until:
            break
    optimizer.zero_grad()


def _outputs(module: nn.Module, batch: Batch) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(call(module, cloned(batch))) if _learns(leaf)]


def _learns(leaf: Any) -> bool:
    """Whether a gradient can come of an output: not of whole numbers, such as classes chosen within the network."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _error(module: nn.Module, batches: Sequence[Batch], aims: Sequence[list[Tensor]]) -> float:
    missed = [
        _missed(one, other)
        for batch, aim in zip(batches, aims, strict=True)
        for one, other in zip(_outputs(module, batch), aim, strict=True)
    ]
    return float(torch.stack(missed).mean()) if missed else 0.0


def _missed(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared difference in shares of what is wanted's variance over the batch, of what is finite in both."""
    both = found.isfinite() & wanted.isfinite()
    # Replaced before they are subtracted: masked afterwards, a NaN would still be in the gradient.
    found, wanted = found.where(both, 0.0), wanted.where(both, 0.0)
    variance = (wanted - wanted.mean(0)).square().mean()
    return (found - wanted).square().mean() / variance.clamp_min(torch.finfo(wanted.dtype).tiny)
