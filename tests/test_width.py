"""The width rule: a whole network becomes narrower, its inputs and outputs stay, and it costs what was promised."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Net, Residual, Shuffle, basic, conv_bn, head, plain, run, shuffle_stage

from ghostify import Ghosted, GhostSettings, Plan, convert, load, plan, read_plan, rewrite, save, scan, trace
from ghostify.channels import follow, silenced
from ghostify.errors import PlanError, RewriteError
from ghostify.planning import check, scan_for
from ghostify.rules import WidthSwap
from ghostify.rules.base import thinner
from ghostify.scanning import network_nodes
from ghostify.tracing import Traced

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
W: dict[str, Any] = {"method": "width", "round_to": 2}
REFUSED = {
    "subclassed": "mean in '1' uses '1.weight', which has several long dimensions",
    "parametrised": "weight_norm in '1.parametrizations.weight.0' ties channels",
    "in-place": r"__setitem__ in '\(root\)' ties channels",
    "attentive": "multi_head_attention_forward in 'attention' ties channels",
}
UNFIT = {
    "shuffled": "Sequential",
    "functional": "Functional",
    "shuffle-stage": "Sequential",
}
"""Nets whose code cannot work with fewer channels: groups that it writes out, an odd number to be halved."""
WRITTEN = {"scaled-stage": {"1.enter.0", "2.enter.0", "3.enter.0"}}
"""Layers that keep their widths, because the code behind them writes these out."""
STEADY = "nested"
"""A net all of whose channels are outputs."""
FOLLOWED = [net for net in ZOO if net.name not in (*REFUSED, *UNFIT, STEADY)]
KEPT_APART = ("plain", "grouped", "signal", "video", "aliased", "tied", "bfloat16", "by-name", "next-stage")
"""Nets whose tensors differ in how they are kept: by dimensions, ties, precision and inputs."""
each_followed = pytest.mark.parametrize("net", FOLLOWED, ids=lambda net: net.name)


@cache
def narrowed(name: str) -> tuple[nn.Module, Traced, Ghosted]:
    net = next(net for net in ZOO if net.name == name)
    model = net.build()
    traced = trace(model, net.example())
    settings = GhostSettings(**W)
    return model, traced, rewrite(traced, plan(scan_for(traced, settings), settings))


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        given = run(copy.deepcopy(model).eval(), copy.deepcopy(example))
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


@each_followed
def test_predicted_is_counted(net: Net) -> None:
    _, _, ghosted = narrowed(net.name)
    (swap,) = ghosted.plan.swaps
    assert isinstance(swap, WidthSwap) and swap.target == "*"
    left = {skip.target for skip in ghosted.plan.skips}
    assert left == WRITTEN.get(net.name, set())
    assert swap.before == ghosted.before.cost == ghosted.plan.before
    assert swap.after == ghosted.after.cost == ghosted.plan.after
    assert swap.after.params == sum(p.numel() for p in ghosted.module.parameters())
    assert swap.after.params < swap.before.params and swap.after.macs < swap.before.macs


@each_followed
def test_outputs_keep_their_shape_and_dtype(net: Net) -> None:
    model, _, ghosted = narrowed(net.name)
    old, new = outputs(model, net.example()), outputs(ghosted.module, net.example())
    assert [(out.shape, out.dtype) for out in new] == [(out.shape, out.dtype) for out in old]
    assert all(out.isfinite().all() for out in new)


@each_followed
def test_names_stay_and_weights_are_parts_of_the_weights(net: Net) -> None:
    """Every tensor has its name, and the first elements along every dimension that was cut in one piece."""
    model, _, ghosted = narrowed(net.name)
    old, new = model.state_dict(), ghosted.module.state_dict()
    assert list(old) == list(new)
    for key, value in new.items():
        assert value.dim() == old[key].dim() and all(a <= b for a, b in zip(value.shape, old[key].shape, strict=True))
        assert torch.isin(value, old[key]).all(), key
        assert value.shape != old[key].shape or torch.equal(value, old[key]), key


@each_followed
def test_ties_stay(net: Net) -> None:
    """Two names of one parameter before are two names of one parameter after."""
    model, _, ghosted = narrowed(net.name)
    assert ties(ghosted.module) == ties(model)
    assert (net.name in ("tied", "aliased")) <= any(len(names) > 1 for names in ties(model))


def ties(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


@each_followed
def test_the_model_given_is_untouched_and_nothing_is_shared(net: Net) -> None:
    model, _, ghosted = narrowed(net.name)
    fresh, given = net.build().state_dict(), model.state_dict()
    assert list(given) == list(fresh) and all(torch.equal(given[key], fresh[key]) for key in given)
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert held.isdisjoint(p.untyped_storage().data_ptr() for p in ghosted.module.parameters())


@pytest.mark.parametrize("net", [net for net in FOLLOWED if net.name in KEPT_APART], ids=lambda net: net.name)
def test_a_run_folder_gives_it_back(net: Net, tmp_path: Path) -> None:
    _, _, ghosted = narrowed(net.name)
    save(ghosted, tmp_path / "run")
    example = net.example()
    again = load(tmp_path / "run", model=net.build(), example=example)
    pairs = zip(outputs(again.module, example), outputs(ghosted.module, example), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def silent(traced: Traced, settings: GhostSettings) -> Tensor:
    """The recorded network on its example, with the channels that the rule drops set to zero wherever they appear."""
    channels = follow(traced, *network_nodes(traced, settings.exclude))
    counts = channels.coupling.keep(thinner(settings.width, settings.round_to, settings.rounding), settings.width)
    rank = channels.strengths() if settings.keep == "strongest" else None
    kept = channels.kept(counts, settings.width, rank)
    assert np.asarray(kept).any()
    entry, *nodes = channels.nodes
    channels.entry, channels.nodes = entry, [node for node in nodes if node.op != "get_attr"]
    (example,) = traced.args
    values = silenced(channels, kept, example)
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    return values[output.all_input_nodes[0]]


STRAIGHT = ["plain", "residual", "bottlenecks", "grouped", "mobile", "dense", "squeeze", "resnet20", "gated-stage"]
STRAIGHT += ["next-stage", "group-normed", "cross-stage", "preactivated"]


@pytest.mark.parametrize("name", STRAIGHT)
def test_it_computes_what_the_network_computes_without_the_dropped_channels(name: str) -> None:
    _, traced, ghosted = narrowed(name)
    expected = silent(traced, GhostSettings(**W))
    (given,) = outputs(ghosted.module, traced.args[0])
    assert torch.allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_a_shuffle_of_the_first_channels_is_the_shuffle_and_of_others_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(conv_bn(3, 32), Shuffle(32), head(32))
    settings = GhostSettings(method="width", width=0.5, round_to=1)
    traced = trace(model, X)
    expected = silent(traced, settings)
    (given,) = outputs(rewrite(traced, plan(scan_for(traced, settings), settings)).module, X)
    assert torch.allclose(given, expected, rtol=1e-4, atol=1e-5)
    message = "^Sequential cannot be scaled as a whole: narrower, it does not do what it does with the other channels"
    with pytest.raises(RewriteError, match=message):
        convert(model, X, settings, keep="strongest")


class Shares(nn.Module):
    """Maps weighed by how they share out each position, and probabilities at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 16), conv_bn(16, 16)
        self.weights, self.next = nn.Conv2d(16, 16, 1), conv_bn(16, 32)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5), nn.Softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.head(self.next(x * self.weights(x).softmax(1)))


@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_channels_that_a_softmax_shares_out_stay_and_the_others_are_thinned(keep: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Shares().eval()
    settings = GhostSettings(**W, keep=keep)
    traced = trace(model, X)
    ghosted = rewrite(traced, plan(scan_for(traced, settings), settings)).module
    assert [ghosted.weights.out_channels, ghosted.body[0].out_channels] == [16, 16]
    assert [ghosted.stem[0].out_channels, ghosted.next[0].out_channels] == [12, 24]
    (given,) = outputs(ghosted, X)
    assert torch.allclose(given, silent(traced, settings), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STRAIGHT)
def test_the_strongest_channels_take_the_place_of_the_first(name: str) -> None:
    net = next(net for net in ZOO if net.name == name)
    settings = GhostSettings(**W, keep="strongest")
    traced = trace(net.build(), net.example())
    expected = silent(traced, settings)
    ghosted = rewrite(traced, plan(scan_for(traced, settings), settings))
    (given,) = outputs(ghosted.module, traced.args[0])
    assert torch.allclose(given, expected, rtol=1e-4, atol=1e-5)


# -- how wide --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "round_to", "rounding", "kept"),
    [(0.6, 8, "nearest", (8, 8)), (0.75, 1, "nearest", (6, 12)), (0.7, 1, "down", (5, 11)), (0.5, 4, "down", (4, 8))],
)
def test_every_layer_keeps_the_share_asked_for(
    width: float, round_to: int, rounding: str, kept: tuple[int, int]
) -> None:
    settings = {"method": "width", "width": width, "round_to": round_to, "rounding": rounding}
    model = convert(plain(), X, **settings).module
    assert (model[0][0].out_channels, model[1][0].in_channels, model[1][0].out_channels) == (kept[0], *kept)
    assert (model[0][0].in_channels, model[3][2].in_features, model[3][2].out_features) == (3, kept[1], 4)
    assert model[1][1].num_features == len(model[1][1].running_mean) == kept[1]


@pytest.mark.parametrize(("group_width", "groups", "each"), [(None, 2, 1), (1.0, 1, 2), (0.5, 2, 1)])
def test_groups_are_thinned_inside_or_dropped_whole(group_width: float | None, groups: int, each: int) -> None:
    body = nn.Sequential(conv_bn(8, 8, 1), conv_bn(8, 8, groups=4), nn.Conv2d(8, 8, 1))
    net = nn.Sequential(conv_bn(3, 8), Residual(body, 8, 8, 1), head(8))
    given = {"group_width": group_width} if group_width else {}
    new = convert(net, X, method="width", width=0.5, round_to=1, **given).module[1].body[1][0]
    assert new.weight.shape[1] == each
    assert new.groups * each == new.in_channels


@pytest.mark.parametrize("given", [{}, {"group_width": 0.5}])
def test_groups_of_unequal_sides_are_dropped_whole(given: dict[str, Any]) -> None:
    body = nn.Sequential(conv_bn(8, 8, 1), conv_bn(8, 16, groups=4), nn.Conv2d(16, 8, 1))
    net = nn.Sequential(conv_bn(3, 8), Residual(body, 8, 8, 1), head(8))
    new = convert(net, X, method="width", width=0.5, round_to=1, **given).module[1].body[1][0]
    assert (new.groups, new.in_channels, new.out_channels) == (2, 4, 8)


def test_a_layer_excluded_keeps_what_it_reads_and_gives() -> None:
    """What makes its input keeps all outputs; its norm and whatever reads it keep all of it."""
    model = convert(plain(), X, **W, width=0.5, exclude=["1.0"]).module
    whole = plain()
    assert [model[i][0].weight.shape[:2] for i in (0, 1, 2)] == [(8, 3), (16, 8), (8, 16)]
    assert [len(model[i][1].running_mean) for i in (0, 1, 2)] == [8, 16, 8]
    assert model[3][2].in_features == 8 and whole[1][0].weight.shape[:2] == (16, 8)


def test_what_is_added_to_the_outputs_of_an_excluded_layer_keeps_its_width_too() -> None:
    """The stream of a stage is one: of blocks with shortcuts only the middle is narrowed."""
    net = nn.Sequential(conv_bn(3, 8), basic(8, 8), basic(8, 8), head(8))
    model = convert(net, X, **W, width=0.5, exclude=["2.body.1"]).module
    convs = {name: part.weight.shape[:2] for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    assert convs == {"0.0": (8, 3), "1.body.0.0": (4, 8), "1.body.1": (8, 4), "2.body.0.0": (8, 8), "2.body.1": (8, 8)}


@pytest.mark.parametrize("name", STRAIGHT)
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_a_network_with_its_first_layer_excluded_is_the_network_silenced(name: str, keep: str, tmp_path: Path) -> None:
    """It costs what was planned, keeps that layer's filters to the bit, and its plan goes through its file."""
    net = next(net for net in ZOO if net.name == name)
    model = net.build()
    layer = next(name for name, part in model.named_modules() if isinstance(part, nn.Conv2d))
    settings = GhostSettings(**W, keep=keep, exclude=[layer])
    traced = trace(model, net.example())
    proposal = plan(scan_for(traced, settings), settings)
    ghosted = rewrite(traced, proposal)
    (swap,) = ghosted.plan.swaps
    assert isinstance(swap, WidthSwap) and swap.exclude == (layer,)
    assert swap.before.params > swap.after.params == sum(p.numel() for p in ghosted.module.parameters())
    assert torch.equal(ghosted.module.get_parameter(f"{layer}.weight"), model.get_parameter(f"{layer}.weight"))
    (given,) = outputs(ghosted.module, traced.args[0])
    assert torch.allclose(given, silent(traced, settings), rtol=1e-4, atol=1e-5)
    (tmp_path / "plan.yaml").write_text(proposal.to_yaml(), encoding="utf-8")
    again = read_plan(tmp_path / "plan.yaml")
    assert again == proposal == check(again, scan_for(traced, again))
    save(ghosted, tmp_path / "run")
    loaded = load(tmp_path / "run", model=net.build(), example=net.example())
    assert torch.equal(outputs(loaded.module, traced.args[0])[0], given)


def test_a_glob_excludes_every_layer_it_matches() -> None:
    model = convert(plain(), X, **W, width=0.5, exclude=["[01].0"]).module
    assert [model[i][0].out_channels for i in (0, 1, 2)] == [8, 16, 8]


def test_a_scan_says_what_is_steady() -> None:
    """A plan is made for a scan of the same exclusions."""
    traced = trace(plain(), X)
    settings = GhostSettings(**W, exclude=["1.0"])
    found = scan(traced, whole=True, steady=["1.0"])
    assert found == scan_for(traced, settings) and found.steady == ("1.0",)
    proposal = plan(found, settings)
    for other in (scan(traced), scan(traced, whole=True), scan(traced, whole=True, steady=["0.0"])):
        with pytest.raises(PlanError, match=r"has no channels of the whole network in it: scan\(.*steady=\('1.0',\)"):
            plan(other, settings)
        with pytest.raises(PlanError, match=r"has no channels of the whole network in it"):
            check(proposal, other)
    with pytest.raises(PlanError, match=r"has no channels of the whole network in it: scan\(\.\.\., whole=True\)\.$"):
        plan(found, GhostSettings(**W))


@pytest.mark.parametrize(("glob", "hint"), [("0.00", r" Did you mean '0\.0'\?"), ("nothing", "")])
def test_an_exclusion_that_matches_no_layer_is_refused(glob: str, hint: str) -> None:
    with pytest.raises(PlanError, match=rf"^exclude '{glob}' matches no layer or stage of Sequential\.{hint}"):
        convert(plain(), X, **W, exclude=[glob])


@pytest.mark.parametrize("given", [{"include": ["0.*"]}, {"set": {"0.*": {"ratio": 0.5}}}])
def test_settings_that_say_nothing_to_it_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"^Method width takes the whole network, so include and set say nothing"):
        convert(plain(), X, **W, **given)


def test_a_net_without_anything_to_narrow_is_refused() -> None:
    net = next(net for net in ZOO if net.name == STEADY)
    message = r"has no width that may change: all its channels are outputs\.$"
    with pytest.raises(PlanError, match=message):
        convert(net.build(), net.example(), **W)
    with pytest.raises(PlanError, match=message):
        convert(plain(), X, **W, exclude=["*"])


def test_widths_that_round_to_what_they_are_are_told_so() -> None:
    """Three quarters of sixteen channels are twelve, and to the nearest multiple of eight sixteen."""
    with pytest.raises(PlanError, match=r"no width that may change") as refused:
        convert(nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), head(16)), X, method="width", width=0.75, round_to=8)
    assert "outputs" not in str(refused.value) and "round_to" in str(refused.value)


def test_a_net_can_be_narrowed_again() -> None:
    first = convert(plain(), X, **W)
    second = convert(first.module, X, **W)
    assert second.after.cost.macs < first.after.cost.macs and second.module(X).shape == (2, 4)


def test_it_trains() -> None:
    model = convert(nn.Sequential(conv_bn(3, 8), basic(8, 8), basic(8, 16, 2), head(16)), X, **W).module.train()
    nn.functional.cross_entropy(model(X), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_modes_and_frozen_parameters_are_kept() -> None:
    model = plain().eval()
    model[0].requires_grad_(False)
    new = convert(model, X, **W).module
    assert not any(part.training for part in new.modules())
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in model.parameters()]


# -- plans -----------------------------------------------------------------------------------------------------


def test_the_plan_goes_through_its_file(tmp_path: Path) -> None:
    traced = trace(plain(), X)
    settings = GhostSettings(**W, width=0.5)
    proposal = plan(scan_for(traced, settings), settings)
    (tmp_path / "plan.yaml").write_text(proposal.to_yaml(), encoding="utf-8")
    again = read_plan(tmp_path / "plan.yaml")
    assert again == proposal
    assert check(again, scan_for(traced, again)) == proposal
    assert rewrite(traced, again).after.cost == proposal.after
    assert "width=0.5" in str(proposal)


def test_it_has_no_other_swap_beside_it() -> None:
    traced = trace(plain(), X)
    settings = GhostSettings(**W)
    proposal = plan(scan_for(traced, settings), settings)
    other = plan(scan(traced), min_saving=0)
    assert isinstance(other, Plan) and other.swaps
    both = proposal.model_copy(update={"swaps": (*proposal.swaps, other.swaps[0])})
    with pytest.raises(PlanError, match=r"network as a whole \(rule width\), so it can have no other swap"):
        rewrite(traced, both)


def test_a_plan_for_another_network_is_refused() -> None:
    settings = GhostSettings(**W)
    proposal = plan(scan_for(trace(plain(), X), settings), settings)
    with pytest.raises(PlanError, match=r"made for another network: .* has \d+ layers, not 4 layers"):
        rewrite(trace(shuffle_stage(), X), proposal)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_named(name: str) -> None:
    net = next(net for net in ZOO if net.name == name)
    with pytest.raises(PlanError, match=f"cannot be scaled as a whole: {REFUSED[name]}"):
        convert(net.build(), net.example(), **W)


@pytest.mark.parametrize("name", UNFIT)
def test_code_that_cannot_work_with_fewer_channels_is_refused_as_such(name: str) -> None:
    """The example is not at fault, nor the package; what torch said of it is told in one line."""
    net = next(net for net in ZOO if net.name == name)
    message = rf"^{UNFIT[name]} cannot be scaled as a whole: its code does not run narrower \(Given groups=\d.*\)\.$"
    with pytest.raises(RewriteError, match=message):
        convert(net.build(), net.example(), **W)
