"""Code as people write it: each hard net is rewritten and stays what it was, or is refused in one clear line."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from hard_nets import HARD_NETS, Hard
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from zoo import run

from ghostify import Ghosted, GhostSettings, Plan, Traced, plan, rewrite, scan, trace
from ghostify.errors import GhostifyError
from ghostify.ghosts import CGhost
from ghostify.recipe import Role

EAGER = GhostSettings(also=get_args(Role), min_saving=0, pointwise="none")
"""Everything that can become a ghost does, and nothing but what the papers have."""
NETS = {net.name: net for net in HARD_NETS}
WORKING = [net for net in HARD_NETS if not net.refused]
REFUSED = [net for net in HARD_NETS if net.refused]


def over(nets: list[Hard]) -> Any:
    """One test for each net, with the warnings it has leave to give."""
    cases = [
        pytest.param(net, id=net.name, marks=[pytest.mark.filterwarnings(f"ignore:{text}") for text in net.warnings])
        for net in nets
    ]
    return pytest.mark.parametrize("net", cases)


each_net, each_working, each_refused = over([*HARD_NETS]), over(WORKING), over(REFUSED)
each_mode = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@dataclass
class Rewritten:
    """One net taken through trace, scan, plan and rewrite."""

    model: nn.Module
    traced: Traced
    plan: Plan
    ghosted: Ghosted


def chapters(model: nn.Module, example: Any) -> Rewritten:
    traced = trace(model, example)
    proposal = plan(scan(traced), EAGER)
    return Rewritten(model, traced, proposal, rewrite(traced, proposal))


@cache
def rewritten(name: str) -> Rewritten:
    """Shared by the tests, which run copies."""
    return chapters(NETS[name].build(), NETS[name].example())


def result(net: Hard) -> nn.Module:
    """The rewritten net, to be run and changed."""
    return copy.deepcopy(rewritten(net.name).ghosted.module)


def output(module: nn.Module, net: Hard, training: bool) -> Any:
    """What ``module`` gives, from a fixed random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run(module.train(training), net.example())


def form(value: Any) -> Any:
    """A structure with shapes, dtypes and devices in place of tensors."""
    if isinstance(value, Tensor):
        return type(value), tuple(value.shape), value.dtype, value.device.type
    if isinstance(value, dict):
        return type(value), {key: form(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [form(item) for item in value]
    if value is None or isinstance(value, (int, float, str)):
        return value
    if dataclasses.is_dataclass(value):
        return type(value), [form(getattr(value, part.name)) for part in dataclasses.fields(value)]
    return type(value), form(vars(value))


def found_tensors(value: Any) -> list[Tensor]:
    """Tensors wherever ``form`` looks."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return found_tensors(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in found_tensors(item)]
    if dataclasses.is_dataclass(value):
        return found_tensors([getattr(value, part.name) for part in dataclasses.fields(value)])
    return found_tensors(vars(value)) if hasattr(value, "__dict__") else []


def same(one: Tensor, other: Tensor) -> bool:
    if one.is_meta or other.is_meta or is_lazy(one):
        return type(one) is type(other) and one.is_meta == other.is_meta
    return torch.equal(one, other)


def seen(model: nn.Module) -> dict[str, Any]:
    """What its owner could notice a change in: modules, modes, hooks, plain attributes, tensors by identity."""
    noticed: dict[str, Any] = {"call": nn.Module.__call__, "random": torch.get_rng_state().tolist()}
    for name, module in model.named_modules(remove_duplicate=False):
        attributes = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        noticed[f"{name}: module"] = (id(module), type(module), module.training, attributes, hooks)
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        noticed[f"{name}: tensor"] = (id(tensor), tensor._version, tensor.requires_grad, tensor.grad)
    return noticed


def values(model: nn.Module) -> dict[str, Tensor]:
    held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor if is_lazy(tensor) else tensor.detach().clone() for name, tensor in held}


def swapped(the: Rewritten, name: str) -> bool:
    """Whether a tensor of that name is of a layer that was swapped, under any name of it."""
    layers = {the.model.get_submodule(swap.target) for swap in the.plan.swaps}
    modules = dict(the.model.named_modules(remove_duplicate=False))
    return any(name.startswith(f"{owner}.") for owner, module in modules.items() if module in layers)


# -- every net -------------------------------------------------------------------------------------------------


@each_net
def test_the_model_given_is_untouched(net: Hard) -> None:
    """Whatever the outcome: its modules, modes, hooks, attributes and weights, and the state of torch around it."""
    model = net.build()
    before, weights = seen(model), values(model)
    try:
        chapters(model, net.example())
    except GhostifyError:
        assert net.refused
    assert seen(model) == before
    assert [name for name, value in values(model).items() if not same(value, weights[name])] == []


@each_refused
def test_a_refusal_is_one_line_that_says_what_is_wrong(net: Hard) -> None:
    with pytest.raises(GhostifyError) as caught:
        chapters(net.build(), net.example())
    message = str(caught.value)
    assert net.refused in message
    assert "\n" not in message and len(message) < 500
    assert not any(inside in message for inside in ("Traceback", "While executing", "torch._", "site-packages"))


# -- those that work ---------------------------------------------------------------------------------------------


@each_working
def test_every_layer_becomes_a_ghost_or_stays_for_its_reason(net: Hard) -> None:
    the = rewritten(net.name)
    reasons = {skip.target: skip.reason for skip in the.plan.skips}
    assert reasons.keys() == net.kept.keys()
    assert [target for target, words in net.kept.items() if words not in reasons[target]] == []
    assert len(the.plan.swaps) == net.swaps
    assert all(isinstance(the.ghosted.module.get_submodule(swap.target), CGhost) for swap in the.plan.swaps)


@each_working
def test_what_the_recording_cannot_vouch_for_is_said(net: Hard) -> None:
    doubts = rewritten(net.name).traced.doubts
    assert any(net.doubt in doubt for doubt in doubts) if net.doubt else not doubts


@each_mode
@each_working
def test_the_rewritten_net_gives_what_the_net_gives(net: Hard, training: bool) -> None:
    """In the same structure, of the same shapes, dtypes and devices, and finite."""
    found = output(result(net), net, training)
    assert form(found) == form(output(net.build(), net, training))
    assert all(tensor.isfinite().all() for tensor in found_tensors(found) if not tensor.is_meta)


@each_working
def test_ghosts_learn_where_the_layers_learnt(net: Hard) -> None:
    """In train mode a gradient reaches each filter of a ghost whose layer got one."""
    the = rewritten(net.name)
    old, new = (trained(module, net) for module in (net.build(), result(net)))
    layers = {swap.target: old.get_submodule(swap.target) for swap in the.plan.swaps}
    learnt = [target for target, layer in layers.items() if any(p.grad is not None for p in layer.parameters())]
    assert learnt or net.name == "only-its-input"
    for target in learnt:
        assert all(parameter.grad is not None for parameter in new.get_submodule(target).parameters()), target


def trained(module: nn.Module, net: Hard) -> nn.Module:
    outputs = [tensor for tensor in found_tensors(output(module, net, True)) if tensor.requires_grad]
    if outputs:
        sum(tensor.abs().float().mean() for tensor in outputs).backward()
    return module


@each_working
def test_what_is_no_ghost_keeps_its_names_and_values(net: Hard) -> None:
    the = rewritten(net.name)
    kept = {name: value for name, value in values(the.model).items() if not swapped(the, name)}
    after = values(the.ghosted.module)
    assert [name for name in after if not swapped(the, name)] == list(kept)
    assert [name for name, value in kept.items() if not same(value, after[name])] == []
    assert [module.training for module in the.model.children()] == [
        module.training for module in the.ghosted.module.children()
    ]


@each_working
def test_the_cost_is_the_one_foretold_and_the_result_can_be_recorded_again(net: Hard) -> None:
    the = rewritten(net.name)
    assert the.plan.after == the.ghosted.after.cost
    assert scan(trace(the.ghosted.module, net.example())).cost == the.plan.after


@each_working
def test_a_copy_of_the_rewritten_net_gives_the_same(net: Hard) -> None:
    one, other = (found_tensors(output(module, net, False)) for module in (result(net), copy.deepcopy(result(net))))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_the_table_names_each_net_once_and_holds_both_outcomes() -> None:
    assert len(NETS) == len(HARD_NETS) >= 30
    assert len(REFUSED) >= 5 and any(net.kept for net in HARD_NETS) and any(net.doubt for net in HARD_NETS)
