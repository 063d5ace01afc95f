"""What must hold on any network, written once and run on the whole zoo."""

from __future__ import annotations

import copy
import io
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, Net, run

from ghostify import Ghosted, Plan, Scan, Traced, load, plan, read_plan, rewrite, save, scan, trace
from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, CGhostLinear, GGhostStage
from ghostify.planning import check
from ghostify.recipe import GhostSettings, Role
from ghostify.rewriting import counted as counted_cost
from ghostify.rules import GGhostSwap, Swap

EAGER = GhostSettings(also=get_args(Role), min_saving=0)
"""Everything that can become a ghost does."""
SETTINGS = {"c-ghost": EAGER, "g-ghost": GhostSettings(method="g-ghost")}
NETS = {net.name: net for net in ZOO}
STAGED = [net for net in ZOO if net.stages]
each_net = pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)
each_staged = pytest.mark.parametrize("net", STAGED, ids=lambda net: net.name)
each_case = pytest.mark.parametrize(
    ("net", "method"),
    [
        *(pytest.param(net, "c-ghost", id=net.name) for net in ZOO),
        *(pytest.param(net, "g-ghost", id=f"{net.name}-g-ghost") for net in STAGED),
    ],
)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONV_CALLS = ("aten.convolution", "aten._convolution")


@dataclass
class Case:
    """One net taken through trace, scan, plan and rewrite."""

    model: nn.Module
    example: Any
    traced: Traced
    scan: Scan
    plan: Plan
    ghosted: Ghosted
    before: dict[str, Any]
    """What could be seen of the model and its epilogue before the four chapters, and after them."""
    after: dict[str, Any]


@cache
def case(name: str, method: str = "c-ghost") -> Case:
    net = NETS[name]
    model, example = net.build(), net.example()
    before = visible(model, example)
    traced = trace(model, example)
    found = scan(traced)
    proposal = plan(found, SETTINGS[method])
    ghosted = rewrite(traced, proposal)
    return Case(model, example, traced, found, proposal, ghosted, before, visible(model, example))


def visible(model: nn.Module, example: Any) -> dict[str, Any]:
    """Everything about ``model``, ``example`` and the random states that somebody could notice a change in."""
    seen: dict[str, Any] = {
        "torch random": torch.get_rng_state().tolist(),
        "python random": random.getstate(),
        "numpy random": str(np.random.get_state()),
        "gradients on": torch.is_grad_enabled(),
        "module call": nn.Module.__call__,
        "example": [(leaf.tolist(), leaf._version) for leaf in tree_leaves(example) if isinstance(leaf, Tensor)],
    }
    for name, module in model.named_modules(remove_duplicate=False):
        seen[f"{name}: module"] = (id(module), type(module), module.training)
        seen[f"{name}: attributes"] = {key: plain(value) for key, value in vars(module).items()}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        seen[f"{name}: tensor"] = (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.grad)
        seen[f"{name}: value"] = tensor.detach().clone().tolist()
    return seen


def plain(value: Any) -> Any:
    """An attribute as something that can be compared: containers by their contents, objects by identity."""
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def own_copy(value: Any) -> Any:
    return copy.deepcopy(value)


def evaluated(model: nn.Module, example: Any) -> list[Tensor]:
    """The outputs of a copy in eval mode."""
    with torch.no_grad():
        return tensors(run(copy.deepcopy(model).eval(), own_copy(example)))


def trained(module: nn.Module, example: Any) -> nn.Module:
    """A copy of ``module`` in train mode after one forward and backward pass."""
    module = copy.deepcopy(module).train()
    outputs = tensors(run(module, own_copy(example)))
    sum(output.float().pow(2).mean() for output in outputs if output.requires_grad).backward()
    return module


def ghosts(module: nn.Module) -> dict[str, CGhost]:
    return {name: part for name, part in module.named_modules() if isinstance(part, CGhost)}


def storages(module: nn.Module) -> set[int]:
    held = [*module.parameters(), *module.buffers()]
    held += [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in held}


def is_swapped(name: str, swapped: set[str]) -> bool:
    return any(name == target or name.startswith(target + ".") for target in swapped)


def swapped_names(case: Case) -> set[str]:
    """Every name, aliases too, under which something was swapped."""
    touched = [case.model.get_submodule(name) for swap in case.ghosted.plan.swaps for name in swap.touches]
    return {name for name, module in case.model.named_modules(remove_duplicate=False) if module in touched}


def same(tensor: Tensor, other: Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(tensor, other)


def flops(model: nn.Module, example: Any) -> int:
    """torch's own count, in multiply-accumulates."""
    with FlopCounterMode(display=False) as counter:
        run(copy.deepcopy(model).eval(), own_copy(example))
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


# -- the model given -------------------------------------------------------------------------------------------


@each_case
def test_the_model_and_its_surroundings_are_untouched(net: Net, method: str) -> None:
    """Weights, buffers, attributes, hooks, modes, gradients, random states and nn.Module are as they were."""
    the = case(net.name, method)
    assert the.after.keys() == the.before.keys()
    assert [key for key in the.before if the.after[key] != the.before[key]] == []


@each_net
def test_the_recording_computes_what_the_model_computes(net: Net) -> None:
    the = case(net.name)
    shapes = [tuple(output.shape) for output in evaluated(the.model, the.example)]
    assert the.traced.output_shapes == shapes
    assert the.traced.input_shapes == [tuple(leaf.shape) for leaf in tensors(the.example)]
    assert not the.traced.doubts


# -- the plan --------------------------------------------------------------------------------------------------


@each_net
def test_every_convolution_is_a_swap_or_a_skip_with_a_reason(net: Net) -> None:
    """Every convolution module is named once, under one of its names; no reason is empty or ends as a sentence."""
    the = case(net.name)
    said = [entry.target for entry in (*the.plan.swaps, *the.plan.skips)]
    assert len(said) == len(set(said))
    names: dict[nn.Module, list[str]] = {}
    for name, module in the.model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, known in names.items():
        if isinstance(module, CONVS):
            assert len(set(known) & set(said)) == 1
    assert all(skip.reason.strip() and not skip.reason.endswith(".") for skip in the.plan.skips)
    assert len(the.plan.swaps) == net.swaps


@each_net
def test_every_convolution_call_is_counted_at_a_site(net: Net) -> None:
    """torch dispatches as many convolutions as the sites claim, by module or by function."""
    the = case(net.name)
    with FlopCounterMode(display=False) as counter:
        run(copy.deepcopy(the.model).eval(), own_copy(the.example))
    dispatched = sum(
        flops // 2
        for operation, flops in counter.get_flop_counts().get("Global", {}).items()
        if str(operation) in CONV_CALLS
    )
    assert sum(site.cost.macs for site in the.scan.sites if site.kind != "linear") == dispatched


@each_net
def test_default_settings_only_ever_do_less(net: Net) -> None:
    """The defaults swap a part of what can be swapped, and speak of the same layers."""
    the = case(net.name)
    cautious = plan(the.scan)
    assert {swap.target for swap in cautious.swaps} <= {swap.target for swap in the.plan.swaps}
    said = {entry.target for entry in (*cautious.swaps, *cautious.skips)}
    assert said == {entry.target for entry in (*the.plan.swaps, *the.plan.skips)}


@each_case
def test_a_plan_survives_its_file(net: Net, method: str, tmp_path: Path) -> None:
    the = case(net.name, method)
    path = tmp_path / "plan.yaml"
    path.write_text(the.plan.to_yaml(), encoding="utf-8")
    assert read_plan(path) == the.plan
    assert check(the.plan, the.scan) == the.plan
    path.write_text(the.plan.model_dump_json(), encoding="utf-8")
    assert read_plan(path) == the.plan


@each_net
def test_planning_a_ghosted_model_again_proposes_nothing(net: Net) -> None:
    again = plan(case(net.name).ghosted.after, EAGER)
    assert not again.swaps
    assert any("already" in skip.reason for skip in again.skips)


# -- the costs -------------------------------------------------------------------------------------------------


@each_case
def test_predicted_cost_is_counted_cost(net: Net, method: str) -> None:
    """Per swap and whole, before and after."""
    the = case(net.name, method)
    assert the.plan.before == the.scan.cost
    assert the.plan.after == the.ghosted.after.cost
    for swap in the.plan.swaps:
        assert held(swap, the.ghosted.before) == swap.before
        assert counted_cost(swap, the.ghosted.before, the.ghosted.after) == swap.after


@each_net
def test_pointwise_convolutions_cost_what_is_predicted_and_change_nothing_yet(net: Net) -> None:
    """Beside filters they begin at zero, so that the network does what it does with the papers' ghosts."""
    the = case(net.name)
    papers = rewrite(the.traced, plan(the.scan, EAGER, cheap="depthwise 3"))
    ghosted = rewrite(the.traced, plan(the.scan, EAGER, cheap="depthwise 3 + pointwise"))
    assert ghosted.plan.after == ghosted.after.cost
    assert [swap.target for swap in ghosted.plan.swaps] == [swap.target for swap in the.plan.swaps]
    assert any(swap.cheap.pointwise for swap in ghosted.plan.swaps)
    old, new = (evaluated(module, the.example) for module in (papers.module, ghosted.module))
    assert all(torch.equal(one, other) for one, other in zip(old, new, strict=True))


def held(swap: Swap, found: Scan) -> Cost:
    """What a swap's target costs by count, module by module or block by block."""
    stage = found.stage(swap.blocks) if isinstance(swap, GGhostSwap) else None
    return found.within(swap.target) if stage is None else sum((block.cost for block in stage.blocks), Cost())


@each_case
def test_parameters_are_those_pytorch_reports(net: Net, method: str) -> None:
    the = case(net.name, method)
    assert the.scan.cost.params == sum(p.numel() for p in the.model.parameters()) == sum(the.scan.params.values())
    assert the.ghosted.after.cost.params == sum(p.numel() for p in the.ghosted.module.parameters())


@each_case
def test_macs_are_those_of_the_flop_counter(net: Net, method: str) -> None:
    the = case(net.name, method)
    assert the.scan.cost.macs == flops(the.model, the.example)
    assert the.ghosted.after.cost.macs == flops(the.ghosted.module, the.example)


@pytest.mark.parametrize("name", ["plain", "bottlenecks", "grouped", "mobile", "unet", "odd", "signal", "video"])
def test_macs_are_those_of_fvcore(name: str) -> None:
    the = case(name)
    for module, counted in ((the.model, the.scan), (the.ghosted.module, the.ghosted.after)):
        assert counted.cost.macs == fvcore_macs(module, the.example)


def fvcore_macs(module: nn.Module, example: Any) -> int:
    """Convolutions and linear layers by fvcore, which traces with TorchScript."""
    inputs = example if isinstance(example, tuple) else (example,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore uses what torch has deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(copy.deepcopy(module).eval(), inputs).unsupported_ops_warnings(False)
        found = analysis.uncalled_modules_warnings(False).tracer_warnings("none").by_operator()
    return sum(int(found[kind]) for kind in ("conv", "linear", "addmm", "matmul"))


# -- the ghosted module ----------------------------------------------------------------------------------------


@each_case
def test_the_output_keeps_its_structure_shape_and_dtype(net: Net, method: str) -> None:
    the = case(net.name, method)
    old, new = evaluated(the.model, the.example), evaluated(the.ghosted.module, the.example)
    assert [(out.shape, out.dtype) for out in new] == [(out.shape, out.dtype) for out in old]
    assert all(out.isfinite().all() for out in new)
    with torch.no_grad():
        kept, given = (
            type(run(copy.deepcopy(m).eval(), own_copy(the.example))) for m in (the.ghosted.module, the.model)
        )
    assert kept is given


@each_net
def test_every_swap_is_a_ghost_under_every_name_of_its_layer(net: Net) -> None:
    the = case(net.name)
    new = the.ghosted.module
    for swap in the.plan.swaps:
        site = the.scan.site(swap.target)
        assert site is not None
        ghost = new.get_submodule(swap.target)
        assert type(ghost) is (CGhostLinear if site.kind == "linear" else CGhost)
        assert (ghost.s, ghost.operation) == (swap.s, swap.cheap)
        assert all(new.get_submodule(alias) is ghost for alias in site.aliases)
    assert len(ghosts(new)) == len(the.plan.swaps)


@each_case
def test_untouched_layers_keep_their_names_and_state(net: Net, method: str) -> None:
    """Bit-equal parameters and buffers under the same names, in the same classes and modes, frozen as they were."""
    the = case(net.name, method)
    swapped = swapped_names(the)
    old, new = (dict(m.named_modules(remove_duplicate=False)) for m in (the.model, the.ghosted.module))
    kept = [name for name in old if not is_swapped(name, swapped)]
    assert kept == [name for name in new if not is_swapped(name, swapped)]
    for name in kept:
        assert type(new[name]) is type(old[name]) or hasattr(old[name], "parametrizations")
        assert new[name].training == old[name].training
        assert len(new[name]._forward_hooks) == len(old[name]._forward_hooks)
    assert_state_kept(the.model, the.ghosted.module, swapped)


def assert_state_kept(old: nn.Module, new: nn.Module, swapped: set[str]) -> None:
    def state(model: nn.Module) -> dict[str, Tensor]:
        held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        return {name: tensor for name, tensor in held if not is_swapped(name.rpartition(".")[0], swapped)}

    before, after = state(old), state(new)
    assert list(after) == list(before)
    assert [name for name in before if not same(before[name], after[name])] == []
    assert [t.requires_grad for t in after.values()] == [t.requires_grad for t in before.values()]
    assert [type(t) for t in after.values()] == [type(t) for t in before.values()]


@each_case
def test_the_ghosted_module_remembers_nothing_of_being_recorded(net: Net, method: str) -> None:
    """Plain attributes, such as counters and caches, are those of the model given."""
    the = case(net.name, method)
    swapped = swapped_names(the)
    old, new = (dict(m.named_modules(remove_duplicate=False)) for m in (the.model, the.ghosted.module))
    for name in (name for name in old if not is_swapped(name, swapped)):
        before, after = (
            {k: v for k, v in vars(m[name]).items() if v is None or isinstance(v, (bool, int, float, str, Tensor))}
            for m in (old, new)
        )
        assert after == before


@each_case
def test_nothing_is_shared_with_the_model_given(net: Net, method: str) -> None:
    the = case(net.name, method)
    assert storages(the.model).isdisjoint(storages(the.ghosted.module))
    assert not set(the.model.modules()) & set(the.ghosted.module.modules())


@each_case
def test_ties_among_untouched_layers_are_kept(net: Net, method: str) -> None:
    """Two names of one parameter before are two names of one parameter after."""
    the = case(net.name, method)
    swapped = swapped_names(the)

    def groups(model: nn.Module) -> list[list[str]]:
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not is_swapped(name.rpartition(".")[0], swapped):
                names.setdefault(id(parameter), []).append(name)
        return list(names.values())

    assert groups(the.ghosted.module) == groups(the.model)


@each_net
def test_ghosts_take_over_dtype_mode_and_frozenness(net: Net) -> None:
    the = case(net.name)
    for name, ghost in ghosts(the.ghosted.module).items():
        old = the.model.get_submodule(name)
        assert all(part.training == old.training for part in ghost.modules())
        for parameter in ghost.parameters():
            assert (parameter.dtype, parameter.device) == (old.weight.dtype, old.weight.device)
            assert parameter.requires_grad == old.weight.requires_grad


@each_case
def test_gradients_reach_every_trainable_parameter(net: Net, method: str) -> None:
    """In train mode, wherever they reached in the model given; and every ghost's filters get some that are not zero."""
    the = case(net.name, method)
    new, old = trained(the.ghosted.module, the.example), trained(the.model, the.example)
    without = {name for name, p in old.named_parameters() if p.grad is None}
    for name, parameter in new.named_parameters():
        if name not in without and parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for name, ghost in ghosts(new).items():
        for part, parameter in ghost.named_parameters():
            if part.endswith("weight") and parameter.requires_grad:
                assert parameter.grad.abs().sum() > 0, f"{name}.{part}"


@pytest.mark.parametrize(
    ("net", "method"),
    [
        *(pytest.param(net, "c-ghost", id=net.name) for net in ZOO),
        *(pytest.param(net, "g-ghost", id=f"{net.name}-g-ghost") for net in STAGED),
    ],
)
def test_batch_norms_learn_their_statistics_in_train_mode(net: Net, method: str) -> None:
    the = case(net.name, method)
    new = trained(the.ghosted.module, the.example)
    for name, norm in norms(new):
        was = the.ghosted.module.get_submodule(name)
        assert norm.num_batches_tracked > was.num_batches_tracked
        assert not torch.equal(norm.running_mean, was.running_mean)


def norms(module: nn.Module) -> Iterator[tuple[str, Any]]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return ((name, part) for name, part in module.named_modules() if isinstance(part, kinds))


@each_case
def test_the_ghosted_module_can_be_copied_saved_and_loaded(net: Net, method: str) -> None:
    """deepcopy, a state dict into a fresh copy, and (where the model given can) a pickle: all give equal outputs."""
    the = case(net.name, method)
    new = the.ghosted.module
    expected = evaluated(new, the.example)
    copies = [copy.deepcopy(new), *([pickled(new)] if net.pickles else [])]
    blank = copy.deepcopy(new)
    with torch.no_grad():
        for tensor in (*blank.parameters(), *blank.buffers()):
            tensor.zero_()
    blank.load_state_dict(new.state_dict(), strict=True)
    if all(name in new.state_dict() for name, _ in new.named_buffers()):
        copies.append(blank)
    for other in copies:
        assert all(torch.equal(a, b) for a, b in zip(evaluated(other, the.example), expected, strict=True))


def pickled(module: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@each_case
def test_the_ghosted_module_goes_through_the_chapters_itself(net: Net, method: str) -> None:
    """It can be traced with verification by replay, and counts the same again."""
    the = case(net.name, method)
    again = scan(trace(the.ghosted.module, the.example))
    assert again.model_copy(update={"stages": (), "searched": False}) == the.ghosted.after  # it looks for no stages


@each_case
def test_planning_and_rewriting_are_deterministic(net: Net, method: str) -> None:
    """Another recording of an equal net, at another random state, gives the same plan and bit-equal weights."""
    the = case(net.name, method)
    traced = trace(net.build(), net.example())
    again = plan(scan(traced), SETTINGS[method])
    assert again == the.plan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        module = rewrite(traced, again).module
    state, expected = module.state_dict(), the.ghosted.module.state_dict()
    assert list(state) == list(expected)
    assert [name for name, value in expected.items() if not same_value(value, state[name])] == []


def same_value(value: Any, other: Any) -> bool:
    return same(value, other) if isinstance(value, Tensor) else value == other


@each_case
def test_a_run_folder_gives_the_ghosted_module_back(net: Net, method: str, tmp_path: Path) -> None:
    """Saved and loaded with the original's architecture, the outputs are bit-equal, and so are plan and scans."""
    the = case(net.name, method)
    save(the.ghosted, tmp_path / "run")
    again = load(tmp_path / "run", model=net.build(), example=net.example())
    assert (again.plan, again.before, again.after) == (the.ghosted.plan, the.ghosted.before, the.ghosted.after)
    pairs = zip(evaluated(again.module, the.example), evaluated(the.ghosted.module, the.example), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# -- stages ----------------------------------------------------------------------------------------------------


@each_staged
def test_every_stage_is_a_swap_or_a_skip_and_every_convolution_beside_them_a_skip(net: Net) -> None:
    """Each convolution lies in a stage that is swapped, or is named once with a reason."""
    the = case(net.name)
    proposal = plan(the.scan, method="g-ghost")
    assert len(proposal.swaps) == net.stages
    said = [entry.target for entry in (*proposal.swaps, *proposal.skips)]
    assert len(said) == len(set(said)) and {stage.name for stage in the.scan.stages} <= set(said)
    swapped = [stage for swap in proposal.swaps if (stage := the.scan.stage(swap.blocks))]
    for site in the.scan.sites:
        assert (site.name in said) != any(stage.holds(site.name) for stage in swapped)
    assert all(skip.reason.strip() and not skip.reason.endswith(".") for skip in proposal.skips)


@pytest.mark.parametrize("net", [net for net in ZOO if not net.stages], ids=lambda net: net.name)
def test_a_net_without_a_stage_is_refused(net: Net) -> None:
    """It is told so, or what stands in the way of the stages it has."""
    the = case(net.name)
    reason = "changes nothing" if the.scan.stages else "has no stage"
    with pytest.raises(PlanError, match=reason) as refused:
        rewrite(the.traced, plan(the.scan, method="g-ghost"))
    assert all(stage.obstacle and stage.obstacle in str(refused.value) for stage in the.scan.stages)


@each_staged
def test_every_swapped_stage_is_a_g_ghost_stage_in_place_of_its_second_block(net: Net) -> None:
    the = case(net.name, "g-ghost")
    new = the.ghosted.module
    for swap in the.plan.swaps:
        stage = the.scan.stage(swap.blocks)
        assert stage is not None
        ghosted = new.get_submodule(stage.slot)
        assert type(ghosted) is GGhostStage and ghosted.width == stage.width
        assert len(ghosted.thin) == stage.n - 1 - swap.end
        others = [name for block in stage.blocks[1:] for name in block.modules if name != stage.slot]
        assert all(type(new.get_submodule(name)) is nn.Identity for name in others)
    assert sum(isinstance(part, GGhostStage) for part in new.modules()) == net.stages


@each_staged
def test_a_g_ghost_stage_takes_over_dtype_mode_and_what_learns(net: Net) -> None:
    the = case(net.name, "g-ghost")
    like = next(the.model.parameters())
    for name, stage in the.ghosted.module.named_modules():
        if isinstance(stage, GGhostStage):
            assert all(part.training == the.model.get_submodule(name).training for part in stage.modules())
            assert all((p.dtype, p.device) == (like.dtype, like.device) for p in stage.parameters())
            assert all(p.requires_grad for p in stage.parameters())


@each_staged
def test_both_methods_share_a_net_out(net: Net) -> None:
    """Stages by G-Ghost, other convolutions by C-Ghost, nothing by both; predicted and counted alike."""
    the = case(net.name, "g-ghost")
    proposal = plan(the.scan, EAGER, method="both")
    stages = [swap for swap in proposal.swaps if isinstance(swap, GGhostSwap)]
    assert [swap.target for swap in stages] == [swap.target for swap in the.plan.swaps]
    touched = [name for swap in proposal.swaps for name in swap.touches]
    assert not any(one != other and is_swapped(one, {other}) for one in touched for other in touched)
    ghosted = rewrite(the.traced, proposal)
    assert ghosted.after.cost == ghosted.plan.after == proposal.after
    old, new = evaluated(the.model, the.example), evaluated(ghosted.module, the.example)
    assert [out.shape for out in new] == [out.shape for out in old]
