"""Method thin: blocks become narrower inside, what is added to each other stays, and it costs what was promised."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as tv
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import (
    ZOO,
    InvertedResidual,
    Net,
    PreActivation,
    Residual,
    basic,
    bottleneck,
    conv_bn,
    head,
    plain,
    run,
    same_padded,
)

from ghostify import Ghosted, GhostSettings, convert, load, plan, read_plan, rewrite, save, scan, trace
from ghostify.channels import follow, silenced
from ghostify.channels.operations import SUMS
from ghostify.cli import main
from ghostify.costs import Cost
from ghostify.errors import PlanError, RecipeError, RewriteError
from ghostify.networks import resnet8, resnet20
from ghostify.planning import Plan, check, scan_for
from ghostify.reporting import compare
from ghostify.rules import ThinSwap, WidthSwap
from ghostify.rules.base import thinner
from ghostify.running import op_name
from ghostify.scanning import network_nodes
from ghostify.tracing import Traced

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T: dict[str, Any] = {"method": "thin", "width": 0.5, "round_to": 1}
REFUSED = {
    "subclassed": "mean in '1' uses '1.weight', which has several long dimensions",
    "parametrised": "weight_norm in '1.parametrizations.weight.0' ties channels",
    "in-place": r"__setitem__ in '\(root\)' ties channels",
    "attentive": "multi_head_attention_forward in 'attention' ties channels",
}
UNFIT = ("shuffled", "functional", "shuffle-stage")
"""Nets whose code cannot work with fewer channels, or with others than the first."""
STEADY = "nested"
"""A net all of whose channels are outputs or added to others."""
ROUNDED = ("grouped", "odd", "grouped-stage")
"""Nets with widths, or groups, that cannot be halved."""
FOLLOWED = [net for net in ZOO if net.name not in (*REFUSED, *UNFIT, STEADY)]
each_followed = pytest.mark.parametrize("net", FOLLOWED, ids=lambda net: net.name)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (resnet20, 32),
    "resnet18": (tv.resnet18, 64),
    "resnet50": (tv.resnet50, 64),
    "mobilenet_v2": (tv.mobilenet_v2, 64),
    "mobilenet_v3_small": (tv.mobilenet_v3_small, 64),
    "vgg11": (tv.vgg11, 64),
    "densenet121": (tv.densenet121, 64),
}


@cache
def thinned(name: str) -> tuple[nn.Module, Traced, Ghosted]:
    net = next(net for net in ZOO if net.name == name)
    model = net.build()
    traced = trace(model, net.example())
    settings = GhostSettings(**T)
    return model, traced, rewrite(traced, plan(scan_for(traced, settings), settings))


@cache
def network(name: str) -> tuple[Traced, Ghosted]:
    """A network on the meta device, where costs are counted all the same."""
    make, size = NETWORKS[name]
    with torch.device("meta"):
        traced = trace(make(), torch.empty(1, 3, size, size))
    settings = GhostSettings(**T)
    return traced, rewrite(traced, plan(scan_for(traced, settings), settings))


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        given = run(copy.deepcopy(model).eval(), copy.deepcopy(example))
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def additions(traced: Traced) -> list[tuple[int, ...]]:
    """Shapes of what comes of adding two values neither of which is a parameter or a buffer."""
    return [
        tuple(node.meta["shapes"][0])
        for node in traced.graph.nodes
        if node.op in ("call_function", "call_method")
        and op_name(traced, node) in SUMS
        and sum(source.op != "get_attr" for source in node.all_input_nodes) > 1
    ]


def convolutions(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (part.in_channels, part.out_channels)
        for name, part in model.named_modules()
        if isinstance(part, nn.Conv2d)
    }


def assert_promise_was_kept(ghosted: Ghosted) -> None:
    plan = ghosted.plan
    assert all(isinstance(swap, ThinSwap) and (swap.width, swap.keep) == (0.5, "strongest") for swap in plan.swaps)
    assert plan.before == ghosted.before.cost and plan.after == ghosted.after.cost
    assert plan.after == plan.before - sum((swap.before - swap.after for swap in plan.swaps), Cost())
    assert plan.after.params == sum(p.numel() for p in ghosted.module.parameters())
    assert all(swap.after.params < swap.before.params and swap.after.macs < swap.before.macs for swap in plan.swaps)


# -- what it costs, and what stays -----------------------------------------------------------------------------


@each_followed
def test_predicted_is_counted(net: Net) -> None:
    assert_promise_was_kept(thinned(net.name)[2])


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_is_counted_of_real_networks(name: str) -> None:
    assert_promise_was_kept(network(name)[1])


@each_followed
def test_what_is_added_keeps_its_shape_and_so_do_the_outputs(net: Net) -> None:
    _, traced, ghosted = thinned(net.name)
    assert additions(trace(ghosted.module, net.example())) == additions(traced)
    old, new = outputs(traced.module, net.example()), outputs(ghosted.module, net.example())
    assert [(out.shape, out.dtype) for out in new] == [(out.shape, out.dtype) for out in old]


@pytest.mark.parametrize(("name", "times"), [("resnet20", 9), ("resnet18", 8), ("resnet50", 16), ("mobilenet_v2", 10)])
def test_real_networks_keep_what_is_added(name: str, times: int) -> None:
    traced, ghosted = network(name)
    found = additions(trace(ghosted.module, traced.args[0]))
    assert found == additions(traced) and len(found) == times


def test_blocks_are_found_in_a_network_that_was_asked_about_without_them_before() -> None:
    """What is known of one scan of a recording, such as that it has no blocks, is not what the next one says."""
    traced = trace(resnet8().eval(), torch.randn(1, 3, 16, 16))
    assert scan(traced).inner_blocks == []
    assert scan_for(traced, GhostSettings(**T)).inner_blocks != []


def test_the_first_convolution_of_a_basic_block_is_narrowed_alone() -> None:
    new, old = convolutions(network("resnet20")[1].module), convolutions(resnet20())
    for name, (c, n) in old.items():
        expected = {"conv1": (c, n // 2), "conv2": (c // 2, n)}[name.rpartition(".")[2]] if "layer" in name else (c, n)
        assert new[name] == expected


def test_both_inner_convolutions_of_a_bottleneck_are_narrowed() -> None:
    """The stem is added to nothing before it is read, so it is narrowed too."""
    found = convolutions(network("resnet50")[1].module)
    block = [found[f"layer2.1.conv{place}"] for place in (1, 2, 3)]
    assert block == [(512, 64), (64, 64), (64, 512)]
    assert found["conv1"] == (3, 32) and found["layer1.0.downsample.0"] == (32, 256)


def test_the_expanded_channels_of_mobile_blocks_are_narrowed() -> None:
    model = nn.Sequential(conv_bn(3, 8), InvertedResidual(8, 16), head(8))
    new = convert(model, X, **T).module[1]
    assert (new.expand[0].out_channels, new.depthwise[0].groups, new.gate.reduce.in_channels) == (8, 8, 8)
    assert (new.gate.reduce.out_channels, new.gate.expand.out_channels, new.project[0].weight.shape[:2]) == (
        2,
        8,
        (8, 8),
    )


@pytest.mark.parametrize("method", ["thin", "width"])
def test_convolutions_of_a_class_with_modules_in_it_are_narrowed_as_torchs_are(method: str) -> None:
    """The groups of a depthwise one too, that pads by a module of its own."""
    plain_net = nn.Sequential(conv_bn(3, 8), InvertedResidual(8, 16), head(8)).eval()
    settings = {**T, "method": method}
    ours, own = (convert(net, X, **settings).module for net in (plain_net, same_padded(plain_net)))
    assert own[1].depthwise[0].groups == ours[1].depthwise[0].groups == 8
    torch.testing.assert_close(own(X), ours(X))


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_where_nothing_is_added_it_is_method_width(name: str) -> None:
    traced, ghosted = network(name)
    settings = GhostSettings(**{**T, "method": "width"})
    assert plan(scan_for(traced, settings), settings).after == ghosted.plan.after


def test_a_bias_added_is_no_stream() -> None:
    """A parameter is no second side of an addition; a channel added to itself, as it was before a filter, neither."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bias = conv_bn(3, 8), nn.Parameter(torch.ones(1, 8, 1, 1))
            self.depthwise, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x) + self.bias
            return self.head(x + self.depthwise(x))

    new = convert(Added(), X, **T).module
    assert new.bias.shape == (1, 4, 1, 1) and new.depthwise.groups == 4


def test_channels_made_together_with_some_of_the_stream_are_halved() -> None:
    """Of 24 outputs the first 8 are added and stay, of the other 16 half."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.enter, self.leave, self.head = conv_bn(3, 8), conv_bn(8, 24), conv_bn(16, 8), head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.enter(x)
            return self.head(x + y[:, :8] + self.leave(y[:, 8:]))

    assert convolutions(convert(Both(), X, **T).module) == {"stem.0": (3, 8), "enter.0": (8, 16), "leave.0": (8, 8)}


def test_a_layer_excluded_keeps_its_outputs() -> None:
    net = nn.Sequential(conv_bn(3, 8), basic(8, 8), bottleneck(8, 8), head(8))
    new = convolutions(convert(net, X, **T, exclude=["2.body.0.0"]).module)
    assert new["1.body.0.0"] == (8, 4) and new["1.body.1"] == (4, 8)
    assert (new["2.body.0.0"], new["2.body.1.0"], new["2.body.2"]) == ((8, 4), (4, 2), (2, 8))


# -- what it computes ------------------------------------------------------------------------------------------

STRAIGHT = ["plain", "residual", "bottlenecks", "grouped", "mobile", "dense", "squeeze", "resnet20", "gated-stage"]
STRAIGHT += ["next-stage", "group-normed", "cross-stage", "preactivated"]


@pytest.mark.parametrize("name", STRAIGHT)
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_it_computes_what_the_network_computes_without_the_dropped_channels(name: str, keep: str) -> None:
    net = next(net for net in ZOO if net.name == name)
    settings = GhostSettings(**T, keep=keep)
    traced = trace(net.build(), net.example())
    channels = follow(traced, *network_nodes(traced, inside=True), sums=True)
    counts = channels.coupling.keep(thinner(0.5, 1, "nearest"), 0.5, apart=True)
    kept = channels.kept(counts, 0.5, channels.strengths() if keep == "strongest" else None)
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    expected = silenced(channels, kept, *traced.args)[output.all_input_nodes[0]]
    ghosted = rewrite(traced, plan(scan_for(traced, settings), settings))
    (given,) = outputs(ghosted.module, traced.args[0])
    assert torch.allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_a_real_network_passes_the_check() -> None:
    """On real numbers ``rewrite`` compares it with the network silenced."""
    model = tv.resnet18(num_classes=4)
    new = convert(model, torch.randn(2, 3, 32, 32), **T, keep="strongest").module.train()
    nn.functional.cross_entropy(new(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())
    assert torch.equal(new.conv1.weight, model.conv1.weight)


@each_followed
def test_a_run_folder_gives_it_back(net: Net, tmp_path: Path) -> None:
    _, _, ghosted = thinned(net.name)
    save(ghosted, tmp_path / "run")
    example = net.example()
    again = load(tmp_path / "run", model=net.build(), example=example)
    pairs = zip(outputs(again.module, example), outputs(ghosted.module, example), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# -- theory ----------------------------------------------------------------------------------------------------


@each_followed
def test_theory_is_the_count_where_nothing_is_rounded(net: Net) -> None:
    report = compare(thinned(net.name)[2])
    counts = (report.before.macs / report.after.macs, report.before.params / report.after.params)
    exact = counts == pytest.approx((report.theory.r_s, report.theory.r_c), rel=1e-12)
    assert exact is (net.name not in ROUNDED)


def test_theory_by_hand() -> None:
    """Of a block's two convolutions each has one inner side; stem and head stay, and so does what a norm has."""
    model = nn.Sequential(conv_bn(3, 10), basic(10, 10), head(10))
    report = compare(convert(model, X, method="thin", width=0.75, round_to=8))
    stem, block, last = 2 * 64 * 27 * 10, 2 * 64 * 90 * 10, 2 * 40
    assert report.theory.r_s == report.theory.approx_r_s
    assert report.theory.r_s == pytest.approx((stem + 2 * block + last) / (stem + 1.5 * block + last))
    params = 270 + 20 + 900 + 20 + 910 + 44
    assert report.theory.r_c == pytest.approx(params / (params - 0.25 * (900 + 20 + 900)))
    assert "1 blocks were thinned inside to 0.75" in report.summary().title
    assert report.before.macs / report.after.macs != pytest.approx(report.theory.r_s)
    (row,) = report.blocks
    assert (row.target, row.geometry) == ("1.body", "10 inside")
    assert row.theory.r_s == pytest.approx(1 / 0.75) and row.before.macs == 2 * block
    assert row.after.macs == 2 * block * 8 / 10


# -- plans -----------------------------------------------------------------------------------------------------


def test_the_plan_goes_through_its_file(tmp_path: Path) -> None:
    traced = trace(resnet8(width=8), X)
    settings = GhostSettings(**T)
    proposal = plan(scan_for(traced, settings), settings)
    (tmp_path / "plan.yaml").write_text(proposal.to_yaml(), encoding="utf-8")
    again = read_plan(tmp_path / "plan.yaml")
    assert again == proposal == check(again, scan_for(traced, again))
    assert rewrite(traced, again).after.cost == proposal.after
    assert "thin=0.5" in str(proposal)


@pytest.mark.parametrize("name", ["plain", "bottlenecks", "grouped", "mobile", "dense", "unet", "odd", "group-normed"])
def test_a_plan_of_before_blocks_makes_the_same_network(name: str) -> None:
    """Plans of rule width that keep the stream were how method thin was written; all blocks together are as much."""
    _, traced, ghosted = thinned(name)
    whole = WidthSwap(target="*", geometry="", stream="kept", width=0.5, group_width=0.5, keep="strongest", round_to=1)
    layers = sum(site.role != "channels-last" for site in ghosted.before.sites)
    old = Plan(network="", inputs=(), swaps=(whole.model_copy(update={"geometry": f"{layers} layers"}),))
    again = rewrite(traced, old)
    assert again.after.cost == ghosted.after.cost
    assert compare(again).theory == pytest.approx(compare(ghosted).theory)
    ours, theirs = ghosted.module.state_dict(), again.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_plan_of_before_streams_scales_everything(tmp_path: Path) -> None:
    traced = trace(resnet8(width=8), X)
    settings = GhostSettings(**{**T, "method": "width"})
    proposal = plan(scan_for(traced, settings), settings)
    text = yaml.safe_load(proposal.to_yaml())
    assert text["swaps"][0].pop("stream") == "scaled"
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    assert read_plan(tmp_path / "plan.yaml") == proposal


def test_a_scan_says_what_becomes_of_the_stream() -> None:
    """A plan is made for a scan with the same stream."""
    traced = trace(resnet8(width=8), X)
    settings = GhostSettings(**T)
    found = scan(traced, whole=True, stream="kept")
    assert found == scan_for(traced, settings) and found.stream == "kept"
    message = r"has no channels of the whole network in it: scan\(\.\.\., whole=True, stream='kept'\)\.$"
    for other in (scan(traced), scan(traced, whole=True)):
        with pytest.raises(PlanError, match=message):
            plan(other, settings)
        with pytest.raises(PlanError, match=message):
            check(plan(found, settings), other)
    with pytest.raises(PlanError, match=r"scan\(\.\.\., whole=True\)\.$"):
        plan(found, GhostSettings(**{**T, "method": "width"}))


def test_a_network_without_inner_channels_is_refused() -> None:
    message = (
        r"has no width that may change: none of its channels is inside a block, because all are outputs or added to"
    )
    net = next(net for net in ZOO if net.name == STEADY)
    with pytest.raises(PlanError, match=message):
        convert(net.build(), net.example(), **T)
    with pytest.raises(PlanError, match=message):
        convert(nn.Sequential(conv_bn(3, 8), Residual(conv_bn(8, 8), 8, 8, 1), head(8)), X, **T)
    with pytest.raises(PlanError, match=r"at 0\.9 they round to what they are \(round_to is 8\)"):
        convert(nn.Sequential(conv_bn(3, 16), PreActivation(16), head(16)), X, method="thin", width=0.9)


def test_settings_that_say_nothing_to_it_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^set '0\.\*': ratio = 0\.5 has no effect with method thin; choose method"):
        convert(plain(), X, **T, set={"0.*": {"ratio": 0.5}})
    with pytest.raises(PlanError, match=r"^set '3': width = 0\.25 changes nothing, because no block of its own is in"):
        convert(plain(), X, **T, set={"3": {"width": 0.25}})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_named(name: str) -> None:
    net = next(net for net in ZOO if net.name == name)
    with pytest.raises(PlanError, match=f"cannot be thinned inside its blocks: {REFUSED[name]}"):
        convert(net.build(), net.example(), **T)


@pytest.mark.parametrize("name", UNFIT)
def test_code_that_cannot_work_with_fewer_channels_is_refused_as_such(name: str) -> None:
    net = next(net for net in ZOO if net.name == name)
    with pytest.raises(
        RewriteError, match=r"^\w+ cannot be thinned inside its blocks: (its code does not|narrower, it)"
    ):
        convert(net.build(), net.example(), **T)


def test_the_command_line_plans_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "ghostify:resnet8", "--method", "thin", "--width", "0.5"]
    for more in (["-o", str(tmp_path / "plan.yaml")], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["ghostify", *arguments, *more])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    shown = capsys.readouterr().out
    for swap in read_plan(tmp_path / "plan.yaml").swaps:
        assert isinstance(swap, ThinSwap) and (swap.width, swap.keep) == (0.5, "strongest")
    assert "thin=0.5" in shown
    assert json.loads(shown[shown.index("{") :])["swaps"][0]["inner"] == ["layer1.0.conv1"]
