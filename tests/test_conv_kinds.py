"""Convolutions as they come: classes of their own, parametrised ones, one to three dimensions, any geometry.

What torch counts is the independent truth for every cost here.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode
from zoo import CoveringConv, StandardConv, conv_bn, head

from ghostify import Ghosted, compare, convert, load, plan, rewrite, save, scan, trace
from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, intrinsic_maps
from ghostify.ghosts.narrowing import folded, narrowed, not_narrowable
from ghostify.recipe import GhostSettings
from ghostify.rules import CGhostSwap

PARTS = GhostSettings(also=["stem", "classifier", "pooled"], min_saving=0, pointwise="none")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def counted(module: nn.Module, x: Tensor) -> Cost:
    """Parameters and MACs by torch, and the elements that convolutions give."""
    made: list[int] = []
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if isinstance(part, kinds):
            part.register_forward_hook(lambda _, args, out: made.append(out.numel()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    params = sum(p.numel() for p in module.parameters())
    return Cost(params=params, macs=counter.get_total_flops() // 2, acts=sum(made))


def converted(layer: nn.Module, x: Tensor, **changes: Any) -> tuple[Ghosted, Any]:
    """A network of that one layer, and the ghost in its place."""
    ghosted = convert(nn.Sequential(layer), x, PARTS, **changes)
    return ghosted, ghosted.module[0]


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(x)


# -- classes of their own --------------------------------------------------------------------------------------


class HalvedConv(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight / 2, bias)


class MaskedConv(nn.Conv2d):
    """With a buffer as large as its weight, and a number for all filters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.rand_like(self.weight) > 0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask * self.scale, self.bias)


class StandardSignal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2), keepdim=True), self.bias)


OWN: dict[str, nn.Module] = {
    "gain": StandardConv(6, 12, 3, stride=2, padding=1),
    "gain, groups": StandardConv(6, 12, 3, groups=3, bias=False),
    "padding": CoveringConv(6, 11, 3, stride=2, dilation=2),
    "halved": HalvedConv(6, 9, (1, 3)),
    "masked": MaskedConv(6, 10, 3),
    "one dimension": StandardSignal(6, 8, 5, padding=2),
    "parametrised too": parametrizations.weight_norm(HalvedConv(6, 9, 3)),
}
each_own = pytest.mark.parametrize("name", OWN)


def own(name: str) -> tuple[Any, Tensor]:
    """The layer, with numbers as if it were trained, and an image."""
    layer: Any = copy.deepcopy(OWN[name])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer, torch.randn(2, 6, *[9, 10][: layer.weight.dim() - 2])


@each_own
@pytest.mark.parametrize("s", [2, 3])
def test_a_class_of_its_own_is_the_primary_convolution(name: str, s: int) -> None:
    """Its maps are the layer's own, in every group; it pads, prepares and counts as the layer does."""
    layer, x = own(name)
    ghosted, ghost = converted(layer, x, s=s)
    n, g = layer.out_channels, layer.groups
    m = intrinsic_maps(n, s, g)
    first = torch.arange(n).view(g, -1)[:, : m // g].flatten()
    maps, expected = outputs(ghosted.module, x), outputs(layer, x)
    assert type(ghost.primary).__name__ == type(layer).__name__ and ghost.primary.out_channels == m
    assert maps.shape == expected.shape
    assert torch.allclose(maps[:, first], expected[:, first], rtol=1e-4, atol=1e-5)
    assert ghosted.after.cost == ghosted.plan.after == counted(ghosted.module, x)


@each_own
def test_a_class_of_its_own_loses_nothing_where_its_filters_are_multiples(name: str) -> None:
    """Of the filters it convolves with, whatever stands in its weight; biases and gains follow."""
    layer, x = own(name)
    n, g = layer.out_channels, layer.groups
    each, m = n // g, intrinsic_maps(n, 2, g) // g
    with torch.no_grad():
        for tensor in (p for p in (*layer.parameters(), *layer.buffers()) if p.dim() > 1 and len(p) == n):
            by_group = tensor.view(g, each, *tensor.shape[1:])
            for j in range(m, each):
                by_group[:, j] = by_group[:, j - m]
        if hasattr(layer, "gain"):
            layer.gain.normal_()
    ghosted, _ = converted(layer, x)
    assert torch.allclose(outputs(ghosted.module, x), outputs(layer, x), rtol=1e-3, atol=1e-4)


@each_own
def test_a_class_of_its_own_is_rebuilt_from_the_plan(name: str, tmp_path: Path) -> None:
    layer, x = own(name)
    ghosted, _ = converted(layer, x)
    save(ghosted, tmp_path / "run")
    loaded = load(tmp_path / "run", model=nn.Sequential(copy.deepcopy(OWN[name])))
    assert torch.equal(outputs(loaded.module, x), outputs(ghosted.module, x))
    assert [*loaded.module.state_dict()] == [*ghosted.module.state_dict()]


@each_own
def test_a_class_of_its_own_learns_and_shares_nothing(name: str) -> None:
    layer, x = own(name)
    layer.weight.requires_grad_(True)
    _, ghost = converted(layer, x)
    before = [p.detach().clone() for p in layer.parameters()]
    ghost(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ghost.parameters())
    with torch.no_grad():
        for parameter in ghost.parameters():
            parameter.zero_()
    assert all(torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))


def test_what_is_frozen_in_a_class_of_its_own_stays_frozen() -> None:
    layer, x = own("gain")
    layer.gain.requires_grad_(False)
    layer.eval()
    _, ghost = converted(layer, x)
    frozen = {name for name, p in ghost.named_parameters() if not p.requires_grad}
    assert frozen == {"primary.gain"}
    assert not any(part.training for part in ghost.modules())


@pytest.mark.parametrize("order", [[3, 0, 5, 1, 4, 2], [5, 4, 3, 2, 1, 0]])
def test_an_ordered_ghost_of_a_class_of_its_own_keeps_the_maps_that_come_first(order: list[int]) -> None:
    layer, x = StandardConv(6, 6, 3), torch.randn(2, 6, 8, 8)
    ghost = CGhost.from_conv(layer, s=2, order=order)
    intrinsic = [output for output, place in enumerate(order) if place < 3]
    assert torch.allclose(outputs(ghost, x)[:, intrinsic], outputs(layer, x)[:, intrinsic], atol=1e-5)


def test_parts_with_norms_take_a_class_of_its_own() -> None:
    ghosted, ghost = converted(StandardConv(6, 8, 3), torch.randn(2, 6, 8, 8), parts="norm-act")
    assert [type(part).__name__ for part in ghost.primary] == ["StandardConv", "BatchNorm2d", "ReLU"]
    assert (ghost.primary[1].running_var == 1).all()
    assert ghosted.after.cost == counted(ghosted.module, torch.randn(2, 6, 8, 8))


# -- classes that cannot do with fewer filters -----------------------------------------------------------------


class WholeNorm(nn.Conv2d):
    """Every filter depends on all."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class GatedWholeNorm(WholeNorm):
    """The same behind a gain of zero."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.zeros(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gain * self.weight / self.weight.norm(), None)


class Reversed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.flip(0), self.bias)


class Rectified(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(-x)


class Adapted(nn.Conv2d):
    """With a product of two small matrices added to its weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.down = nn.Parameter(torch.randn(2, self.weight[0].numel()))
        self.up = nn.Parameter(torch.randn(self.out_channels, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight + (self.up @ self.down).view_as(self.weight), self.bias)


class Fixed(nn.Conv2d):
    """Made for maps of one size."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.place = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.place)


class Numbered(nn.Conv2d):
    """A filter counts as much as its number says."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * torch.arange(len(self.weight)).view(-1, 1, 1, 1), self.bias)


UNFIT = {
    WholeNorm: "gives other maps when it has fewer filters",
    GatedWholeNorm: "gives other maps when it has fewer filters",
    Reversed: "gives other maps when it has fewer filters",
    Numbered: "gives other maps when it has fewer filters",
    Rectified: "goes on after its convolution",
    Twice: "calls 2 convolutions and not one",
    Adapted: "computes more than its convolution (matmul)",
    Fixed: "does not run on a small image or with fewer filters (The size of tensor",
}


@pytest.mark.parametrize(("kind", "words"), UNFIT.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_do_with_fewer_filters_is_left_alone_with_the_reason(kind: type[nn.Conv2d], words: str) -> None:
    model = nn.Sequential(conv_bn(3, 8), kind(8, 8, 3, padding=1), conv_bn(8, 8), head(8))
    traced = trace(model, X)
    found = scan(traced)
    (skip,) = plan(found, PARTS).skips
    assert skip.target == "1" and f"is a {kind.__name__} with a forward of its own, which {words}" in skip.reason
    forced = plan(found, PARTS).model_copy(
        update={"swaps": (CGhostSwap(target="1", geometry="8→8 3x3", s=2, d=3),), "skips": ()}
    )
    with pytest.raises(PlanError, match="1 cannot be swapped: it is a"):
        rewrite(traced, forced)


class Strengthened(nn.Conv2d):
    """With a number that the network hands over besides the image."""

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        return self._conv_forward(x, self.weight * strength, self.bias)


@pytest.mark.parametrize(
    ("layer", "call"),
    [
        (nn.Conv2d(8, 8, 1), lambda conv, x: conv(input=x)),
        (Strengthened(8, 8, 1), lambda conv, x: conv(x, 2.0)),
        (Strengthened(8, 8, 1), lambda conv, x: conv(x, strength=2.0)),
    ],
    ids=["keyword", "extra", "extra keyword"],
)
def test_what_is_called_as_no_ghost_can_be_is_left_alone(layer: nn.Module, call: Any) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), layer

        def forward(self, x: Tensor) -> Tensor:
            return call(self.two, self.one(x))

    ghosted = convert(Calls(), X, PARTS)
    assert [(skip.target, "is called with more than" in skip.reason) for skip in ghosted.plan.skips] == [("two", True)]


@pytest.mark.parametrize("kind", [kind for kind in UNFIT if kind is not Adapted])
def test_nor_is_it_made_a_ghost_by_hand(kind: type[nn.Conv2d]) -> None:
    with pytest.raises(PlanError, match=f"The convolution is a {kind.__name__} with") as caught:
        CGhost.from_conv(kind(8, 8, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in OWN if name != "parametrised too"])
def test_the_meta_device_has_the_same_answers(name: str) -> None:
    layer: Any = copy.deepcopy(OWN[name])
    x = torch.randn(2, 6, *[9, 10][: layer.weight.dim() - 2])
    real, _ = converted(layer, x)
    meta, ghost = converted(layer.to("meta"), x.to("meta"))
    assert (meta.plan, meta.after) == (real.plan, real.after)
    assert {tensor.device.type for tensor in (*ghost.parameters(), *ghost.buffers())} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_class_of_its_own_keeps_its_dtype(dtype: torch.dtype) -> None:
    layer = StandardConv(6, 8, 3).to(dtype)
    ghost = CGhost.from_conv(layer)
    assert {p.dtype for p in ghost.parameters()} == {dtype}
    assert all(p.isfinite().all() for p in ghost.parameters())


@pytest.mark.parametrize("kind", [StandardConv, WholeNorm, MaskedConv])
def test_asking_changes_nothing(kind: type[nn.Conv2d]) -> None:
    layer = kind(6, 8, 3)
    before = {name: (tensor.clone(), tensor._version) for name, tensor in layer.state_dict().items()}
    random, attributes = torch.get_rng_state(), dict(vars(layer))
    not_narrowable(layer)
    assert torch.equal(torch.get_rng_state(), random) and vars(layer).keys() == attributes.keys()
    for name, (value, version) in before.items():
        assert torch.equal(layer.state_dict()[name], value) and layer.state_dict()[name]._version == version


def test_a_narrowed_module_is_like_the_whole_in_all_but_its_filters() -> None:
    layer = MaskedConv(6, 10, 3, stride=2, padding_mode="reflect", padding=1)
    narrow: Any = narrowed(layer, [7, 2, 4])
    assert (narrow.out_channels, narrow.weight.shape, narrow.mask.shape) == (3, (3, 6, 3, 3), (3, 6, 3, 3))
    assert (narrow.stride, narrow.padding, narrow.padding_mode) == ((2, 2), (1, 1), "reflect")
    assert torch.equal(narrow.weight, layer.weight[[7, 2, 4]]) and torch.equal(narrow.bias, layer.bias[[7, 2, 4]])
    assert layer.out_channels == len(layer.weight) == 10


# -- one convolution, several calls ----------------------------------------------------------------------------


class Reused(nn.Module):
    """A layer that two parents hold and three calls run, on maps of two sizes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer = conv_bn(3, 6), layer
        self.branch = nn.Sequential(layer, nn.ReLU())
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.stem(x))
        return self.head(self.branch(y)) + self.head(self.layer(F.max_pool2d(y, 2)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, padding=1),
        StandardConv(6, 6, 3, padding=1),
        CoveringConv(6, 6, 3),
        parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1)),
    ],
    ids=["plain", "gain", "padding", "parametrised"],
)
def test_a_layer_that_is_used_again_is_one_swap_for_all_parents_and_calls(layer: nn.Module) -> None:
    ghosted = convert(Reused(copy.deepcopy(layer)), X, PARTS)
    new: Any = ghosted.module
    assert [swap.target for swap in ghosted.plan.swaps].count("layer") == 1
    assert isinstance(new.layer, CGhost) and new.branch[0] is new.layer
    assert ghosted.before.site("layer").calls == 3  # type: ignore[union-attr]
    expected = counted(new, X)
    assert (ghosted.after.cost.params, ghosted.after.cost.macs) == (expected.params, expected.macs)


# -- parametrised convolutions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("training", [True, False])
def test_a_parametrisation_is_folded_into_a_plain_primary_convolution(wrap: Any, training: bool) -> None:
    """With the weight it gives in eval mode; what it keeps (a power iteration) is not moved on."""
    layer = wrap(nn.Conv2d(6, 8, 3)).train(training)
    x, state = torch.randn(2, 6, 8, 8), copy.deepcopy(layer.state_dict())
    expected = outputs(layer, x)
    ghosted, ghost = converted(layer, x)
    assert type(ghost.primary) is nn.Conv2d and not parametrize.is_parametrized(ghost)
    assert torch.allclose(outputs(ghosted.module, x)[:, :4], expected[:, :4], atol=1e-5)
    assert all(p.requires_grad for p in ghost.parameters()) and ghost.training == training
    assert ghosted.plan.after == ghosted.after.cost == counted(ghosted.module, x)
    assert type(folded(layer)) is nn.Conv2d and {*folded(layer).state_dict()} == {"weight", "bias"}
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(outputs(layer, x), expected)


def test_a_parametrised_linear_layer_is_folded_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), parametrizations.weight_norm(nn.Linear(6, 8)))
    x = torch.randn(4, 3, 1, 1)
    ghosted = convert(model, x, also=["classifier"], min_saving=0)
    assert [swap.target for swap in ghosted.plan.swaps] == ["2"]
    assert torch.allclose(outputs(ghosted.module, x)[:, :4], outputs(model, x)[:, :4], atol=1e-5)


@pytest.mark.parametrize("read", [lambda w, x: x.to(w.dtype), lambda w, x: x + w.sum()], ids=["dtype", "value"])
def test_a_parametrised_convolution_whose_weight_is_read_elsewhere_is_kept(read: Any) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), parametrizations.weight_norm(nn.Conv2d(8, 8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(read(self.two.weight, self.one(x)))

    ghosted = convert(Reads(), X, PARTS)
    assert [(skip.target, "read elsewhere" in skip.reason) for skip in ghosted.plan.skips] == [("two", True)]


# -- any geometry ----------------------------------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Conv3d": nn.Conv3d,
    "StandardConv": StandardConv,
    "CoveringConv": CoveringConv,
}
SIDE = 9


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A kind of convolution and arguments with which it runs on maps of sides 9 and 10."""
    name = draw(st.sampled_from(list(KINDS)))
    dims = {"Conv1d": 1, "Conv3d": 3}.get(name, 2)
    kernel = tuple(draw(st.integers(1, 7 if dims < 3 else 3)) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    reach = [spread * (k - 1) + 1 for spread, k in zip(dilation, kernel, strict=True)]
    least = [max(0, math.ceil((r - SIDE) / 2)) for r in reach]
    padding: Any = "same"
    if name == "CoveringConv":
        padding = 0
    elif draw(st.booleans()):
        padding = tuple(min(SIDE - 1, more + draw(st.integers(0, 2))) for more in least)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return name, {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(2, 9)),
        "kernel_size": kernel,
        "stride": 1 if padding == "same" else tuple(draw(st.integers(1, 3)) for _ in range(dims)),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        if name.startswith("Conv")
        else "zeros",
    }


over_geometry = settings(
    deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
even = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@even
@over_geometry
@given(layers(), st.integers(2, 5), st.sampled_from([1, 3, 5, 7]), st.sampled_from(["none", "full", 1]), st.booleans())
def test_any_convolution_keeps_its_shape_and_costs_what_was_predicted(
    layer: tuple[str, dict[str, Any]], s: int, d: int, pointwise: Any, normed: bool
) -> None:
    """By the library's whole way from trace to rewrite; every parameter that can matter gets a gradient."""
    name, fields = layer
    s = min(s, fields["out_channels"] // fields["groups"])
    conv: Any = KINDS[name](**fields)
    x = torch.randn(2, fields["in_channels"], *[SIDE, SIDE + 1, SIDE][: conv.weight.dim() - 2])
    changes = {"parts": "norm-act"} if normed else {"pointwise": pointwise}
    ghosted, ghost = converted(conv, x, s=s, d=d, also=[*PARTS.also, "depthwise"], **changes)
    assert isinstance(ghost, CGhost) and ghost(x).shape == conv(x).shape
    assert ghosted.plan.before == counted(nn.Sequential(conv), x)
    assert ghosted.plan.after == ghosted.after.cost == counted(ghosted.module, x)
    ghost.train()(x).square().sum().backward()
    n, m = conv.out_channels, intrinsic_maps(conv.out_channels, s, conv.groups)
    used = [ghost.primary, *(part for i, part in enumerate(ghost.cheap, start=1) if i * m < n), ghost.pointwise]
    for part in used:
        for parameter in part.parameters() if part is not None else ():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), part


@even
@over_geometry
@given(layers(), st.integers(2, 5), st.sampled_from([1, 3, 5]))
def test_a_convolution_whose_filters_repeat_is_reproduced(layer: tuple[str, dict[str, Any]], s: int, d: int) -> None:
    """The setting of a ghost that is no ghost: each cheap operation only scales its intrinsic map."""
    name, fields = layer
    n, g = fields["out_channels"], fields["groups"]
    s = min(s, n // g)
    conv: Any = KINDS[name](**fields)
    m = intrinsic_maps(n, s, g) // g
    with torch.no_grad():
        by_group = conv.weight.view(g, n // g, *conv.weight.shape[1:])
        for j in range(m, n // g):
            by_group[:, j] = (j - 2.5) * by_group[:, j % m]
    x = torch.randn(2, fields["in_channels"], *[SIDE, SIDE + 1, SIDE][: conv.weight.dim() - 2])
    assert torch.allclose(outputs(CGhost.from_conv(conv, s, d), x), outputs(conv, x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("conv", [nn.Conv1d(4, 12, 5), nn.Conv2d(4, 12, (3, 5)), nn.Conv3d(4, 12, 3)])
def test_theory_is_what_is_counted_in_any_dimension(conv: Any) -> None:
    """Where s divides the width; biases are in no equation."""
    x = torch.randn(2, 4, *[8] * (conv.weight.dim() - 2))
    ghosted, _ = converted(conv, x, s=3, d=3)
    (layer,) = compare(ghosted).layers
    assert layer.theory.r_s == pytest.approx(layer.before.macs / layer.after.macs, rel=1e-9)
    assert layer.theory.r_c == pytest.approx((layer.before.params - 12) / (layer.after.params - 12), rel=1e-9)


@pytest.mark.parametrize("conv", [nn.Conv1d(4, 9, 3, padding=1), nn.Conv3d(4, 9, 3, padding=1)])
def test_an_image_without_a_batch_is_taken_in_any_dimension(conv: Any) -> None:
    ghost, x = CGhost.from_conv(conv, s=2), torch.randn(4, *[6] * (conv.weight.dim() - 2))
    assert ghost(x).shape == conv(x).shape
    assert torch.allclose(ghost(x)[:5], conv(x)[:5], atol=1e-5)


# -- timm's ----------------------------------------------------------------------------------------------------

TIMM = ("Conv2dSame", "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("groups", [1, 2])
def test_timms_convolutions_stay_their_own_class(name: str, groups: int) -> None:
    pytest.importorskip("timm")
    from timm import layers as timm_layers

    layer = getattr(timm_layers, name)(6, 12, 3, stride=2, groups=groups, bias=True)
    x = torch.randn(2, 6, 9, 10)
    ghosted, ghost = converted(layer, x)
    first = torch.arange(12).view(groups, -1)[:, : 6 // groups].flatten()
    assert type(ghost.primary) is type(layer)
    assert torch.allclose(outputs(ghosted.module, x)[:, first], outputs(layer, x)[:, first], atol=1e-4)
    assert ghosted.after.cost == counted(ghosted.module, x)


@pytest.mark.parametrize(("name", "kind"), [("nf_regnet_b0", "ScaledStdConv2d"), ("tf_efficientnet_b0", "Conv2dSame")])
def test_timms_networks_come_through_whole_and_come_back(name: str, kind: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model, x = timm.create_model(name), torch.randn(2, 3, 64, 64)
    ghosted = convert(model, x, also=["stem"], min_saving=0)
    kinds = {type(ghosted.module.get_submodule(swap.target).primary).__name__ for swap in ghosted.plan.swaps}
    assert kind in kinds
    assert not [skip for skip in ghosted.plan.skips if "forward of its own" in skip.reason]
    ghosted.module.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in ghosted.module.parameters())
    save(ghosted, tmp_path / "run", model=f"timm:{name}")
    assert torch.equal(outputs(load(tmp_path / "run").module, x), outputs(ghosted.module, x))
