"""Whether an inference form gives what its network gives, and the layout of weights that it gives it fastest with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ghostify.errors import RewriteError, TraceError
from ghostify.inference.structure import in_inference_form
from ghostify.running import REORDERED, agree, coarsest, quiet, seed
from ghostify.tracing import Recording, Traced, call_arguments, cloned, private_copy, tensors_in, trace


def checked(traced: Traced, result: nn.Module) -> Traced:
    """A run of the result.  Raises ``RewriteError`` where it does not give what the network gives."""
    try:
        again = trace(result, traced.example, verify=False)
    except TraceError as problem:
        raise RewriteError(f"The inference form does not run: {problem}") from problem
    if not _gives(result, traced.example, _outputs(traced.module, traced.example)) and not _agree_in_double(traced):
        raise RewriteError(
            f"The inference form of {type(result).__name__} gives other outputs than the network, because its code "
            "asks what its layers are, or changes what they give; use the network as it is."
        )
    return again


def in_channels_last(recording: Recording, result: nn.Module) -> nn.Module:
    """The result with the channels of its weights next to each other in memory: eager PyTorch keeps to that from layer
    to layer, and on a CPU its convolutions are 1.1 to 2 times as fast.

    As it is on other devices, and where code views a map as if it lay in the order (N, c, H, W).
    """
    if any(parameter.device.type != "cpu" for parameter in result.parameters()):
        return result
    laid = copy.deepcopy(result)
    for parameter in laid.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        runs = recording.parts
        parts = {name: laid.get_submodule(name) for name in runs}
        same = all(_gives(parts[name], run.example, _outputs(run.module, run.example)) for name, run in runs.items())
        if recording.whole is None:
            _outputs(laid, recording.example)  # the code around the parts may view their maps, too
        return laid if same else result
    except Exception:  # whatever code says to maps of another order
        return result


def _gives(module: nn.Module, example: Any, wanted: list[Tensor]) -> bool:
    """Whether a module gives what is wanted, as near as sums in another order can."""
    found = _outputs(module, example)
    precision = coarsest(wanted, torch.float32)
    pairs = zip(wanted, found, strict=False)
    return len(wanted) == len(found) and all(agree(one, other, REORDERED, precision) for one, other in pairs)


def _agree_in_double(traced: Traced) -> bool:
    """Whether the same change of the same network in float64 changes nothing.

    Some networks, untrained ones above all, make much of a rounding error, and other sums round in another way.
    """
    module = copy.deepcopy(traced.module).double()
    example = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, traced.example)
    try:
        wide = trace(module, example, verify=False)
        return _gives(in_inference_form(wide)[0], example, _outputs(module, example))
    except TraceError:
        return False  # its code takes no numbers of another type


def _outputs(module: nn.Module, example: Any) -> list[Tensor]:
    """What a copy of a module gives in eval mode; a copy, because running may change a module."""
    twin = private_copy(module, share_parameters=False)
    args, kwargs = cloned(call_arguments(example))
    with quiet(twin):
        seed()
        return tensors_in(twin(*args, **kwargs))
