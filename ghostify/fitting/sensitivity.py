"""How much errors of a layer's outputs matter to what the network gives: one pass backwards through the original.

    M = E[Jᵀ J]      J: derivatives of the network's outputs, each over its deviation, by a layer's sums z

An error e there changes the outputs by about J e, so eᵀMe is what it does in the mean (Gauss-Newton).  J itself would
take as many passes as there are outputs; a random projection of them takes one, and has the same mean: with g = Jᵀε,
ε ~ N(0, I), E[g gᵀ] = E[Jᵀ J].  Places and images are averaged over, so M is as small as a covariance, (n, n).

No weight is changed by it.  It says which of a layer's errors may be made where not all can be avoided: which m
combinations of its outputs a ghost keeps (``leastsquares/principal``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ghostify.batches import Batch, count, per_sample, split
from ghostify.fitting.interpreter import Interpreter
from ghostify.leastsquares.principal import shares
from ghostify.tracing import Traced, sized_as, tensors_of_call

_IMAGES = 256
"""Images that are looked at, as far as there are so many."""
_PROJECTIONS = 2
"""Random projections of the outputs of each image."""
_NUMBERS = 2**22
"""Numbers in the images that are looked at: of large ones, fewer are, because a pass backwards takes as long as two."""
_AT_ONCE = 2**18
"""Numbers in the images that are looked at together."""
_OWN = 0.3
"""How much the norms' slopes count beside it: few images know little of directions that mattered in none of them."""
_FAINT = 1e-6


def metric(weights: Tensor, sensitivity: Tensor) -> Tensor:
    """Λ (n, n), by which an error of outputs counts: by what it does, and by weights of its own (n,)."""
    own = torch.diag(shares(weights, _FAINT))
    total = sensitivity.diagonal().sum()
    if not total > 0:
        return own
    return sensitivity * (own.diagonal().sum() / total) + _OWN * own


def sensitivities(
    traced: Traced, root: nn.Module, batches: Sequence[Batch], nodes: Collection[fx.Node]
) -> dict[fx.Node, Tensor]:
    """M (n, n) of each node that the outputs depend on, in float64; channels are the second dimension, or the last.

    ``root`` has the weights of ``traced``; batches are of any size.
    """
    found: dict[fx.Node, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    parts = _parts(batches) if nodes else []
    for part in parts:
        run = _sized(traced, part)
        # The run of another size has nodes of its own, under the same names.
        twins = {node.name: node for node in nodes}
        sensed = [node for node in run.graph.nodes if node.name in twins]
        for node, gradient in _gradients(_Sensing(run, root, part, sensed), generator):
            rows = gradient.movedim(_channels(run, node), -1).flatten(0, -2)
            twin = twins[node.name]
            found[twin] = found.get(twin, 0) + (rows.T @ rows).double()
    return found


def _parts(batches: Sequence[Batch]) -> list[Batch]:
    """The images that are looked at, as few at a time as memory wants: values on the way wait for their gradients."""
    each = max(1, sum(leaf[0].numel() for leaf in per_sample(batches[0])))
    size = max(1, min(count(batches[0]), _AT_ONCE // each))
    enough = max(1, min(_IMAGES, _NUMBERS // each) // size)
    parts = [part for batch in batches for part in split(batch, size) if count(part) == size]
    # Some of every batch, for these may be few.
    return parts[:: max(1, len(parts) // enough)][:enough]


def _sized(traced: Traced, part: Batch) -> Traced:
    """The run at the size of a part; where that is its own, it is not recorded again."""
    shapes = [tuple(tensor.shape) for tensor in tensors_of_call(part)]
    return traced if shapes == [tuple(shape) for shape in traced.input_shapes] else sized_as(traced, part)


class _Sensing(Interpreter):
    """A walk on which gradients of some values can be asked for."""

    differentiated = True

    def __init__(self, traced: Traced, root: nn.Module, batch: Batch, nodes: Collection[fx.Node]) -> None:
        super().__init__(traced, root, [batch])
        self.nodes_sensed = nodes
        self.sensed: dict[fx.Node, Tensor] = {}
        for node in self.outputs:
            self.keep(node)

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        made = super()._run(node, values)
        if node in self.nodes_sensed and isinstance(made, Tensor) and made.is_floating_point():
            # What reads frozen weights has no gradient yet.
            self.sensed[node] = made if made.requires_grad else made.requires_grad_()
        return made


def _gradients(walk: _Sensing, generator: torch.Generator) -> list[tuple[fx.Node, Tensor]]:
    """Gradients of random projections of all outputs, by node; none of a network that torch cannot differentiate."""
    found = []
    with torch.enable_grad():
        try:
            walk.advance(len(walk.nodes))
            outputs = [y for node in walk.outputs if _depends(y := walk.values[0][node])]
            for _ in range(_PROJECTIONS if outputs and walk.sensed else 0):
                total = torch.stack([_projected(y, generator) for y in outputs]).sum()
                gradients = torch.autograd.grad(total, list(walk.sensed.values()), retain_graph=True, allow_unused=True)
                found += [(node, g) for node, g in zip(walk.sensed, gradients, strict=True) if g is not None]
        except RuntimeError:
            # An operation without a derivative; its forward pass alone was seen to run.
            return []
    return found


def _depends(y: Any) -> bool:
    """Whether an output depends on values that gradients are asked for."""
    return isinstance(y, Tensor) and y.is_floating_point() and y.requires_grad


def _projected(y: Tensor, generator: torch.Generator) -> Tensor:
    """Σ ε y / σ over all numbers of an output; what is masked has no derivative."""
    finite = y.isfinite()
    y = torch.where(finite, y, 0.0)
    noise = torch.randn(y.shape, generator=generator).to(y)
    return (noise * y).sum() / y.detach().std().clamp_min(1e-12)


def _channels(traced: Traced, node: fx.Node) -> int:
    """The dimension of a value's channels."""
    linear = node.op == "call_module" and isinstance(traced.leaf(node), nn.Linear)
    return -1 if linear else 1
