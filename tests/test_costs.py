"""What things cost: against numbers worked out by hand, torch's flop counter, fvcore, and the papers' formulas."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ghostify import plan, rewrite, scan, trace
from ghostify.costs import (
    Cost,
    approximate_ratio,
    compression_ratio,
    count,
    own_params,
    speedup_ratio,
)
from ghostify.rules import CGhostSwap, c_ghost
from ghostify.running import is_conv, op_name
from ghostify.scanning import Scan, Site


class Calls(nn.Module):
    """A module whose forward is ``function`` of its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def scanned(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Scan:
    return scan(Calls(function), tuple(torch.randn(shape) for shape in shapes))


ATEN = torch.ops.aten


def convolution(
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    stride: int,
    transposed: bool = False,
    groups: int = 1,
    rest: Sequence[bool] = (),
) -> Tensor:
    """By a function that takes every argument there is."""
    return function(x, weight, None, [stride], [0], [1], transposed, [0], groups, *rest)


def cost(layer: nn.Module, *shape: int) -> Cost:
    return scan(nn.Sequential(layer), torch.randn(shape)).cost


def flops(model: nn.Module, *inputs: Tensor) -> int:
    """torch's own count, in multiply-accumulates."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(*inputs)
    return counter.get_total_flops() // 2


# -- by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "params", "macs", "acts"),
    [
        # 8 filters of 3·3·3, on 2 images of 6x6 → 4x4 positions
        (nn.Conv2d(3, 8, 3), (2, 3, 6, 6), 8 * 27 + 8, 2 * 16 * 8 * 27, 2 * 16 * 8),
        # stride 2 and padding 1: 6x6 → 3x3
        (nn.Conv2d(3, 8, 3, 2, 1, bias=False), (1, 3, 6, 6), 8 * 27, 9 * 8 * 27, 9 * 8),
        # 4 groups: every filter reads 8/4 inputs
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), (1, 8, 5, 5), 12 * 18 + 12, 25 * 12 * 18, 25 * 12),
        # depthwise with a multiplier of 2
        (nn.Conv2d(4, 8, (1, 3), groups=4, bias=False), (1, 4, 2, 5), 8 * 3, 2 * 3 * 8 * 3, 2 * 3 * 8),
        (nn.Conv2d(3, 8, 3, dilation=2, padding="same"), (1, 3, 6, 6), 8 * 27 + 8, 36 * 8 * 27, 36 * 8),
        (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), (1, 3, 6, 6), 8 * 27 + 8, 36 * 8 * 27, 36 * 8),
        (nn.Conv1d(2, 4, 5), (1, 2, 9), 4 * 10 + 4, 5 * 4 * 10, 5 * 4),
        (nn.Conv3d(1, 2, 2, bias=False), (1, 1, 3, 3, 3), 2 * 8, 8 * 2 * 8, 8 * 2),
        # transposed: every input position meets every weight of its channel; 3x3 → 6x6
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 3, 3), 4 * 6 * 4 + 6, 9 * 4 * 6 * 4, 36 * 6),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), (1, 4, 3, 3), 4 * 3 * 9, 9 * 4 * 3 * 9, 25 * 6),
        (nn.ConvTranspose1d(4, 6, 2), (1, 4, 3), 4 * 6 * 2 + 6, 3 * 4 * 6 * 2, 4 * 6),
        (nn.Linear(5, 7), (3, 5), 42, 3 * 35, 0),
        (nn.Linear(5, 7, bias=False), (2, 3, 5), 35, 6 * 35, 0),
        (nn.BatchNorm2d(6), (2, 6, 4, 4), 12, 0, 0),
        (nn.PReLU(6), (2, 6, 4, 4), 6, 0, 0),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else "",
)
def test_a_layer_costs_what_a_person_works_out(
    layer: nn.Module, shape: tuple[int, ...], params: int, macs: int, acts: int
) -> None:
    assert cost(layer, *shape) == Cost(params=params, macs=macs, acts=acts)


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (lambda a, b: a @ b, [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (torch.matmul, [(3, 4), (4,)], 12),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], 120),
        (torch.mm, [(3, 4), (4, 5)], 60),
        (torch.addmm, [(3, 5), (3, 4), (4, 5)], 60),
        (lambda a, b, c: torch.baddbmm(a, b, c), [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 120),
        (lambda a, b: a.matmul(other=b), [(3, 4), (4, 5)], 60),
        (lambda a, b: torch.matmul(other=b, input=a), [(3, 4), (4, 5)], 60),
        (lambda a, b: torch.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)], 120),
        (lambda a, b: torch.einsum("...ij, ...jk", [a, b]), [(2, 3, 4), (2, 4, 5)], 120),
        (lambda a, b: torch.einsum("nchw,oc->nohw", a, b), [(2, 3, 4, 4), (5, 3)], 2 * 16 * 15),
        (lambda a: torch.einsum("ij->ji", a), [(3, 4)], 0),
        # 2 heads of 5 queries against 7 keys of width 4, then 7 values of width 6
        (F.scaled_dot_product_attention, [(1, 2, 5, 4), (1, 2, 7, 4), (1, 2, 7, 6)], 2 * 5 * 7 * (4 + 6)),
        (F.conv2d, [(1, 3, 6, 6), (8, 3, 3, 3)], 16 * 8 * 27),
        (lambda x, w: F.conv2d(weight=w, input=x, stride=2), [(1, 3, 6, 6), (8, 3, 3, 3)], 4 * 8 * 27),
        (lambda x, w: F.conv2d(x, w, groups=2), [(1, 4, 5, 5), (8, 2, 3, 3)], 9 * 8 * 18),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(1, 4, 3, 3), (4, 6, 2, 2)], 9 * 4 * 24),
        (F.linear, [(3, 5), (7, 5)], 105),
        # as an exporter writes them
        (ATEN.conv2d, [(1, 3, 6, 6), (8, 3, 3, 3)], 16 * 8 * 27),
        (ATEN.conv2d.default, [(1, 3, 6, 6), (8, 3, 3, 3)], 16 * 8 * 27),
        (lambda x, w: ATEN.conv2d.padding(weight=w, input=x, padding="same"), [(1, 3, 6, 6), (8, 3, 3, 3)], 36 * 216),
        (lambda x, w: convolution(torch.convolution, x, w, 2), [(1, 3, 6, 6), (8, 3, 3, 3)], 4 * 8 * 27),
        (lambda x, w: convolution(torch._convolution, x, w, 2, rest=[False] * 4), [(1, 3, 6, 6), (8, 3, 3, 3)], 864),
        (lambda x, w: convolution(ATEN.convolution.default, x, w, 1), [(1, 2, 9), (4, 2, 5)], 5 * 4 * 10),
        (lambda x, w: convolution(ATEN.convolution, x, w, 2, True), [(1, 4, 3, 3), (4, 6, 2, 2)], 9 * 4 * 24),
        (lambda x, w: convolution(ATEN.convolution, x, w, 1, groups=2), [(1, 4, 5, 5), (8, 2, 3, 3)], 9 * 8 * 18),
        (ATEN.conv_transpose2d.input, [(1, 4, 3, 3), (4, 6, 2, 2)], 9 * 4 * 24),
        (ATEN.linear.default, [(3, 5), (7, 5)], 105),
        (ATEN.mm.default, [(3, 4), (4, 5)], 60),
        (lambda x: ATEN.relu_.default(ATEN.add.Tensor(x, x)), [(3, 4)], 0),
        (lambda a, b: (a * b).softmax(-1).mean(0).relu_() + 1, [(3, 4), (3, 4)], 0),
    ],
)  # fmt: skip
def test_a_function_costs_what_a_person_works_out(
    function: Callable[..., Any], shapes: list[tuple[int, ...]], macs: int
) -> None:
    found = scanned(function, *shapes)
    assert (found.cost.macs, found.unknown) == (macs, {})


def test_one_operation_has_one_name_however_it_is_called() -> None:
    model = Calls(lambda x: [nn.ReLU()(x), F.relu(x), x.relu(), x.clone().relu_(), torch.relu(x)])
    traced = trace(model, torch.randn(2, 3))
    names = {op_name(traced, node) for node in traced.graph.nodes if node.op.startswith("call")}
    assert names == {"relu", "clone"}
    assert is_conv("conv2d") and is_conv("conv_transpose1d") and not is_conv("linear")


def test_every_operation_is_listed_with_its_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    ops, unknown = count(trace(model, torch.randn(1, 3, 2, 2)))
    assert [(op.module, op.kind, op.macs, op.acts) for op in ops] == [("0.0", "conv2d", 48, 16), ("3", "linear", 32, 0)]
    assert not unknown


def test_parameters_are_counted_once_frozen_or_not_and_buffers_never() -> None:
    norm, linear = nn.BatchNorm2d(4), nn.Linear(3, 3).requires_grad_(False)
    tied = nn.Linear(3, 3, bias=False)
    tied.weight = linear.weight
    assert own_params(nn.ModuleList([norm, norm, linear, tied])) == 8 + 12


def test_costs_add_and_subtract() -> None:
    a, b = Cost(params=1, macs=2, acts=3), Cost(params=10, macs=20, acts=30)
    assert a + b - a == b
    assert Cost() + a == a


# -- what nobody knows -----------------------------------------------------------------------------------------


def test_an_unknown_operation_is_named_and_counted_not_guessed_at() -> None:
    found = scanned(lambda x: torch.linalg.svd(torch.linalg.svd(x)[0])[1], (4, 4))
    assert found.unknown == {"linalg_svd": 2}
    assert "linalg_svd (2x)" in found.uncounted
    assert "linalg_svd (2x)" in str(found)


def test_an_operator_of_another_library_or_of_other_arguments_is_not_taken_for_the_one_it_is_named_after() -> None:
    weight = torch.ones(1, 3, 4)
    with torch.library._scoped_library("ghostify_test", "DEF") as library:
        library.define("conv2d(Tensor x) -> Tensor")
        library.impl("conv2d", lambda x: x + 1, "CompositeExplicitAutograd")
        own = torch.ops.ghostify_test.conv2d
        found = scanned(lambda x: torch.conv_tbc(own(own.default(x)), weight, torch.zeros(4)), (5, 2, 3))
    assert found.unknown == {"ghostify_test.conv2d": 2, "conv_tbc": 1}
    assert not found.sites


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x).abs()


def test_what_a_module_of_the_user_does_is_seen_through() -> None:
    assert scan(nn.Sequential(Own(), nn.ReLU()), torch.randn(1, 2, 4, 4)).unknown == {"fft_rfft2": 1}


class Pairing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


def test_a_layer_of_torch_that_has_no_rule_is_named() -> None:
    assert scan(Pairing(), torch.randn(2, 3)).unknown == {"Bilinear": 1}


def test_a_script_inside_a_model_is_not_counted_as_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(nn.Conv2d(4, 4, 3), torch.randn(1, 4, 6, 6))
    found = scan(nn.Sequential(nn.Conv2d(3, 4, 1), script), torch.randn(1, 3, 6, 6))
    assert len(found.unknown) == 1


# -- oracles ---------------------------------------------------------------------------------------------------

REAL = {
    "resnet18": 64,
    "mobilenet_v3_small": 64,
    "squeezenet1_1": 64,
    "shufflenet_v2_x0_5": 64,
    "regnet_y_400mf": 64,
    "densenet121": 64,
    "convnext_tiny": 32,
}


def real(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval(), torch.randn(1, 3, REAL[name], REAL[name])


@pytest.mark.parametrize("name", REAL)
def test_macs_of_real_networks_are_those_of_the_flop_counter(name: str) -> None:
    model, x = real(name)
    with torch.no_grad():
        assert scan(model, x).cost.macs == flops(model, x)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_macs_and_activations_of_real_networks_are_those_of_fvcore(name: str) -> None:
    model, x = real(name)
    found = scan(model, x)
    assert (found.cost.macs, found.cost.acts) == fvcore_counts(model, x)
    assert found.unknown == {}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_so_are_those_of_their_ghosts(name: str) -> None:
    model, x = real(name)
    traced = trace(model, x)
    ghosted = rewrite(traced, plan(scan(traced), min_saving=0, also=["stem", "classifier", "pooled"]))
    assert (ghosted.after.cost.macs, ghosted.after.cost.acts) == fvcore_counts(ghosted.module.eval(), x)


def fvcore_counts(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """(MACs of convolutions and linear layers, elements of convolution outputs)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore uses what torch has deprecated
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

        macs, acts = (
            kind(model, x).unsupported_ops_warnings(False).tracer_warnings("none").by_operator()
            for kind in (FlopCountAnalysis, ActivationCountAnalysis)
        )
    return int(macs["conv"] + macs["linear"] + macs["addmm"] + macs["matmul"]), int(acts["conv"])


def test_multi_head_attention_costs_what_the_flop_counter_says() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.attention(x, y, y)[0]

    model, x, y = Attention(), torch.randn(5, 2, 12), torch.randn(7, 2, 12)
    assert scan(model, (x, y)).cost.macs == flops(model, x, y)


class Sequenced(nn.Module):
    """A recurrent layer over the columns of a map."""

    def __init__(self, kind: type[nn.RNNBase], **form: Any) -> None:
        super().__init__()
        self.conv, self.steps = nn.Conv1d(3, 8, 3), kind(8, 6, batch_first=True, **form)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.steps(self.conv(x).transpose(1, 2))[0]
        return y


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("form", [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_layers_cost_what_the_flop_counter_says(kind: type[nn.RNNBase], form: dict[str, Any]) -> None:
    model, x = Sequenced(kind, **form).eval().to("meta"), torch.empty(2, 3, 10, device="meta")
    seen = scan(model, x)
    assert seen.cost.macs == flops(model, x) and not seen.unknown


def test_the_projection_of_an_lstm_is_counted() -> None:
    model, x = Sequenced(nn.LSTM, proj_size=4).eval().to("meta"), torch.empty(2, 3, 10, device="meta")
    assert scan(model, x).cost.macs == flops(model, x)


def test_containers_without_layers_and_folding_are_free() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(), nn.Unfold(2, stride=2), nn.Fold((6, 6), 2, stride=2))
    assert not scan(model, torch.randn(1, 3, 8, 8)).unknown


# -- the papers' formulas --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("c", "k", "s", "d", "by_hand"),
    [
        (64, 3, 2, 3, 576 / (288 + 4.5)),
        (256, 1, 2, 3, 256 / (128 + 4.5)),
        (16, 3, 4, 5, 144 / (36 + 0.75 * 25)),
        (3, 7, 2, 1, 147 / (73.5 + 0.5)),
    ],
)
def test_the_first_forms_of_equations_four_and_five(c: int, k: int, s: int, d: int, by_hand: float) -> None:
    assert speedup_ratio(c, k, s, d) == pytest.approx(by_hand, rel=1e-12)
    assert compression_ratio(c, k, s, d) == pytest.approx(by_hand, rel=1e-12)


def test_a_pointwise_convolution_adds_its_weights_by_output_map() -> None:
    assert speedup_ratio(64, 3, 2, 3, pointwise=16) == pytest.approx(576 / (288 + 4.5 + 16), rel=1e-12)
    assert compression_ratio(64, 3, 2, 3, pointwise=16) == speedup_ratio(64, 3, 2, 3, pointwise=16)


def test_the_approximation_of_equations_four_and_five() -> None:
    assert approximate_ratio(64, 2) == pytest.approx(128 / 65)
    assert approximate_ratio(1e9, 4) == pytest.approx(4, rel=1e-6)


SQUARES = [
    (4, 16, 1, 2, 1),
    (4, 24, 3, 3, 3),
    (16, 33, 5, 3, 5),
    (16, 16, 1, 4, 3),
    (96, 24, 1, 2, 5),
    (96, 16, 3, 3, 1),
    (16, 33, 3, 2, 3),
    (4, 33, 1, 4, 3),
]


def counted_ratio(c: int, n: int, k: int, s: int, d: int) -> float:
    """MACs of a convolution over those counted in its ghost, both run."""
    traced = trace(nn.Sequential(nn.Conv2d(c, n, k, padding=k // 2, bias=False)), torch.zeros(1, c, 4, 4))
    before = scan(traced)
    ghosted = rewrite(traced, plan(before, s=s, d=d, pointwise="none", also=["stem"], min_saving=0))
    return before.cost.macs / ghosted.after.cost.macs


@pytest.mark.parametrize(("c", "n", "k", "s", "d"), SQUARES)
def test_theory_is_exact_when_s_divides_n_and_a_little_high_when_not(c: int, n: int, k: int, s: int, d: int) -> None:
    """Against a run; m = ⌈n/s⌉ is less than one map above n/s, so theory is at most s/n too high."""
    counted, theory = counted_ratio(c, n, k, s, d), speedup_ratio(c, k, s, d)
    if n % s == 0:
        assert counted == pytest.approx(theory, rel=1e-12)
    else:
        assert counted < theory < counted * (1 + s / n)


@pytest.mark.parametrize(("n", "s"), [(128, 3), (256, 5), (512, 3), (512, 5), (100, 3)])
def test_theory_is_within_three_percent_at_common_widths(n: int, s: int) -> None:
    site = a_site(c=64, n=n, k=3)
    predicted = c_ghost.predict(site, CGhostSwap(target="x", geometry=site.geometry, s=s, d=3))
    assert 1 < speedup_ratio(64, 3, s, 3) / (site.cost.macs / predicted.macs) < 1.03


def a_site(c: int, n: int, k: int) -> Site:
    macs = 49 * n * c * k * k
    return Site(
        name="x", kind="conv", in_channels=c, out_channels=n, kernel=(k, k), calls=1, positions=49,
        cost=Cost(params=n * c * k * k, macs=macs, acts=49 * n),
    )  # fmt: skip


@pytest.mark.parametrize("c", [16, 64, 512])
@pytest.mark.parametrize("s", [2, 3, 5])
def test_the_approximation_is_the_exact_form_only_for_d_equal_to_k(c: int, s: int) -> None:
    for k in (1, 3, 5):
        assert approximate_ratio(c, s) == pytest.approx(speedup_ratio(c, k, s, d=k), rel=1e-12)
    high = approximate_ratio(c, s) / speedup_ratio(c, 1, s, d=3)
    assert high > 1.01  # a 1x1 primary with d = 3: the paper's approximation promises too much
    assert math.isclose(high, (c / s + (s - 1) / s * 9) / (c / s + (s - 1) / s))
