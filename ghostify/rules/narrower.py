"""Narrower copies of a whole network's layers, and the check that they do what the network does without the others.

Methods width and thin choose channels; what is built of those that are kept, and how it is checked, is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.channels import Channels, narrowed, silenced, sliced
from ghostify.errors import RewriteError
from ghostify.rules.base import Skip, Swap
from ghostify.rules.origins import Origins, index_of, part_or_none
from ghostify.running import THINNED, Failed, agree, attempt, coarsest, quiet
from ghostify.scanning import Scan, nodes_and_outputs
from ghostify.tracing import Traced, other_runs, without_numbers

_IDLE = "did not run on the example or in training, so it stays as it is, and so do the channels it may read"
_CLOSED = "is a G-Ghost stage, which keeps the channels that it reads and gives"


def steady(scan: Scan) -> list[Skip]:
    """The modules that keep what they read: those that did not run, and G-Ghost stages."""
    idle = [Skip(target=name, reason=_IDLE) for name in scan.idle]
    return idle + [Skip(target=name, reason=_CLOSED) for name in scan.closed]


def written(scan: Scan, told: Sequence[Swap | Skip]) -> list[Skip]:
    """The layers whose widths the network's code writes out, but for those of which something is told already."""
    known = {entry.target for entry in told}
    return [Skip(target=name, reason=reason) for name, reason in scan.written.items() if name not in known]


def narrower(channels: Channels, kept: np.ndarray, refused: str) -> dict[int, Any]:
    """By the ``id`` of each layer (and parameter outside of layers) that becomes narrower, what takes its place.

    ``kept`` says of each number of a channel whether it stays.  Raises ``RewriteError``, which begins with ``refused``,
    when the narrower network does not do what the network does with the others silenced.
    """
    memo = narrowed(channels, kept)
    _check(channels.traced, channels, memo, kept, refused)
    return memo


def add_origins(found: Origins, channels: Channels, kept: np.ndarray, module: nn.Module) -> None:
    """Add to ``found`` which outputs of the network's layers those in the rewritten ``module`` make."""
    traced, tensors = channels.traced, sliced(channels, kept)
    for name, outputs in channels.outputs_kept(kept).items():
        found.layers[name] = name, index_of(traced, name, outputs)
        found.weights[name] = tensors.get(id(getattr(part_or_none(traced.module, name), "weight", None)))
        if _differs(traced.module, module, name):
            found.roots.add(name)


def _differs(original: nn.Module, module: nn.Module, name: str) -> bool:
    """Whether a layer became narrower."""
    one, other = (getattr(part_or_none(network, name), "weight", None) for network in (original, module))
    return one is None or other is None or one.shape != other.shape


def _check(traced: Traced, channels: Channels, memo: dict[int, Any], kept: np.ndarray, refused: str) -> None:
    """Refuse a narrower network that fails, or does something else than the network with channels silenced."""
    # Code that asks for its size or its mode goes other ways there, of which the example shows nothing.
    for run in other_runs(traced):
        _require_run(run, copy.deepcopy(traced.module, dict(memo)), refused)
    inputs = [leaf for leaf in tree_leaves((traced.args, traced.kwargs)) if isinstance(leaf, Tensor)]
    # Without numbers there is nothing to compare but the shapes, which the rewrite does.
    if any(leaf.is_meta for leaf in inputs) or any(parameter.is_meta for parameter in traced.module.parameters()):
        return
    given = _run(traced, copy.deepcopy(traced.module, dict(memo)), refused)
    values = silenced(channels, kept, *inputs)
    wanted = [values[node] for node in nodes_and_outputs(traced)[1]]
    found = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    # NaN counts as the same as NaN, so two networks that give nothing else would agree.
    if not any(tensor.isfinite().any() for tensor in wanted):
        raise RewriteError(
            f"{refused}: it gives no finite number on the example, so nothing checks what it gives narrower; "
            "give another example."
        )
    if len(wanted) == len(found) and not _agree(wanted, found, values.values()):
        raise RewriteError(
            f"{refused}: narrower, it does not do what it does with the other channels silenced "
            "(a shuffle or the like needs keep: first, or other widths)."
        )


def _require_run(run: Traced, narrower: nn.Module, refused: str) -> None:
    """Refuse a narrower network that does not run where the network does: in training, or at another size."""
    inputs = [leaf for leaf in tree_leaves((run.args, run.kwargs)) if isinstance(leaf, Tensor)]
    if any(leaf.is_meta for leaf in inputs):
        narrower = without_numbers(narrower)
    where = " in training" if run.training else f" on {' and '.join('x'.join(map(str, leaf.shape)) for leaf in inputs)}"
    given = _run(run, narrower, refused, where)
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if sorted(shapes) != sorted(run.output_shapes):
        raise RewriteError(f"{refused}: narrower, its outputs have other shapes{where}.")


def _run(run: Traced, narrower: nn.Module, refused: str, where: str = "") -> Any:
    """What a narrower network, which nobody else has, gives in a run."""
    with quiet(narrower):
        narrower.train(run.training)
        try:
            return attempt(narrower, *copy.deepcopy((run.args, run.kwargs)))
        except Failed as problem:
            raise RewriteError(f"{refused}: its code does not run narrower{where} ({problem}).") from None


def _agree(wanted: list[Tensor], found: list[Tensor], values: Iterable[Any]) -> bool:
    precision = coarsest(values, torch.float32)
    return all(agree(*pair, THINNED, precision) for pair in zip(wanted, found, strict=True))
