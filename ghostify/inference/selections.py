"""The order of a C-Ghost module's outputs, folded into the layers that read them.

    B · f(Y[order]) = B' · f(Y)        B'[:, order[c]] = B[:, c]

for an f that treats every channel by itself: norms, activations, depthwise convolutions and poolings take their numbers
along.  Only a module with depthwise filters needs this; what merges into plain layers is put in order by its rows.  An
order stays where anything else reads the outputs, above all an addition: what is added has an order, too.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from dataclasses import dataclass, field

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ghostify.channels.operations import POINTWISE, SPATIAL
from ghostify.ghosts import CGhost
from ghostify.ghosts.narrowing import Conv, dimensions, has_hooks, has_own_forward, holds_its_weights
from ghostify.module_calls import calls_of, read_weights
from ghostify.running import op_name
from ghostify.tracing import Traced


def without_orders(traced: Traced, merged: Container[str]) -> tuple[nn.Module, list[str]]:
    """A copy in which orders of C-Ghost modules are folded where they can be, and the names of these modules.

    ``merged`` are modules that need no such thing.
    """
    readers = _Readers(traced)
    memo: dict[int, Tensor] = {}
    done: list[str] = []
    for module, names in traced.names.items():
        if not isinstance(module, CGhost) or module.order is None or names[0] in merged or has_hooks(module):
            continue
        reach = readers.of(names[0])
        if reach is not None:
            memo |= reach.reordered(module.order)
            done.append(names[0])
    result = copy.deepcopy(traced.module, memo)
    for name in done:
        result.get_submodule(name).order = None  # type: ignore[assignment]
    return result, done


@dataclass
class _Reach:
    """What an order reaches: tensors with a number for each channel, and weights that read all of them."""

    by_channel: list[Tensor] = field(default_factory=list)
    """(n, …)"""
    reading: list[Tensor] = field(default_factory=list)
    """(k, n, …)"""

    def reordered(self, order: Tensor) -> dict[int, Tensor]:
        """By the ``id`` of each tensor, what it is when channels come as they are made."""
        back = order.argsort()
        rows = {id(tensor): _like(tensor, tensor.detach()[back]) for tensor in self.by_channel}
        return rows | {id(tensor): _like(tensor, tensor.detach()[:, back]) for tensor in self.reading}


class _Readers:
    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.lent = read_weights(traced, traced.module)
        self.owners: dict[int, int] = {}
        for module in traced.names:
            for tensor in _held(module):
                self.owners[id(tensor)] = self.owners.get(id(tensor), 0) + 1

    def of(self, name: str) -> _Reach | None:
        """What the order of a C-Ghost module reaches; None where it goes anywhere that it cannot be folded."""
        calls = calls_of(self.traced, name)
        if len(calls) != 1 or not calls[0].is_plain or not _is_batched(self.traced.part(name), calls[0].gives[0]):
            return None
        reach, waiting, seen = _Reach(), list(calls[0].gives), set[fx.Node]()
        while waiting:
            for user in waiting.pop().users:
                goes_on = None if user.op == "output" else self._goes_on(user, reach)
                if goes_on is None:
                    return None
                if goes_on and user not in seen:
                    waiting.append(user)
                seen.add(user)
        return reach

    def _goes_on(self, node: fx.Node, reach: _Reach) -> bool | None:
        """Whether channels come out of a node as they went in; None where it can have no other order."""
        kind = op_name(self.traced, node)
        if len(node.all_input_nodes) == 1 and (kind in POINTWISE | SPATIAL or _pools(kind, node)):
            return True
        if node.op != "call_module":
            return None
        layer = self.traced.leaf(node)
        if not self._is_own(layer, str(node.target)):
            return None
        if isinstance(layer, _BatchNorm) or _is_depthwise(layer):
            reach.by_channel += [tensor for tensor in _held(layer) if tensor.dim()]
            return True
        if (isinstance(layer, Conv) and layer.groups == 1) or _is_on_vectors(layer, node):
            reach.reading.append(layer.weight)  # type: ignore[arg-type]
            return False
        return None

    def _is_own(self, layer: nn.Module, name: str) -> bool:
        """Whether a layer runs once, and its numbers are its own, of which nobody else reads any."""
        if has_hooks(layer) or not holds_its_weights(layer) or len(calls_of(self.traced, name)) != 1:
            return False
        if isinstance(layer, Conv) and has_own_forward(layer):
            return False
        return all(self.owners[id(tensor)] == 1 and id(tensor) not in self.lent for tensor in _held(layer))


def _held(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _is_batched(ghost: nn.Module, output: fx.Node) -> bool:
    """Whether a ghost gives a batch of maps, with their channels in dimension 1."""
    conv = next(part for part in ghost.modules() if isinstance(part, Conv))
    return type(ghost) is CGhost and len(output.meta["shapes"][0]) == dimensions(conv) + 2


def _pools(kind: str, node: fx.Node) -> bool:
    """Whether a node makes vectors of maps, (N, n, H, W) → (N, n): by their mean, or because they are of one place."""
    before, after = (tuple(one.meta["shapes"][0]) for one in (node.all_input_nodes[0], node))
    if kind in ("flatten", "Flatten"):
        return before[:2] == after
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    return kind == "mean" and isinstance(dims, (tuple, list)) and all(dim % len(before) > 1 for dim in dims)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, Conv) and layer.groups == layer.in_channels == layer.out_channels


def _is_on_vectors(layer: nn.Module, node: fx.Node) -> bool:
    return isinstance(layer, nn.Linear) and len(node.meta["shapes"][0]) == 2


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    value = value.contiguous()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
