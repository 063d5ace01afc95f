"""``optimize``: a network that trains → the same function in the form that runs fastest.

A deep copy again, as every rewrite: its memo holds what takes the place of each C-Ghost module, layer and norm.  What
hangs together is read off one recorded run; the result must give what the network gives on the example.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ghostify.arguments import example_input, network, or_none, takes
from ghostify.costs import cost_of
from ghostify.errors import RewriteError, TraceError
from ghostify.ghosts import CGhost
from ghostify.ghosts.c_ghost import CGhostLinear
from ghostify.inference.merging import merged
from ghostify.inference.norms import folds, with_norm, without_norm
from ghostify.inference.result import Change, Optimized
from ghostify.inference.selections import without_orders
from ghostify.module_calls import calls_of
from ghostify.planning import Plan
from ghostify.rewriting import Ghosted
from ghostify.running import REORDERED, agree, coarsest, quiet, random_states_kept, seed, undisturbed
from ghostify.scanning import scan
from ghostify.scanning.form import Form, example_for
from ghostify.tracing import Traced, call_arguments, cloned, private_copy, tensors_in, trace


def _given(value: Any) -> Any:
    """A rewritten network, the whole of one rewritten in parts, or any network."""
    value = getattr(value, "whole", value)
    return value if isinstance(value, Ghosted) else network(value)


@takes(ghosted=_given, example=or_none(example_input))
@undisturbed()
def optimize(ghosted: Ghosted | nn.Module, example: Any = None) -> Optimized:
    """The inference form of a rewritten network (or of any): equal to it in eval mode, and faster.

    C-Ghost modules that mix their intrinsic maps become two plain convolutions, batch norms are folded into the layers
    before them, and on a CPU the weights are laid out with their channels last.  What ``convert`` or ``load`` gave
    needs no ``example``; of another network it is one input, as ``trace`` takes it.  The network itself stays as it is,
    and is the one to train.

    Raises ``TraceError`` when it cannot be recorded or there is no example of what it takes, ``RewriteError`` when the
    result would compute something else.
    """
    trained = ghosted if isinstance(ghosted, Ghosted) else None
    module = network(ghosted)
    traced = trace(module, _example_of(trained, module) if example is None else example)
    result, changes = in_inference_form(traced)
    wanted = _outputs(traced.module, traced.example)
    again = _checked(traced, result, wanted)
    result = _in_channels_last(result, traced.example, wanted)
    if trained is None:
        seen = scan(traced)
        unchanged = Plan(network=seen.network, inputs=seen.inputs, before=seen.cost, after=seen.cost)
        trained = Ghosted(module, unchanged, seen, seen)
    return Optimized(
        result,
        trained.plan,
        trained.before,
        trained.after,
        trained.fit,
        trained.notes,
        inference=cost_of(again),
        changes=changes,
    )


def in_inference_form(traced: Traced) -> tuple[nn.Module, tuple[Change, ...]]:
    """A copy of the traced module in its inference form, in eval mode, and what was changed; nothing is checked.

    What changes depends on the structure of the network alone, and not on its weights: so a network built anew from
    its source takes the weights of any other that was optimised.
    """
    made = _merged_ghosts(traced)
    module, reordered = without_orders(traced, made)
    if reordered:
        traced = trace(module, traced.example, verify=False)
        made = _merged_ghosts(traced)
    changes = [Change(target=name, what="reordered") for name in reordered]
    changes += [Change(target=name, what="merged") for name in made]
    memo: dict[int, Any] = {id(traced.part(name)): layers for name, layers in made.items()}
    for fold in folds(traced, made):
        layer, norm = traced.part(fold.layer), traced.part(fold.norm)
        memo[id(layer)] = with_norm(memo.get(id(layer), layer), norm)
        memo[id(norm)] = without_norm(traced, fold.norm)
        changes.append(Change(target=fold.norm, what="folded", into=fold.layer))
    return copy.deepcopy(traced.module, memo).eval(), tuple(changes)


def _merged_ghosts(traced: Traced) -> dict[str, nn.Module]:
    """By name of a C-Ghost module that becomes plain layers, these."""
    made: dict[str, nn.Module] = {}
    for module, names in traced.names.items():
        if isinstance(module, CGhost) and (layers := merged(module, _reads_vectors(traced, module, names[0]))):
            made[names[0]] = layers
    return made


def _reads_vectors(traced: Traced, ghost: CGhost, name: str) -> bool:
    """Whether a ghost stands for a linear layer that was given vectors, (N, c), in every call."""
    if not isinstance(ghost, CGhostLinear):
        return False
    calls = calls_of(traced, name)
    return bool(calls) and all(len(read.meta["shapes"][0]) == 2 for call in calls for read in call.reads)


def _in_channels_last(result: nn.Module, example: Any, wanted: list[Tensor]) -> nn.Module:
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
        return laid if _gives(laid, example, wanted) else result
    except Exception:  # whatever code says to maps of another order
        return result


# -- the example, and the check ------------------------------------------------------------------------------------


def _example_of(trained: Ghosted | None, module: nn.Module) -> Any:
    """An input like the one that a network was converted with."""
    form = Form.of_scan(trained.before) if trained else None
    if form is None or not form.kinds:
        raise TraceError(
            f"Nothing says what {type(module).__name__} takes; give one input of it: optimize(network, example)."
        )
    with random_states_kept(torch.device("cpu")):
        seed()
        return example_for(module, form, random=True)


def _checked(traced: Traced, result: nn.Module, wanted: list[Tensor]) -> Traced:
    """The result, recorded.  Raises ``RewriteError`` where it does not give what the network gives."""
    try:
        again = trace(result, traced.example, verify=False)
    except TraceError as problem:
        raise RewriteError(f"The inference form does not run: {problem}") from problem
    if not _gives(result, traced.example, wanted) and not _agree_in_double(traced):
        raise RewriteError(
            f"The inference form of {type(result).__name__} gives other outputs than the network, because its code "
            "asks what its layers are, or changes what they give; use the network as it is."
        )
    return again


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
