"""Batch norms in eval mode, folded into the layer before them (``torch.nn.utils.fusion`` has the arithmetic).

    BN(w * x + b) = (a w) * x + a (b − μ) + β        a = γ / √(σ² + ε), a number for each filter

Which norm stands behind which layer is read off the recorded graph, not off names.  A norm is folded where it reads
all that the layer gives and nothing else, in every call of either.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ghostify.ghosts import CGhost
from ghostify.ghosts.narrowing import Conv, has_hooks, has_own_forward, holds_its_weights
from ghostify.inference.merging import with_weights
from ghostify.module_calls import ModuleCall, calls_of
from ghostify.running import op_name
from ghostify.tracing import Traced

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Layer = Conv | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear


@dataclass(frozen=True)
class Fold:
    """A norm, and the layer (or merged ghost) that takes it in, by their names."""

    layer: str
    norm: str


def folds(traced: Traced, merged: Iterable[str]) -> list[Fold]:
    """The norms of a recorded network that can be folded; ``merged`` are C-Ghost modules that become plain layers."""
    return _Folding(traced, merged).found()


class _Folding:
    def __init__(self, traced: Traced, merged: Iterable[str]) -> None:
        self.traced, self.merged = traced, set(merged)
        self.read = _parameters_read(traced)
        self.givers: dict[fx.Node, str] = {}
        """By the node that gives what a layer gives, the layer."""
        for module, names in traced.names.items():
            if self._is_layer(module, names[0]):
                self.givers |= {node: names[0] for call in calls_of(traced, names[0]) for node in call.gives}

    def found(self) -> list[Fold]:
        norms = [names[0] for module, names in self.traced.names.items() if _is_norm(module)]
        candidates = (self._fold(name) for name in norms)
        return [fold for fold in candidates if fold is not None]

    def _fold(self, name: str) -> Fold | None:
        """The norm with the layer that it can be folded into, if there is one."""
        norm, calls = self.traced.part(name), calls_of(self.traced, name)
        if not calls or not all(call.is_plain and _is_bare(self.traced, call) for call in calls):
            return None
        sources = [call.reads[0] for call in calls]
        # A norm that is called more than once is folded once, so it must stand behind one layer every time.
        layers = {self.givers.get(source) for source in sources}
        layer = layers.pop()
        if layers or layer is None or not self._reads_all_of(layer, sources, calls):
            return None
        if self._is_read_elsewhere(norm, calls) or not _norms_channels(self.traced.part(layer), norm, sources):
            return None
        return Fold(layer, name)

    def _is_layer(self, module: nn.Module, name: str) -> bool:
        """Whether a norm could be folded into a module: a plain layer whose weights are its own, or a merged ghost."""
        if isinstance(module, CGhost):
            return name in self.merged
        if not isinstance(module, Layer) or has_hooks(module) or not holds_its_weights(module):
            return False
        if isinstance(module, _TRANSPOSED):
            usual = module.groups == 1  # of several groups, no dimension of the weight is all the maps
        elif has_own_forward(module):
            usual = False  # what it convolves with is not its weight
        else:
            usual = True
        return usual and not self._is_read_elsewhere(module, calls_of(self.traced, name))

    def _reads_all_of(self, layer: str, sources: list[fx.Node], calls: list[ModuleCall]) -> bool:
        """Whether these calls of a norm are all that reads a layer's outputs, one call for one output."""
        outputs = [node for node, giver in self.givers.items() if giver == layer]
        inside = {node for call in calls for node in call.nodes}
        # What reads an output and is no call of the norm (a second norm, a tap, a hook) would see it normed.
        alone = all(user in inside or _is_idle(self.traced, user) for node in outputs for user in node.users)
        return alone and len(set(sources)) == len(sources) and set(sources) == set(outputs)

    def _is_read_elsewhere(self, module: nn.Module, calls: Iterable[ModuleCall]) -> bool:
        """Whether the network reads a parameter of a module (``x.to(self.conv.weight.dtype)``) but in calls of it."""
        inside = {node for call in calls for node in call.nodes}
        held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        return any(not inside.issuperset(self.read.get(id(tensor), ())) for tensor in held)


def _parameters_read(traced: Traced) -> dict[int, list[fx.Node]]:
    """By the ``id`` of a tensor that a module holds, the nodes that read it themselves and not by a layer."""
    read: dict[int, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr" and node.target not in traced.constants:
            read.setdefault(id(traced.tensor(node)), []).extend(node.users)
    return read


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose statistics are fixed in eval mode."""
    if not isinstance(module, _BatchNorm) or has_hooks(module):
        return False
    return module.running_mean is not None and module.running_var is not None and holds_its_weights(module)


def _is_bare(traced: Traced, call: ModuleCall) -> bool:
    """Whether a norm's call is that operation, and after it (in a class of its own) only modules in a row."""
    first, *others = [node for node in call.nodes if not _is_idle(traced, node)]
    norms = first.op == "call_module" or op_name(traced, first) == "batch_norm"
    row = zip([first, *others], others, strict=False)
    return norms and all(node.op == "call_module" and node.all_input_nodes == [before] for before, node in row)


def _is_idle(traced: Traced, node: fx.Node) -> bool:
    """Whether a node is an ``Identity`` that nobody reads: who reads what it gives was recorded to read its input."""
    return not node.users and node.op == "call_module" and isinstance(traced.leaf(node), nn.Identity)


def _norms_channels(layer: nn.Module, norm: nn.Module, sources: list[fx.Node]) -> bool:
    """Whether what is normed is what the layer has filters for: a norm of rows of vectors norms the rows."""
    assert isinstance(norm, _BatchNorm)
    last = isinstance(layer, nn.Linear) or type(layer).__name__ == "CGhostLinear"
    shapes = [tuple(source.meta["shapes"][0]) for source in sources]
    fits = all(shape[1] == norm.num_features for shape in shapes)
    return fits and (not last or all(len(shape) == 2 for shape in shapes))


# -- the arithmetic ------------------------------------------------------------------------------------------------


def with_norm(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A copy of a layer (of the last one, in a row of them) with a norm folded in, in float64 and then rounded."""
    if isinstance(layer, nn.Sequential):
        return copy.deepcopy(layer, {id(layer[-1]): with_norm(layer[-1], norm)})
    assert isinstance(norm, _BatchNorm)
    held: Any = layer
    weight, bias = fuse_conv_bn_weights(
        _double(held.weight),
        _double(held.bias),
        _double(norm.running_mean),
        _double(norm.running_var),
        norm.eps,
        _double(norm.weight),
        _double(norm.bias),
        transpose=isinstance(layer, _TRANSPOSED),
    )
    # The copy is made of a layer without weights, for these are replaced.
    empty = copy.deepcopy(layer, {id(parameter): parameter for parameter in layer.parameters()})
    return with_weights(empty, weight, bias, held.weight)


def without_norm(traced: Traced, name: str) -> nn.Module:
    """What takes the place of a folded norm: nothing, or the modules that a class of its own calls after it."""
    (call, *_) = calls_of(traced, name)
    after = [copy.deepcopy(traced.leaf(node)) for node in call.nodes[1:] if not _is_idle(traced, node)]
    if not after:
        return nn.Identity()
    return after[0] if len(after) == 1 else nn.Sequential(*after)


def _double(value: Tensor | None) -> Any:
    return None if value is None else value.detach().double()
