"""Mixed plans: thin blocks, C-Ghosts inside them and G-Ghost stages in one plan, one rewrite and one fit."""

from __future__ import annotations

import copy
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Residual, basic, bottleneck, conv_bn, head, run

from ghostify import (
    Ghosted,
    GhostSettings,
    convert,
    load,
    optimize,
    plan,
    read_plan,
    rewrite,
    rewrite_fitted,
    save,
    trace,
)
from ghostify.channels import silenced
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, GGhostStage
from ghostify.networks import resnet8, resnet20
from ghostify.planning import Plan, check, scan_for
from ghostify.reporting import compare
from ghostify.rules import CGhostSwap, GGhostSwap, Skip, Swap, ThinSwap, c_ghost
from ghostify.rules.thin import ThinRule, selected
from ghostify.running import REORDERED, agree
from ghostify.scanning import Scan, scan
from ghostify.tracing import Traced

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
M: dict[str, Any] = {"method": "mixed", "width": 0.5, "round_to": 1, "min_saving": 0}
ROLES = ("stem", "classifier", "channels-last")
CHEAP = ("auto", "depthwise 3", "pointwise", "pointwise 2", "depthwise 3 + pointwise")
NETS = ("plain", "bottlenecks", "grouped", "mobile", "dense", "unet", "odd", "squeeze", "signal", "tied", "shared-head")
NETS += ("resnet20", "grouped-stage", "gated-stage", "next-stage", "preactivated", "cross-stage", "group-normed")
each = pytest.mark.parametrize("name", NETS)
STRAIGHT = ("plain", "bottlenecks", "mobile", "squeeze", "resnet20", "gated-stage", "cross-stage", "group-normed")
"""Nets with one output, of which ``silenced`` tells what they give without some channels."""


@cache
def recorded(name: str) -> tuple[nn.Module, Traced, Scan]:
    net = next(net for net in ZOO if net.name == name)
    model = net.build()
    traced = trace(model, net.example())
    return model, traced, scan_for(traced, GhostSettings(**M))


def blocks_drawn(name: str) -> list[ThinSwap]:
    """About half of a net's blocks, each with a width of its own."""
    dice, (_, _, seen) = random.Random(name), recorded(name)
    swaps = [swap for swap in plan(seen, GhostSettings(**M)).swaps if isinstance(swap, ThinSwap)]
    taken = [swap for swap in swaps if dice.random() < 0.6] or swaps[:1]
    return [swap.model_copy(update={"width": dice.choice((0.3, 0.5, 0.8))}) for swap in taken]


def ghosts_drawn(name: str, narrowed: Scan) -> list[CGhostSwap]:
    """About half of the layers of a net as its thinned blocks leave them, in different forms."""
    dice, possible = random.Random(name), []
    for site in narrowed.sites:
        form = {"s": dice.choice((2, 3)), "cheap": dice.choice(CHEAP)}
        proposed = c_ghost.propose(site, GhostSettings(**form, min_saving=0, also=ROLES))
        if isinstance(proposed, CGhostSwap):
            possible.append(proposed)
    return [swap for swap in possible if dice.random() < 0.5] or possible[:1]


def planned(name: str, swaps: list[Swap]) -> Plan:
    return Plan(network=recorded(name)[2].network, inputs=(), swaps=tuple(swaps))


@cache
def mixture(name: str) -> Ghosted:
    """A net with some blocks thinned, and some layers in them and around them ghosts."""
    _, traced, seen = recorded(name)
    blocks = blocks_drawn(name)
    ghosts = ghosts_drawn(name, ThinRule().after(seen, blocks))
    return rewrite(traced, planned(name, [*ghosts, *blocks]))


def test_without_inner_blocks_ghosts_alone_are_made_and_the_plan_says_so() -> None:
    net = nn.Sequential(conv_bn(3, 8), Residual(conv_bn(8, 8), 8, 8, 1), head(8)).eval()
    ghosted = convert(net, torch.randn(2, 3, 16, 16), M)
    assert [(swap.target, swap.rule) for swap in ghosted.plan.swaps] == [("1.body.0", "c-ghost")]
    assert "the whole  left alone:  has no width that may change (none of its channels is inside" in str(ghosted.plan)
    assert "so ghosts alone are made" in str(ghosted.plan)
    assert rewrite(trace(net, torch.randn(2, 3, 16, 16)), ghosted.plan).plan.skips


def entries(plan: Plan) -> list[Swap | Skip]:
    return [*plan.swaps, *plan.skips]


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        given = run(copy.deepcopy(model).eval(), copy.deepcopy(example))
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


# -- what it costs, and what stays -----------------------------------------------------------------------------


@each
def test_a_mixture_costs_what_was_planned(name: str) -> None:
    ghosted = mixture(name)
    assert {swap.rule for swap in ghosted.plan.swaps} == {"thin", "c-ghost"}
    assert ghosted.plan.after == ghosted.after.cost == scan(ghosted.module, recorded(name)[1].example).cost
    assert ghosted.after.cost.params == sum(parameter.numel() for parameter in ghosted.module.parameters())
    for swap in ghosted.plan.swaps:
        if isinstance(swap, CGhostSwap):
            assert ghosted.after.within(swap.target) == swap.after


@each
def test_a_narrowed_layer_is_told_as_it_will_be_scanned(name: str) -> None:
    """Geometry and price of a ghost inside a block are worked out against the layer that the block leaves."""
    _, traced, seen = recorded(name)
    blocks = blocks_drawn(name)
    rewritten = rewrite(traced, planned(name, [*blocks])).after
    told = {site.name: (site.geometry, site.cost) for site in ThinRule().after(seen, blocks).sites}
    assert told == {site.name: (site.geometry, site.cost) for site in rewritten.sites}


@each
def test_a_mixture_goes_through_its_file(name: str, tmp_path: Path) -> None:
    plan = mixture(name).plan
    (tmp_path / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    again = read_plan(tmp_path / "plan.yaml")
    assert again == plan == check(again, scan_for(recorded(name)[1], again))


@each
def test_the_inference_form_of_a_mixture_gives_what_the_mixture_gives(name: str) -> None:
    """Thin blocks keep norms behind fewer channels, which are folded with the ghosts inside."""
    example = recorded(name)[1].example
    optimized = optimize(mixture(name), example)
    pairs = zip(outputs(mixture(name).module, example), outputs(optimized.module, example), strict=True)
    assert all(agree(a, b, REORDERED) for a, b in pairs)


@each
def test_a_run_folder_gives_a_mixture_back(name: str, tmp_path: Path) -> None:
    model, traced, _ = recorded(name)
    save(mixture(name), tmp_path / "run")
    again = load(tmp_path / "run", model=copy.deepcopy(model), example=traced.example)
    pairs = zip(outputs(again.module, traced.example), outputs(mixture(name).module, traced.example), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", STRAIGHT)
def test_some_blocks_thinned_compute_what_the_network_computes_without_the_dropped_channels(name: str) -> None:
    _, traced, _ = recorded(name)
    blocks = blocks_drawn(name)
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    expected = silenced(*selected(traced, blocks), *traced.args)[output.all_input_nodes[0]]
    (given,) = outputs(rewrite(traced, planned(name, [*blocks])).module, traced.args[0])
    assert torch.allclose(given, expected, rtol=1e-4, atol=1e-5)


# -- settings --------------------------------------------------------------------------------------------------


def test_method_mixed_thins_blocks_and_ghosts_what_is_left_of_their_layers() -> None:
    ghosted = convert(nn.Sequential(conv_bn(3, 8), basic(8, 8), head(8)), X, **M, s=2)
    first, second = ghosted.module[1].body[0][0], ghosted.module[1].body[1]
    assert isinstance(first, CGhost) and (first.in_channels, first.out_channels) == (8, 4)
    assert isinstance(second, CGhost) and (second.in_channels, second.out_channels) == (4, 8)
    report = compare(ghosted)
    assert "1 blocks were thinned inside to 0.5, 2 layers became C-Ghost modules" in report.summary().title
    assert [row.target for row in report.blocks] == ["1.body"]
    assert [row.geometry for row in report.layers] == ["8→4 3x3", "4→8 3x3"]
    assert "Block by block" in str(report)


def test_blocks_are_chosen_by_name() -> None:
    model = nn.Sequential(conv_bn(3, 8), basic(8, 8), bottleneck(8, 16), head(16))
    settings = GhostSettings(method="thin", width=0.5, round_to=1, include=("1", "2"), set={"2.*": {"width": 0.25}})
    traced = trace(model, X)
    proposal = plan(scan_for(traced, settings), settings)
    assert {swap.target: swap.settings for swap in proposal.swaps} == {"1.body": "thin=0.5", "2.body": "thin=0.25"}
    new = rewrite(traced, proposal).module
    assert (new[0][0].out_channels, new[1].body[0][0].out_channels) == (8, 4)
    assert (new[2].body[0][0].out_channels, new[2].body[1][0].out_channels) == (2, 2)


def test_an_s_of_one_leaves_a_layer_as_its_block_leaves_it() -> None:
    plan = convert(nn.Sequential(conv_bn(3, 8), basic(8, 8), head(8)), X, **M, set={"1.body.0.0": {"s": 1}}).plan
    assert [(swap.rule, swap.target) for swap in plan.swaps] == [("thin", "1.body"), ("c-ghost", "1.body.1")]
    reasons = {skip.target: skip.reason for skip in plan.skips}
    assert reasons["1.body.0.0"] == "is no ghost, because its s is set to 1"


def test_a_width_of_one_leaves_a_block_as_it_is() -> None:
    """So that layers in it become ghosts, and its channels stay."""
    model = nn.Sequential(conv_bn(3, 8), basic(8, 8), basic(8, 8), head(8))
    plan = convert(model, X, **M, set={"2": {"width": 1}}).plan
    assert [swap.target for swap in plan.swaps if isinstance(swap, ThinSwap)] == ["1.body"]
    assert [swap.geometry for swap in plan.swaps if swap.target == "2.body.0.0"] == ["8→8 3x3"]
    reasons = {skip.target: skip.reason for skip in plan.skips}
    assert reasons["2.body"] == "keeps its inner width, because its width is set to 1"


def test_a_block_of_one_layer_is_thinned_and_its_layer_a_ghost() -> None:
    """In a chain both swaps have the layer's name."""
    ghosted = convert(nn.Sequential(conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 8), head(8)), X, **M)
    assert sorted(swap.rule for swap in ghosted.plan.swaps if swap.target == "1.0") == ["c-ghost", "thin"]
    new = ghosted.module[1][0]
    assert isinstance(new, CGhost) and (new.in_channels, new.out_channels) == (4, 8)
    stem = [entry.rule if isinstance(entry, Swap) else "" for entry in entries(ghosted.plan) if entry.target == "0.0"]
    assert stem == ["thin"]  # and no second entry that says it is left alone, though it becomes no ghost


def test_blocks_that_are_left_alone_say_why() -> None:
    """The layers in them refer to the block; one that is a block by itself has but one entry."""
    model = nn.Sequential(conv_bn(3, 8), basic(8, 8), bottleneck(8, 16), conv_bn(16, 16), head(16))
    settings = {"method": "thin", "width": 0.5, "round_to": 1, "include": ["1"], "exclude": ["2.body.0"]}
    reasons = {skip.target: skip.reason for skip in convert(model, X, **settings).plan.skips}
    assert reasons["3.0"] == "is matched by no include pattern"
    assert reasons["2.body.0.0"] == "is kept, because the block '2.body' is left alone"
    assert reasons["2.downsample.0"].startswith("is kept, because it makes and reads only channels that are outputs")


def test_a_block_that_rounds_to_what_it_is_says_so() -> None:
    model = nn.Sequential(conv_bn(3, 8), basic(8, 8), basic(8, 16, 2), head(16))
    proposal = convert(model, X, method="thin", width=0.5).plan
    assert [swap.target for swap in proposal.swaps] == ["2.body"]
    reasons = {skip.target: skip.reason for skip in proposal.skips}
    assert reasons["1.body"] == "keeps its inner width, because at 0.5 it rounds to what it is (round_to is 8)"
    assert reasons["0.0"].startswith("is kept, because it makes and reads only channels that are outputs or are added")


# -- with stages -----------------------------------------------------------------------------------------------


def three_rules() -> tuple[Traced, Plan]:
    """The first stage a G-Ghost stage, the blocks of the second thinned, C-Ghosts there and in the third."""
    traced = trace(resnet20(width=8), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    stage = plan(scan(traced), method="g-ghost").swaps[0]
    settings = GhostSettings(**M, include=("layer2", "layer3.*.conv2"))
    return traced, Plan(network="", inputs=(), swaps=(*plan(scan_for(traced, settings), settings).swaps, stage))


def test_all_three_rules_in_one_plan(tmp_path: Path) -> None:
    traced, proposal = three_rules()
    ghosted = rewrite(traced, proposal)
    assert [swap.rule for swap in ghosted.plan.swaps] == ["thin"] * 3 + ["g-ghost"] + ["c-ghost"] * 9
    assert isinstance(ghosted.module.layer1[1], GGhostStage)
    assert ghosted.module.layer2[0].conv1.out_channels == 8 and isinstance(ghosted.module.layer2[0].conv1, CGhost)
    assert isinstance(ghosted.module.layer3[2].conv2, CGhost)
    save(ghosted, tmp_path / "run")
    again = load(tmp_path / "run", model=resnet20(width=8), example=traced.example)
    assert torch.equal(*(outputs(module, traced.args[0])[0] for module in (again.module, ghosted.module)))


def test_a_block_in_a_stage_that_is_replaced_cannot_be_thinned() -> None:
    traced, proposal = three_rules()
    thin = GhostSettings(method="thin", width=0.5, round_to=1, include=("layer1.1",))
    (block,) = plan(scan_for(traced, thin), thin).swaps
    message = r"^The plan thins 'layer1\.1', and the G-Ghost stage 'layer1' takes its layers; take out one\.$"
    with pytest.raises(PlanError, match=message):
        check(proposal.model_copy(update={"swaps": (*proposal.swaps, block)}), scan_for(traced, proposal))


# -- plans by hand ---------------------------------------------------------------------------------------------


def test_a_block_that_is_not_there_is_refused() -> None:
    traced = trace(resnet8(width=8), X)
    settings = GhostSettings(**M)
    proposal = plan(scan_for(traced, settings), settings)
    block = next(swap for swap in proposal.swaps if isinstance(swap, ThinSwap))
    cases = {
        r"names the block 'layer1\.9', which CifarResNet does not have\. Did you mean 'layer1\.0'": {
            "target": "layer1.9"
        },
        r"made for another network: 'layer1\.0' is 8 inside in CifarResNet, and 9 inside in": {"geometry": "9 inside"},
        r"swap of 'layer1\.0' names 'layer1\.0\.conv2' under inner, which makes none of its channels": {
            "inner": ("layer1.0.conv2",)
        },
    }
    for message, change in cases.items():
        changed = proposal.model_copy(update={"swaps": (block.model_copy(update=change),)})
        with pytest.raises(PlanError, match=message):
            check(changed, scan_for(traced, changed))


def test_a_plan_cannot_thin_what_it_excludes() -> None:
    traced = trace(resnet8(width=8), X)
    settings = GhostSettings(method="thin", width=0.5, round_to=1)
    proposal = plan(scan_for(traced, settings), settings).model_copy(update={"exclude": ("layer1",)})
    with pytest.raises(PlanError, match=r"swaps 'layer1\.0', and its exclude keeps 'layer1' as it is; take out one"):
        check(proposal, scan_for(traced, proposal))


# -- the fit ---------------------------------------------------------------------------------------------------


def redundant() -> nn.Module:
    """Of the 8 inner channels the last four are read by nobody, and two of the others are sums of the first two."""
    model = nn.Sequential(conv_bn(3, 8), basic(8, 8), head(8)).eval()
    first, second = model[1].body[0], model[1].body[1]
    with torch.no_grad():
        first[0].weight[4:] *= 0.1
        second.weight[:, 4:] = 0
        first[0].weight[2] = first[0].weight[0] + first[0].weight[1]
        first[0].weight[3] = first[0].weight[0] - 2 * first[0].weight[1]
    return model


def test_what_no_channel_is_lost_for_is_fitted_exactly() -> None:
    """A ghost inside a thinned block is fitted to the outputs that are left, of the original and not of the thinned."""
    model = redundant()
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    settings = {**M, "include": ["1.body.0.0"], "cheap": "pointwise"}
    ghosted = convert(model, X, **settings, images=images)
    ghost = ghosted.module[1].body[0][0]
    assert isinstance(ghost, CGhost) and ghost.out_channels == 4 and ghost.primary.out_channels == 2
    assert ghosted.fit is not None and "1.body.0.0" in [layer.target for layer in ghosted.fit.layers]
    assert torch.allclose(ghosted.module.eval()(X), model(X), atol=2e-3)


@pytest.mark.parametrize("name", ["bottlenecks", "mobile", "plain", "resnet20", "cross-stage"])
def test_a_mixture_is_fitted_in_one_pass(name: str) -> None:
    """Every layer that became narrower or a ghost is fitted, and what the whole misses becomes less."""
    _, traced, _ = recorded(name)
    images = torch.randn(96, *traced.args[0].shape[1:], generator=torch.Generator().manual_seed(3))
    ghosted = rewrite_fitted(traced, mixture(name).plan, images)
    assert ghosted.fit is not None and ghosted.fit.error < ghosted.fit.unfitted
    fitted = {layer.target for layer in ghosted.fit.layers}
    assert {swap.target for swap in ghosted.plan.swaps if isinstance(swap, CGhostSwap)} <= fitted
    assert {layer for swap in ghosted.plan.swaps if isinstance(swap, ThinSwap) for layer in swap.inner} <= fitted


def test_all_three_rules_are_fitted_at_once() -> None:
    traced, proposal = three_rules()
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    ghosted = rewrite_fitted(traced, proposal, images)
    assert ghosted.fit is not None and ghosted.fit.error < ghosted.fit.unfitted
    assert {layer.kind for layer in ghosted.fit.layers} == {"ghost", "layer", "stage"}
    assert any(isinstance(swap, GGhostSwap) for swap in ghosted.plan.swaps)
