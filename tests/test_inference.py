"""The inference form: equal to the network that trains, on every net of the zoo and in every form of a ghost."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from command import Cli, refused
from hard_nets import Hard
from test_hard_nets import each_net as each_hard_net
from test_parts import Detector
from test_zoo import evaluated, own_copy, storages, tensors, visible
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only
from zoo import ZOO, Net, Residual, conv_bn, head, run

import ghostify
from ghostify import Ghosted, GhostSettings
from ghostify.cheap import Cheap
from ghostify.errors import GhostifyError, RewriteError, RunError, TraceError
from ghostify.ghosts import CGhost
from ghostify.inference import Optimized, merging, optimize
from ghostify.networks import resnet20
from ghostify.planning import check
from ghostify.recipe import Role
from ghostify.running import REORDERED, agree, quiet, seed
from ghostify.saving import read_run

EVERYTHING = GhostSettings(also=get_args(Role), min_saving=0)
FORMS: tuple[dict[str, Any], ...] = (
    {"cheap": Cheap(None, "full"), "ordered": True},
    {"cheap": Cheap(3)},
    {"cheap": Cheap(1, 1)},
    {"cheap": Cheap(3, "full")},
    {"s": 3, "cheap": Cheap(1, "full")},
    {"cheap": Cheap(3), "parts": "norm-act"},
    {"cheap": Cheap(1), "ordered": True},
    {"s": 3, "cheap": Cheap(None, 1)},
)
"""Settings of a ghost: by turns those of a net's layers, so that each net has several and each form meets each net."""
each_net = pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)


def ghosted_by_turns(net: Net, first: int) -> Ghosted:
    """The net with every layer a ghost, the forms taken in turns from the ``first`` on, and nothing at its first value.

    A form that a layer cannot take (a ratio above its width, a pointwise convolution with groups) is left to others.
    """
    traced = ghostify.trace(net.build(), net.example())
    scan = ghostify.scan(traced)
    plan = ghostify.plan(scan, EVERYTHING)
    swaps = list(plan.swaps)
    for index, swap in enumerate(swaps):
        changed = plan.model_copy(update={"swaps": (swap.model_copy(update=FORMS[(index + first) % len(FORMS)]),)})
        with contextlib.suppress(GhostifyError):
            (swaps[index],) = check(changed, scan).swaps
    ghosted = ghostify.rewrite(traced, plan.model_copy(update={"swaps": tuple(swaps)}))
    unsettle(ghosted.module)
    return ghosted


def unsettle(module: nn.Module) -> None:
    """Statistics, slopes, offsets and pointwise weights that a fold which forgets one of them would show."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator) / 4)
                part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
                part.weight.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(part.num_features, generator=generator) / 4)
            if isinstance(part, CGhost) and part.order is not None:
                part.order.copy_(torch.randperm(part.out_channels, generator=generator))
            if isinstance(part, CGhost):
                for parameter in part.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) / 8)


def larger(example: Any) -> Any:
    """The example with maps of twice the size."""
    return tree_map_only(Tensor, lambda x: x.repeat(1, 1, *[2] * (x.dim() - 2)) if x.dim() > 2 else x, example)


def close(wanted: list[Tensor], found: list[Tensor]) -> bool:
    """Equal but for rounding, measured by how much the outputs vary and not by how large they are."""
    for one, other in zip(wanted, found, strict=True):
        fine = one.dtype not in (torch.bfloat16, torch.float16)
        spread = (one.double() - one.double().mean()).abs().max()
        if (one.double() - other.double()).abs().max() > (2e-4 if fine else 0.2) * spread:
            return False
    return True


@each_net
def test_the_inference_form_gives_what_the_network_gives(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on larger maps, which was not looked at when it was made.

    With full vectors the nets' few channels make one convolution of most ghosts, without them two: by turns.
    """
    turn = ZOO.index(net)
    monkeypatch.setattr(merging, "LANES", merging.LANES if turn % 2 else 1)
    example = net.example()
    ghosted = ghosted_by_turns(net, turn)
    optimized = optimize(ghosted, example)
    assert close(evaluated(ghosted.module, example), evaluated(optimized.module, example))
    assert not any(part.training for part in optimized.module.modules())
    try:
        wanted = evaluated(ghosted.module, larger(example))
    except RuntimeError:
        return  # the net itself takes maps of one size
    assert close(wanted, evaluated(optimized.module, larger(example)))


@each_hard_net
def test_a_hard_network_is_optimised_to_the_same_function_or_refused_in_one_line(net: Hard) -> None:
    model, example = net.build(), net.example()
    refusal = ""
    try:
        optimized = optimize(model, example)
    except GhostifyError as problem:
        refusal = str(problem)
    if refusal:
        assert "\n" not in refusal
        return
    wanted, found = (quietly_run(module, example) for module in (model, optimized.module))
    assert all(agree(one, other, REORDERED) for one, other in zip(wanted, found, strict=True))


def quietly_run(module: nn.Module, example: Any) -> list[Tensor]:
    """What a module gives in eval mode, with the same random numbers each time."""
    with quiet(module):
        seed()
        return tensors(run(module, own_copy(example)))


# -- what becomes of what ------------------------------------------------------------------------------------------


def small(**form: Any) -> Ghosted:
    """Three convolutions with norms, of which the last two are ghosts of a form."""
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 16), conv_bn(16, 32), conv_bn(32, 32), head(32))
    ghosted = ghostify.convert(model, torch.randn(1, 3, 8, 8), min_saving=0, **form)
    unsettle(ghosted.module)
    return ghosted


def kinds(module: nn.Module) -> list[type[nn.Module]]:
    return [type(part) for part in module.modules() if not any(True for _ in part.children())]


def test_a_pointwise_ghost_with_its_norm_becomes_two_convolutions_under_its_name() -> None:
    ghosted = small(cheap="pointwise")
    optimized = optimize(ghosted)
    first, second = optimized.module.get_submodule("1.0")
    assert (first.weight.shape, second.weight.shape) == ((16, 16, 3, 3), (32, 16, 1, 1))
    assert kinds(optimized.module[1]) == [nn.Conv2d, nn.Conv2d, nn.Identity, nn.ReLU]
    assert not any(isinstance(part, (CGhost, _BatchNorm)) for part in optimized.module.modules())
    assert str(optimized) == "Sequential: 2 ghost modules merged, 3 norms folded"


def test_an_order_of_the_outputs_costs_nothing() -> None:
    ghosted = small(cheap="pointwise")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    ordered = copy.deepcopy(ghosted)
    ordered.module[1][0].register_buffer("order", order)
    plain, permuted = (optimize(one, torch.randn(1, 3, 8, 8)).module[1][0] for one in (ghosted, ordered))
    # The norm behind it is that of the outputs, so only where it adds nothing are its rows the same in another order.
    for one in (plain, permuted):
        assert kinds(one) == [nn.Conv2d, nn.Conv2d]
    a = ghosted.module[1][1].weight / (ghosted.module[1][1].running_var + 1e-5).sqrt()
    torch.testing.assert_close(
        (plain[1].weight.flatten(1) / a[:, None])[order], permuted[1].weight.flatten(1) / a[:, None]
    )


def test_a_pointwise_ghost_becomes_one_convolution_where_two_cost_a_runtime_no_less() -> None:
    """Of a 1x1 convolution, and where half of the filters fill no vector of sixteen."""
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 16), conv_bn(16, 32, 1), conv_bn(32, 32), conv_bn(32, 16), head(16))
    ghosted = ghostify.convert(model, torch.randn(1, 3, 8, 8), min_saving=0, cheap="pointwise")
    module = optimize(ghosted).module
    assert module[1][0].weight.shape == (32, 16, 1, 1)
    assert [conv.weight.shape for conv in module[2][0]] == [(16, 32, 3, 3), (32, 16, 1, 1)]
    assert module[3][0].weight.shape == (16, 32, 3, 3)


def test_what_the_inference_form_costs_is_counted() -> None:
    optimized = optimize(small(cheap="pointwise"))
    macs = 64 * (9 * 3 * 16 + 9 * 16 * 16 + 16 * 32 + 9 * 32 * 16 + 16 * 32) + 32 * 4
    params = 9 * 3 * 16 + 16 + 9 * 16 * 16 + 16 * 32 + 32 + 9 * 32 * 16 + 16 * 32 + 32 + 32 * 4 + 4
    assert (optimized.inference.macs, optimized.inference.params) == (macs, params)
    assert optimized.after.cost.macs == macs - 2 * 64 * 16 * 16


def test_a_linear_ghost_on_vectors_becomes_linear_layers_whatever_its_kernel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 8), nn.Flatten(), nn.Linear(512, 64), nn.BatchNorm1d(64), nn.Linear(64, 4))
    ghosted = ghostify.convert(
        model, torch.randn(2, 3, 8, 8), also=["classifier"], min_saving=0, cheap="depthwise 3 + pointwise"
    )
    assert isinstance(ghosted.module[2], CGhost)
    unsettle(ghosted.module)
    optimized = optimize(ghosted)
    assert [layer.weight.shape for layer in optimized.module[2]] == [(32, 512), (64, 32)]
    x = torch.randn(2, 3, 8, 8)
    assert close(evaluated(ghosted.module, x), evaluated(optimized.module, x))


def in_a_row() -> nn.Module:
    """A ghost whose outputs go through a norm, a pooling and a depthwise convolution before others read them."""
    depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU())
    return nn.Sequential(conv_bn(3, 16), conv_bn(16, 32), nn.MaxPool2d(2), depthwise, conv_bn(32, 32), head(32))


def ordered(model: nn.Module) -> Ghosted:
    """All its 3x3 convolutions as depthwise ghosts that put their outputs in an order, each another."""
    traced = ghostify.trace(model, torch.randn(2, 3, 8, 8))
    plan = ghostify.plan(ghostify.scan(traced), min_saving=0, cheap="depthwise 3")
    swaps = tuple(swap.model_copy(update={"ordered": True}) for swap in plan.swaps)
    ghosted = ghostify.rewrite(traced, plan.model_copy(update={"swaps": swaps}))
    unsettle(ghosted.module)
    return ghosted


def test_an_order_goes_into_the_layers_that_read_the_outputs() -> None:
    ghosted, x = ordered(in_a_row()), torch.randn(2, 3, 8, 8)
    optimized = optimize(ghosted)
    assert [change.target for change in optimized.changes if change.what == "reordered"] == ["1.0", "4.0"]
    assert all(part.order is None for part in optimized.module.modules() if isinstance(part, CGhost))
    assert close(evaluated(ghosted.module, x), evaluated(optimized.module, x))


def test_an_order_stays_where_the_outputs_are_added_to_others() -> None:
    model = nn.Sequential(conv_bn(3, 16), Residual(conv_bn(16, 16), 16, 16, 1), head(16))
    ghosted, x = ordered(model), torch.randn(2, 3, 8, 8)
    optimized = optimize(ghosted)
    assert not [change for change in optimized.changes if change.what == "reordered"]
    assert close(evaluated(ghosted.module, x), evaluated(optimized.module, x))


# -- what is left alone --------------------------------------------------------------------------------------------


class TwoNorms(nn.Module):
    """One convolution on two scales, with a norm for each, as in detectors' heads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 8, 3), nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [norm(self.conv(y)) for norm, y in zip(self.norms, (x, x[..., ::2, ::2]), strict=True)]


class Tapped(nn.Module):
    """What the convolution gives is read before its norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y.mean()


class Lent(nn.Module):
    """The convolution's weight is read by a function, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.weight.square().mean()


class Rows(nn.Module):
    """A norm of the rows of a matrix behind a linear layer, as many as it has outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x[:, 0]))


def watched() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[0].register_forward_hook(lambda module, args, output: None)
    return model


def without_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))


def in_groups() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(3, 9, 3, groups=3), nn.BatchNorm2d(9))


@pytest.mark.parametrize("made", [TwoNorms, Tapped, Lent, Rows, watched, without_statistics, in_groups])
def test_a_norm_stays_where_folding_it_would_change_what_is_computed_or_seen(made: Any) -> None:
    model, x = made(), torch.randn(2, 3, 8, 8)
    unsettle(model) if made is not without_statistics else None
    optimized = optimize(model, x)
    assert not optimized.changes
    assert sum(isinstance(part, _BatchNorm) for part in optimized.module.modules()) >= 1


def test_a_norm_that_follows_one_convolution_in_every_call_is_folded_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.norm(self.conv(x))))

    model, x = Twice(), torch.randn(2, 3, 8, 8)
    unsettle(model)
    optimized = optimize(model, x)
    assert [(change.target, change.into) for change in optimized.changes] == [("norm", "conv")]
    assert close(evaluated(model, x), evaluated(optimized.module, x))


def test_a_transposed_convolution_takes_its_norm_in() -> None:
    model, x = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.randn(2, 3, 8, 8)
    unsettle(model)
    optimized = optimize(model, x)
    assert kinds(optimized.module) == [nn.ConvTranspose2d, nn.Identity, nn.ReLU]
    assert close(evaluated(model, x), evaluated(optimized.module, x))


# -- the network that trains ---------------------------------------------------------------------------------------


def test_the_network_that_trains_is_never_changed() -> None:
    ghosted, x = small(cheap="pointwise"), torch.randn(2, 3, 8, 8)
    before = visible(ghosted.module, x)
    optimized = optimize(ghosted)
    assert visible(ghosted.module, x) == before
    assert not storages(ghosted.module) & storages(optimized.module)


def test_weights_lie_with_their_channels_last_unless_code_views_a_map_otherwise() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = conv_bn(3, 8), nn.Linear(8 * 64, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return self.last(y.view(len(y), -1))

    x = torch.randn(2, 3, 8, 8)
    plain, viewing = optimize(small(cheap="pointwise")).module, optimize(Viewing(), x).module
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in plain.parameters() if w.dim() == 4)
    assert plain[0](x).is_contiguous(memory_format=torch.channels_last)
    assert viewing.body[0].weight.is_contiguous()
    assert viewing(x).shape == (2, 4)


def test_the_inference_form_can_be_exported_and_optimised_again() -> None:
    optimized, x = optimize(small(cheap="pointwise")), torch.randn(1, 3, 8, 8)
    program = torch.export.export(optimized.module, (x,)).module()
    torch.testing.assert_close(program(x), optimized.module(x))
    again = optimize(optimized.module, x)
    assert not again.changes
    assert torch.equal(again.module(x), optimized.module(x))


def test_a_forward_may_ask_a_merged_ghost_what_a_convolution_would_say() -> None:
    ghosted = small(cheap="pointwise")
    merged = optimize(ghosted).module[1][0]
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert [getattr(merged, name) for name in names] == [16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"]


def test_a_forward_that_looks_into_its_norm_is_refused() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))[:, : self.norm.num_features // 2]

    with pytest.raises(RewriteError, match="inference form does not run"):
        optimize(Looking(), torch.randn(1, 3, 8, 8))


def test_a_forward_that_goes_another_way_is_refused() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return y if isinstance(self.norm, nn.BatchNorm2d) else 2 * y

    with pytest.raises(RewriteError, match="gives other outputs"):
        optimize(Asking(), torch.randn(1, 3, 8, 8))


def test_a_network_of_which_nothing_says_what_it_takes_needs_an_example() -> None:
    with pytest.raises(TraceError, match="Nothing says what Sequential takes"):
        optimize(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(TraceError, match="not a torch"):
        optimize("resnet18")


def test_what_is_optimised_is_still_told_by_its_plan() -> None:
    ghosted = small(cheap="pointwise")
    optimized = optimize(ghosted)
    assert isinstance(optimized, Optimized)
    assert (optimized.plan, optimized.before, optimized.after) == (ghosted.plan, ghosted.before, ghosted.after)
    assert ghostify.compare(optimized).after == ghosted.after.cost


def test_what_resists_as_a_whole_is_optimised_in_its_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    ghosted = ghostify.convert(Detector(), x, min_saving=0, cheap="pointwise")
    assert ghosted.plan.parts
    unsettle(ghosted.module)
    optimized = optimize(ghosted)
    assert {change.what for change in optimized.changes} == {"merged", "folded"}
    assert {change.target.partition(".")[0] for change in optimized.changes} == {"backbone", "heads"}
    parts = [(one.module.backbone, one.module.heads.shared) for one in (ghosted, optimized)]
    for was, now in zip(*parts, strict=True):
        y = torch.randn(2, 3 if was is parts[0][0] else 32, 16, 16)
        assert close(evaluated(was, y), evaluated(now, y))
    ghostify.save(optimized, tmp_path / "run", model="test_parts:detector")
    assert torch.equal(ghostify.load(tmp_path / "run").module(x), optimized.module(x))


# -- run folders ---------------------------------------------------------------------------------------------------


def converted(**settings: Any) -> Ghosted:
    torch.manual_seed(0)
    ghosted = ghostify.convert(resnet20(), torch.randn(1, 3, 16, 16), min_saving=0, **settings)
    unsettle(ghosted.module)
    return ghosted


@pytest.mark.parametrize("settings", [{"cheap": "pointwise"}, {"method": "g-ghost"}, {"method": "thin"}])
def test_the_inference_form_comes_back_bit_by_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    optimized = optimize(converted(**settings))
    ghostify.save(optimized, tmp_path / "run", model="ghostify:resnet20")
    loaded = ghostify.load(tmp_path / "run")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.module(x), optimized.module(x))
    strides = [[parameter.stride() for parameter in one.module.parameters()] for one in (loaded, optimized)]
    assert strides[0] == strides[1]
    assert isinstance(loaded, Optimized)
    assert (loaded.changes, loaded.inference, loaded.plan) == (optimized.changes, optimized.inference, optimized.plan)
    assert read_run(tmp_path / "run").form == "inference"


def test_the_inference_form_does_not_go_on_from_the_form_that_trains(tmp_path: Path) -> None:
    ghosted = converted(cheap="pointwise")
    ghostify.save(ghosted, tmp_path / "run", model="ghostify:resnet20")
    with pytest.raises(RunError, match="holds a run already"):
        ghostify.save(optimize(ghosted), tmp_path / "run", model="ghostify:resnet20", state="finetuned")


def test_optimize_writes_a_run_with_both_forms_in_its_report(cli: Cli) -> None:
    pointwise = ("--cheap", "pointwise", "--min-saving", "0")
    assert cli("compress", "mine:tiny", "--input", "3,8,8", "--output", "run", *pointwise).code == 0
    answer = cli("optimize", "run")
    assert answer.code == 0, answer.err
    assert "as it trains" in answer.out and "latency (1 thread)" in answer.out
    assert "Saved in run-inference" in answer.err
    x = torch.randn(2, 3, 8, 8)
    trained, fast = ghostify.load("run").module, ghostify.load("run-inference").module
    torch.testing.assert_close(fast(x), trained(x))
    report = json.loads(cli("report", "run-inference", "--json").out)
    was = json.loads(cli("report", "run", "--json").out)
    inference = report.pop("inference")
    assert inference["merged"] == 1 and inference["folded"] == 2 and inference["latency"]["before"]["median_ms"] > 0
    assert report | {"inference": None} == was
    assert "as it runs" in cli("report", "run-inference").out
    assert json.loads(cli("optimize", "run", "--json").out)["folder"] == "run-inference-2"
    assert cli("eval", "run-inference", "--data", "fake").code == 0


def test_what_cannot_be_optimised_is_refused_in_one_line(cli: Cli) -> None:
    refused(cli("optimize", "nowhere"), "'nowhere' does not exist")
    refused(cli("optimize", "."), "holds no finished run")
    assert cli("compress", "mine:tiny", "--input", "3,8,8", "--output", "run").code == 0
    assert cli("optimize", "run").code == 0
    refused(cli("optimize", "run-inference"), "is in its inference form already")
    refused(cli("finetune", "run-inference", "--data", "fake"), "is not rewritten or trained")
    refused(cli("compress", "run-inference"), "is not rewritten or trained")
    assert sorted(path.name for path in Path().iterdir() if path.is_dir() and path.name[:1] != "_") == [
        "run",
        "run-inference",
    ]
