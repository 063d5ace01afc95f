"""Thinner copies of modules, and the original with the same channels silenced, to check them by."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghostify.channels.grouping import Channels, constant_along
from ghostify.channels.operations import REDUCTIONS
from ghostify.ghosts import CGhost
from ghostify.running import evaluating, op_name, run_node, within_regions
from ghostify.tracing import is_leaf

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.modules.batchnorm._NormBase,)


def thinned(channels: Channels, module: nn.Module, kept: np.ndarray, entry: np.ndarray | None = None) -> nn.Module:
    """A copy of ``module`` (a part of the network that was followed) with the ``kept`` channels alone.

    Weights, biases and statistics are sliced, and the layers' own numbers (``in_channels``, ``groups``) follow.
    ``entry`` holds instead of ``kept`` for what convolutions read directly of a block's input; where it is numbers, all
    of that is read, channels of the lowest numbers first.
    """
    memo = sliced(channels, kept, entry)
    result = copy.deepcopy(module, memo)
    return renumbered(module, result)


def renumbered(original: nn.Module, copied: nn.Module) -> nn.Module:
    """A copy with fewer channels, the numbers its layers keep beside their weights brought in line."""
    for old, new in zip(original.modules(), copied.modules(), strict=True):
        _renumber(old, new)
    return copied


def sliced(channels: Channels, kept: np.ndarray, entry: np.ndarray | None = None) -> dict[int, Any]:
    """By the ``id`` of each parameter and buffer that loses channels, its smaller copy: a memo for ``deepcopy``."""
    memo: dict[int, Any] = {}
    for name, dims in _indices(channels, kept, entry).items():
        tensor = _tensor(channels.traced.module, name)
        memo[id(tensor)] = _sliced(tensor, dims)
    for selection in channels.selections:
        mask = kept[selection.channels]
        if not mask.all():
            tensor = _tensor(channels.traced.module, selection.name)
            memo[id(tensor)] = _moved_up(tensor, torch.from_numpy(mask))
    return memo


def _moved_up(places: Tensor, mask: Tensor) -> Tensor:
    """The indices of what is kept by the mask, counted among what is kept."""
    mask = mask.to(places.device)
    # cumsum - 1 is the new index of each channel that is kept
    return (mask.cumsum(0) - 1)[places[mask[places]]].to(places.dtype)


def narrowed(channels: Channels, kept: np.ndarray) -> dict[int, Any]:
    """By the ``id`` of each layer of a whole network (and parameter outside of layers) that becomes narrower, what
    takes its place: a memo for ``deepcopy``.
    """
    traced, tensors = channels.traced, sliced(channels, kept)
    memo: dict[int, Any] = dict(tensors)
    for module in _layers(traced.module):
        if any(id(tensor) in tensors for tensor in [*module.parameters(), *module.buffers()]):
            memo[id(module)] = renumbered(module, copy.deepcopy(module, dict(tensors)))  # a memo used is a memo spoilt
    for module in traced.names:
        if isinstance(module, CGhost) and any(id(part) in memo for part in module.modules()):
            memo[id(module)] = _narrower_ghost(channels, module, memo, kept)
    return memo


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Modules without children, and convolutions that have some: one of a class of its own may pad by a module."""
    known = (*_CONVS, *_TRANSPOSED)
    for part in module.modules():
        if is_leaf(part) or isinstance(part, known) or not any(True for _ in part.children()):
            yield part


def _narrower_ghost(channels: Channels, ghost: CGhost, memo: dict[int, Any], kept: np.ndarray) -> CGhost:
    """A copy of a C-Ghost module that ran, with the parts that ``memo`` holds, its own numbers brought in line."""
    name = channels.traced.names[ghost][0]
    *_, last = (n for n in channels.nodes if n.op != "get_attr" and n.meta["module"] == name)
    copied = copy.deepcopy(ghost, dict(memo))
    copied.renumber(channels.width(last, kept))
    return copied


def _indices(channels: Channels, kept: np.ndarray, entry: np.ndarray | None) -> dict[str, dict[int, Tensor]]:
    """By parameter and dimension, the places kept."""
    indices: dict[str, dict[int, Tensor]] = {}
    for use in channels.uses:
        chosen = entry if use.entry and entry is not None else kept
        told = chosen[use.channels] if not use.lanes else _lanes_kept(channels, use.channels, chosen)
        places = np.flatnonzero(told) if told.dtype == bool else np.argsort(told, kind="stable")
        if not np.array_equal(places, np.arange(len(told))):
            indices.setdefault(use.name, {})[use.dim] = torch.from_numpy(places)
    return indices


def _lanes_kept(channels: Channels, group: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Of the inputs of a group, the places kept in the groups that are kept."""
    lane = channels.lane[channels.roots[group]]
    segment = channels.segment_of.get(int(channels.components[group[0]]))
    if segment is None:
        return np.ones(len(group), dtype=bool)
    # the filter's own inputs are told by the first group, which may itself be dropped: ask the groups that stay
    alive = np.isin(channels.components, channels.members[segment]) & kept
    return np.isin(lane, np.unique(channels.lane[channels.roots[np.flatnonzero(alive)]]))


def _sliced(tensor: Tensor, dims: dict[int, Tensor]) -> Tensor:
    value = tensor.detach()
    for dim, index in dims.items():
        value = value.index_select(dim, index.to(value.device))
    if not isinstance(tensor, nn.Parameter):
        return value.clone()
    return nn.Parameter(value.clone(), requires_grad=tensor.requires_grad)


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), last)
    return found


def _renumber(old: Any, new: Any) -> None:
    """Bring the numbers a layer keeps beside its weight in line with the weight."""
    weight: Any = getattr(new, "weight", None)
    if isinstance(new, _CONVS):
        out = weight.shape[0]
        if old.groups > 1:
            each = _per_group(old, new)
            new.groups = out // each
        new.out_channels, new.in_channels = out, weight.shape[1] * new.groups
    elif isinstance(new, _TRANSPOSED):
        new.in_channels, new.out_channels = weight.shape[0], weight.shape[1] * new.groups
    elif isinstance(new, nn.Linear):
        new.out_features, new.in_features = weight.shape
    elif isinstance(new, _BATCH_NORMS):
        known = next((t for t in (new.weight, new.running_mean) if t is not None), None)
        new.num_features = new.num_features if known is None else len(known)
    elif isinstance(new, nn.GroupNorm) and weight is not None:
        if old.num_groups > 1:
            new.num_groups = len(weight) * old.num_groups // old.num_channels
        new.num_channels = len(weight)
    elif isinstance(new, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        new.normalized_shape = tuple(weight.shape)
    elif isinstance(new, nn.PReLU):
        new.num_parameters = new.weight.numel()


def _per_group(old: Any, new: Any) -> int:
    """Filters of each group of a thinner grouped convolution, whose groups lose as large a share of either side."""
    each: int = old.out_channels // old.groups
    before, after = old.weight.shape[1], new.weight.shape[1]
    return each if before == after else each * after // before


# -- the check -------------------------------------------------------------------------------------------------


def silenced(channels: Channels, kept: np.ndarray, *inputs: Tensor) -> dict[fx.Node, Any]:
    """Run the followed part on the value of its entry (of a whole network: on its inputs), with every channel that is
    not kept set to zero wherever it appears; the value of each node.

    Statistics over the channels (layer norm, a mean) are taken over those kept, because a silent channel is none.
    """
    with evaluating(channels.traced.module), torch.no_grad():
        entries = [node for node in channels.nodes if node.op == "placeholder"] or [channels.entry]
        values: dict[fx.Node, Any] = {
            node: _masked(x.clone(), channels.ids[node], kept) for node, x in zip(entries, inputs, strict=True)
        }
        for node in channels.nodes:
            if node in values or node.op == "get_attr":
                continue
            values[node] = _masked(_run(channels, node, values, kept), channels.ids[node], kept)
        return values


def _masked(value: Any, ids: Any, kept: np.ndarray) -> Any:
    if isinstance(ids, list):
        return [_masked(v, i, kept) for v, i in zip(value, ids, strict=True)]
    return value * torch.from_numpy(kept)[ids].to(value.device)


def _run(channels: Channels, node: fx.Node, values: dict[fx.Node, Any], kept: np.ndarray) -> Any:
    def value(source: fx.Node) -> Any:
        if source not in values and source.op != "get_attr":  # computed from parameters alone
            values[source] = _run(channels, source, values, kept)
        if source in values:
            return values[source]
        found = channels.traced.tensor(source)
        return found if isinstance(found, nn.Parameter) else found.clone()  # a buffer may be counted up

    args: Any = fx.node.map_arg(node.args, value)
    kwargs: Any = fx.node.map_arg(node.kwargs, value)
    name = op_name(channels.traced, node)
    if name in ("LayerNorm", "layer_norm", "GroupNorm", "group_norm"):
        with within_regions(node):
            return _normalised(channels, node, args, kwargs, kept)
    if name in REDUCTIONS and isinstance(channels.ids[node], Tensor):
        args = (_without_silent(channels, node, value(node.all_input_nodes[0]), kept), *args[1:])
    return run_node(channels.traced, node, args, kwargs)


def _without_silent(channels: Channels, node: fx.Node, x: Tensor, kept: np.ndarray) -> Tensor:
    """What a mean (or the like) over the channels is taken of: those kept."""
    ids, out = channels.ids[node.all_input_nodes[0]], channels.ids[node]
    varying = [dim for dim in range(ids.dim()) if not constant_along(ids, dim)]
    if len(varying) != 1 or not all(constant_along(out, dim) for dim in range(out.dim())):
        return x
    for dim in range(ids.dim()):
        ids = ids if dim in varying else ids.narrow(dim, 0, 1)
    # a mean over silenced channels would divide by them, too
    index = torch.from_numpy(np.flatnonzero(kept[ids.reshape(-1).numpy()]))
    return x.index_select(varying[0], index.to(x.device))


def _normalised(channels: Channels, node: fx.Node, args: Any, kwargs: Any, kept: np.ndarray) -> Tensor:
    """A norm over channels, taken over those kept."""
    x: Tensor = args[0]
    layer = "ayer" in op_name(channels.traced, node)
    if node.op == "call_module":
        module: Any = channels.traced.leaf(node)
        weight, bias, eps = module.weight, module.bias, module.eps
        groups = 1 if layer else module.num_groups
    else:
        named = dict(zip(("input", "size", "weight", "bias", "eps"), args, strict=False)) | kwargs
        weight, bias, eps = named.get("weight"), named.get("bias"), named.get("eps", 1e-5)
        groups = 1 if layer else args[1] if len(args) > 1 else kwargs["num_groups"]
    ids = channels.ids[node]
    dim = x.dim() - 1 if layer else 1
    if groups > 1 or constant_along(ids, dim):
        return (
            F.group_norm(x, groups, weight, bias, eps)
            if not layer
            else F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        )
    numbers = ids
    for other in range(ids.dim()):
        numbers = numbers if other == dim else numbers.narrow(other, 0, 1)
    index = torch.from_numpy(np.flatnonzero(kept[numbers.reshape(-1).numpy()]))
    weight, bias = (t if t is None else t[index] for t in (weight, bias))
    # normalised among themselves, then put back between the silent ones
    part = _norm(x.index_select(dim, index), layer, 1, weight, bias, eps)
    return torch.zeros_like(x).index_copy(dim, index, part)


def _norm(x: Tensor, layer: bool, groups: int, weight: Any, bias: Any, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps) if layer else F.group_norm(x, groups, weight, bias, eps)
