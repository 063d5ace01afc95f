"""The C-Ghost module: Eq. 1-3, the contract of nn.Conv2d over any geometry, and the weights it takes over."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostify.cheap import Cheap
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, CGhostLinear, check, intrinsic_maps
from ghostify.ghosts.selecting import selected


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of nn.Conv2d that run on a 13x14 map, with at least two outputs in a group."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding: Any = draw(st.sampled_from(["same", "valid", "pair", "int"]))
    if padding in ("pair", "int"):
        sizes = [draw(st.integers(max(0, math.ceil((r - 11) / 2)), 6)) for r in reach]
        padding = tuple(sizes) if padding == "pair" else max(sizes)
    elif padding == "valid":
        dilation = tuple(min(d, 2 if k <= 6 else 1) for d, k in zip(dilation, kernel, strict=True))
    return {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(2, 11)),
        "kernel_size": kernel,
        "stride": 1 if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
    }


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """(geometry, s, d)"""
    geometry = draw(geometries())
    width = geometry["out_channels"] // geometry["groups"]
    return geometry, draw(st.integers(2, min(5, width))), draw(st.sampled_from([1, 3, 5, 7]))


over_geometry = settings(
    deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # slow, says torch, not wrong


def conv_and_ghost(geometry: dict[str, Any], s: int, d: int) -> tuple[nn.Conv2d, CGhost]:
    torch.manual_seed(0)
    conv = nn.Conv2d(**geometry).double()
    return conv, CGhost.from_conv(conv, s, d)


def image(geometry: dict[str, Any]) -> Tensor:
    return torch.randn(2, geometry["in_channels"], 13, 14, dtype=torch.float64)


def outputs_of_parts(ghost: CGhost, groups: int) -> list[list[list[int]]]:
    """By group, then by part (primary first): the output channels that part makes."""
    width = ghost.out_channels // groups
    m = intrinsic_maps(ghost.out_channels, ghost.s, groups) // groups
    return [
        [[g * width + i for i in range(part * m, min((part + 1) * m, width))] for part in range(ghost.s)]
        for g in range(groups)
    ]


# -- the contract of nn.Conv2d ---------------------------------------------------------------------------------


@over_geometry
@given(cases())
def test_the_output_has_the_convolutions_shape(case: tuple[dict[str, Any], int, int]) -> None:
    conv, ghost = conv_and_ghost(*case)
    x = image(case[0])
    assert ghost(x).shape == conv(x).shape


@over_geometry
@given(cases())
def test_parameters_follow_equation_two_and_three(case: tuple[dict[str, Any], int, int]) -> None:
    """m·(c/g)·k² + m·(s−1)·d², and s·m biases; m = ⌈n/s⌉ in every group."""
    geometry, s, d = case
    _, ghost = conv_and_ghost(*case)
    groups = geometry["groups"]
    m = groups * -(-(geometry["out_channels"] // groups) // s)
    filters = m * geometry["in_channels"] // groups * math.prod(geometry["kernel_size"])
    expected = filters + m * (s - 1) * d * d + (s * m if geometry["bias"] else 0)
    assert sum(p.numel() for p in ghost.parameters()) == expected
    assert ghost.primary.out_channels == m


@over_geometry
@given(cases())
def test_intrinsic_maps_are_the_convolutions_own(case: tuple[dict[str, Any], int, int]) -> None:
    """In every group the first outputs are those of the original filters, bias included."""
    geometry, s, d = case
    conv, ghost = conv_and_ghost(geometry, s, d)
    intrinsic = [channel for group in outputs_of_parts(ghost, geometry["groups"]) for channel in group[0]]
    x = image(geometry)
    assert torch.allclose(ghost(x)[:, intrinsic], conv(x)[:, intrinsic], rtol=1e-9, atol=1e-12)


@over_geometry
@given(cases(), st.data())
def test_multiples_of_an_intrinsic_filter_are_reproduced(
    case: tuple[dict[str, Any], int, int], data: st.DataObject
) -> None:
    """A convolution whose other filters are scalar multiples of the intrinsic ones loses nothing, whatever its bias."""
    conv, ghost = conv_and_ghost(*case)
    groups = case[0]["groups"]
    with torch.no_grad():
        for parts in outputs_of_parts(ghost, groups):
            for part in parts[1:]:
                for channel, source in zip(part, parts[0], strict=False):
                    conv.weight[channel] = data.draw(st.sampled_from([-2.5, -1.0, 0.0, 0.5, 3.0])) * conv.weight[source]
    ghost = CGhost.from_conv(conv, ghost.s, ghost.d)
    x = image(case[0])
    assert torch.allclose(ghost(x), conv(x), rtol=1e-8, atol=1e-10)


@over_geometry
@given(cases())
def test_each_group_of_outputs_reads_its_own_group_of_inputs(case: tuple[dict[str, Any], int, int]) -> None:
    """The gradient of a group's outputs is zero outside the group's inputs, and not zero within."""
    geometry, s, d = case
    _, ghost = conv_and_ghost(geometry, s, d)
    groups = geometry["groups"]
    x = image(geometry).requires_grad_()
    for index, part in enumerate(ghost(x).chunk(groups, dim=1)):
        (gradient,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        by_group = gradient.abs().sum((0, 2, 3)).view(groups, -1).sum(1)
        assert (by_group > 0).tolist() == [g == index for g in range(groups)]


@over_geometry
@given(cases())
def test_gradients_reach_every_parameter(case: tuple[dict[str, Any], int, int]) -> None:
    """But for a cheap operation whose maps the slice drops altogether, which happens when m·(s−1) ≥ n."""
    _, ghost = conv_and_ghost(*case)
    ghost(image(case[0])).pow(2).sum().backward()
    used = [len(part) for part in outputs_of_parts(ghost, case[0]["groups"])[0]]
    for part, outputs in zip([ghost.primary, *ghost.cheap], used, strict=True):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and (parameter.grad.abs().sum() > 0) == (outputs > 0), name


# -- the equations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "s", "m"), [(16, 2, 8), (17, 2, 9), (512, 3, 171), (7, 5, 2), (4, 4, 1), (5, 4, 2)])
def test_m_is_n_over_s_rounded_up(n: int, s: int, m: int) -> None:
    assert intrinsic_maps(n, s) == m
    assert intrinsic_maps(3 * n, s, groups=3) == 3 * m
    assert CGhost(2, n, 1, s=s).primary.out_channels == m


@pytest.mark.parametrize(("s", "d", "n"), [(2, 3, 8), (3, 5, 8), (4, 1, 10)])
def test_a_linear_ghost_is_equations_two_and_three(s: int, d: int, n: int) -> None:
    """Computed from its weights by hand: Y' = X * f' + b', then each cheap operation map by map, then the slice."""
    torch.manual_seed(0)
    ghost = CGhost(4, n, 3, stride=2, padding=1, s=s, d=d).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    intrinsic = F.conv2d(x, ghost.primary.weight, ghost.primary.bias, 2, 1)
    maps = [intrinsic]
    for cheap in ghost.cheap:
        kernels, biases = cheap.weight, cheap.bias
        by_map = [
            F.conv2d(intrinsic[:, i : i + 1], kernels[i : i + 1], biases[i : i + 1], padding=d // 2)
            for i in range(intrinsic.shape[1])
        ]
        maps.append(torch.cat(by_map, 1))
    assert torch.allclose(ghost(x), torch.cat(maps, 1)[:, :n], rtol=1e-9, atol=1e-12)


def test_a_ghost_of_a_random_filter_is_its_projection() -> None:
    """The centre tap minimises the distance between the ghost's filter and the one it stands for."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, bias=False)
    ghost = CGhost.from_conv(conv, s=2, d=3)
    w, v = conv.weight[4:].flatten(1), conv.weight[:4].flatten(1)
    best = torch.stack([torch.linalg.lstsq(v[i, :, None], w[i, :, None]).solution[0, 0] for i in range(4)])
    taps = ghost.cheap[0].weight[:, 0]
    assert torch.allclose(taps[:, 1, 1], best, rtol=1e-4, atol=1e-6)
    assert taps.abs().sum().item() == pytest.approx(best.abs().sum().item(), rel=1e-5)


def test_dead_filters_make_no_nan() -> None:
    conv = nn.Conv2d(3, 8, 3)
    nn.init.zeros_(conv.weight)
    ghost = CGhost.from_conv(conv)
    assert all(parameter.isfinite().all() for parameter in ghost.parameters())
    x = torch.randn(1, 3, 6, 6)
    assert torch.allclose(ghost(x), conv(x), atol=1e-6)


# -- norm and activation in the parts --------------------------------------------------------------------------


def test_parts_carry_their_own_norm_and_activation() -> None:
    """As in C-GhostNet: both the primary and the cheap maps are normalised and rectified."""
    ghost = CGhost(4, 9, 3, padding=1, bias=False, s=3, d=3, norm=nn.BatchNorm2d, act=nn.ReLU).train()
    x = torch.randn(4, 4, 8, 8)
    conv, norm, act = ghost.primary
    y = act(norm(conv(x)))
    by_hand = torch.cat([y, *(cheap[2](cheap[1](cheap[0](y))) for cheap in ghost.cheap)], 1)
    assert torch.allclose(ghost(x), by_hand, atol=1e-6)
    assert [part[1].num_features for part in (ghost.primary, *ghost.cheap)] == [3, 3, 3]
    assert ghost(x).min() >= 0


def test_each_part_has_a_norm_and_an_activation_of_its_own() -> None:
    ghost = CGhost(4, 8, 1, s=4, norm=nn.BatchNorm2d, act=nn.PReLU)
    parts = [ghost.primary, *ghost.cheap]
    assert len({id(part[1]) for part in parts}) == len({id(part[2]) for part in parts}) == 4


def test_a_norm_made_for_a_convolution_starts_fresh_and_in_its_place() -> None:
    conv = nn.Conv2d(4, 8, 3, dtype=torch.float64).eval()
    ghost = CGhost.from_conv(conv, norm=nn.BatchNorm2d, act=nn.ReLU)
    norm = ghost.primary[1]
    assert norm.weight.dtype == norm.running_mean.dtype == torch.float64
    assert (norm.weight == 1).all() and (norm.running_var == 1).all() and norm.num_batches_tracked == 0
    assert not norm.training


# -- the pointwise convolution ---------------------------------------------------------------------------------

POINTWISE = [  # n, s, rank and whether P is full: m = ⌈n/s⌉, and r·n weights against m·(n−m)
    (8, 2, 1, False),
    (8, 2, 2, True),
    (9, 2, 3, True),
    (2, 2, 1, True),
    (11, 3, 2, False),
    (12, 3, 9, True),
    (10, 4, 1, False),
    (10, 4, 2, False),
    (10, 4, 3, True),
    (5, 4, 1, False),  # the third cheap operation makes no map that is kept
    (5, 4, 2, True),
]
each_pointwise = pytest.mark.parametrize(("n", "s", "rank", "full"), POINTWISE)


def weights_of_p(ghost: CGhost) -> Tensor:
    """P, (n−m) x m, multiplied out."""
    first, *second = (weight.flatten(1) for weight in ghost.pointwise.parameters())
    return second[0] @ first if second else first


@each_pointwise
def test_a_ghost_is_its_depthwise_map_and_a_weighted_sum_of_all(n: int, s: int, rank: int, full: bool) -> None:
    """Y, by hand: Y', then Φ(Y') sliced to n − m maps, plus P·Y' map by map."""
    ghost = CGhost(4, n, 3, stride=2, s=s, d=3, pointwise=rank).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    y = ghost.primary(x)
    m = intrinsic_maps(n, s)
    cheap = torch.cat([part(y) for part in ghost.cheap], 1)[:, : n - m]
    added = torch.einsum("gm,bmhw->bghw", weights_of_p(ghost), y)
    assert isinstance(ghost.pointwise, nn.Conv2d) is full
    assert torch.allclose(ghost(x), torch.cat([y, cheap + added], 1), rtol=1e-9, atol=1e-12)


@each_pointwise
def test_its_weights_are_r_n_or_what_a_full_one_has(n: int, s: int, rank: int, full: bool) -> None:
    """No bias, for the cheap convolutions have it."""
    m = intrinsic_maps(n, s)
    plain, ghost = CGhost(4, n, 3, s=s), CGhost(4, n, 3, s=s, pointwise=rank)
    more = sum(p.numel() for p in ghost.parameters()) - sum(p.numel() for p in plain.parameters())
    cheap = Cheap(3, rank)
    assert more == cheap.work(n, m, s).mixing == (m * (n - m) if full else rank * (m + (n - m)))
    assert cheap.factored(n, m) == (0 if full else rank)


def test_no_rank_has_no_weights_and_the_largest_is_full() -> None:
    for n, m in ((2, 1), (7, 4), (64, 32), (64, 16), (65, 13)):
        assert (Cheap(3).work(n, m, 2).mixing, Cheap(3).factored(n, m)) == (0, 0)
        for rank in (min(m, n - m), n, 10 * n, "full"):
            cheap = Cheap(3, rank)
            assert (cheap.work(n, m, 2).mixing, cheap.factored(n, m)) == (m * (n - m), 0)


@over_geometry
@given(cases(), st.integers(1, 12))
def test_right_after_conversion_it_changes_nothing(case: tuple[dict[str, Any], int, int], rank: int) -> None:
    """Whatever its rank, P is zero; the shape stays that of the convolution."""
    geometry, s, d = {**case[0], "groups": 1}, *case[1:]
    conv, plain = conv_and_ghost(geometry, s, d)
    ghost = CGhost.from_conv(conv, s, d, pointwise=rank)
    x = image(geometry)
    assert torch.equal(ghost(x), plain(x)) and ghost(x).shape == conv(x).shape


@each_pointwise
def test_it_learns_from_the_first_step(n: int, s: int, rank: int, full: bool) -> None:
    """A at once, though it is zero; B as soon as A is not."""
    ghost = CGhost.from_conv(nn.Conv2d(4, n, 3), s, pointwise=rank)
    optimizer = torch.optim.SGD(ghost.parameters(), lr=0.1)
    x = torch.randn(2, 4, 8, 8)
    for _ in range(2):
        optimizer.zero_grad()
        ghost(x).pow(2).sum().backward()
        last = [*ghost.pointwise.parameters()][-1]
        assert (last.grad.flatten(1).abs().sum(1) > 0).all()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in ghost.pointwise.parameters())


def test_without_one_a_ghost_is_as_it_was() -> None:
    plain = CGhost(4, 9, 3, s=3)
    assert plain.pointwise is None
    assert not [name for name, _ in plain.named_modules() if "pointwise" in name]
    assert [*copy.deepcopy(plain).state_dict()] == [*plain.state_dict()]


def test_a_ghost_with_one_can_be_copied() -> None:
    ghost, x = ghost_with_pointwise(), torch.randn(2, 4, 8, 8)
    twin = copy.deepcopy(ghost)
    assert torch.equal(twin(x), ghost(x))
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in ghost.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 4])
def test_it_takes_over_dtype_and_frozenness_too(dtype: torch.dtype, rank: int) -> None:
    ghost = CGhost.from_conv(nn.Conv2d(4, 8, 3).to(dtype).requires_grad_(False), pointwise=rank)
    assert {(p.dtype, p.requires_grad) for p in ghost.pointwise.parameters()} == {(dtype, False)}
    there = CGhost.from_conv(nn.Conv2d(4, 8, 3, device="meta"), pointwise=rank)
    assert {p.device.type for p in there.parameters()} == {"meta"}


# -- what is taken over ----------------------------------------------------------------------------------------

FIELDS = ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(4, 8, (1, 5), (2, 3), (0, 2), (1, 2), bias=False),
        nn.Conv2d(4, 8, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(4, 8, 3, groups=2, padding=1, padding_mode="circular"),
    ],
    ids=lambda conv: conv.extra_repr(),
)
def test_every_field_of_the_convolution_is_the_primarys(conv: nn.Conv2d) -> None:
    ghost = CGhost.from_conv(conv, s=2, d=5)
    for field in FIELDS:
        assert getattr(ghost.primary, field) == getattr(conv, field), field
    assert (ghost.in_channels, ghost.out_channels, ghost.groups) == (conv.in_channels, conv.out_channels, conv.groups)
    for part in (ghost.primary, *ghost.cheap):
        assert (part.bias is None) == (conv.bias is None)
    for cheap in ghost.cheap:
        assert (cheap.stride, cheap.dilation, cheap.kernel_size) == ((1, 1), (1, 1), (5, 5))
        assert cheap.groups == cheap.in_channels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_mode_and_frozenness_are_the_convolutions(dtype: torch.dtype, frozen: bool, training: bool) -> None:
    conv = nn.Conv2d(4, 8, 3).to(dtype).train(training).requires_grad_(not frozen)
    ghost = CGhost.from_conv(conv, s=3)
    assert {(p.dtype, p.requires_grad) for p in ghost.parameters()} == {(dtype, not frozen)}
    assert {part.training for part in ghost.modules()} == {training}
    assert all(p.isfinite().all() for p in ghost.parameters())


def test_a_convolution_on_the_meta_device_gives_a_ghost_there() -> None:
    ghost = CGhost.from_conv(nn.Conv2d(4, 8, 3, device="meta"), norm=nn.BatchNorm2d)
    assert {t.device.type for t in (*ghost.parameters(), *ghost.buffers())} == {"meta"}


def test_the_convolution_is_left_as_it_was_and_shares_nothing() -> None:
    conv = nn.Conv2d(4, 8, 3)
    before, version = {k: v.clone() for k, v in conv.state_dict().items()}, conv.weight._version
    random = torch.get_rng_state()
    ghost = CGhost.from_conv(conv)
    assert all(torch.equal(conv.state_dict()[name], value) for name, value in before.items())
    assert conv.weight._version == version
    assert torch.equal(torch.get_rng_state(), random)
    owned = {p.data_ptr() for p in ghost.parameters()}
    assert owned.isdisjoint({conv.weight.data_ptr(), conv.bias.data_ptr()})


def test_it_says_that_there_is_no_bias_and_gives_none_out() -> None:
    """Who asks for one that is there fails: the parts' biases are no bias of n maps."""
    ghost = CGhost.from_conv(nn.Conv2d(3, 8, 3, bias=False), norm=nn.BatchNorm2d)
    assert ghost.bias is None
    with pytest.raises((AttributeError, KeyError), match="bias"):
        ghost.bias = nn.Parameter(torch.zeros(8))
    for biased in (CGhost.from_conv(nn.Conv2d(3, 8, 3)), CGhostLinear.from_linear(nn.Linear(3, 8))):
        assert not hasattr(biased, "bias")
    assert CGhostLinear.from_linear(nn.Linear(3, 8, bias=False)).bias is None


def test_state_dict_names_are_a_promise() -> None:
    """Saved weights refer to them."""
    assert list(CGhost(4, 9, 3, s=3).state_dict()) == [
        "primary.weight",
        "primary.bias",
        "cheap.0.weight",
        "cheap.0.bias",
        "cheap.1.weight",
        "cheap.1.bias",
    ]
    names = set(CGhost(4, 8, 3, bias=False, norm=nn.BatchNorm2d, act=nn.ReLU).state_dict())
    assert {"primary.0.weight", "primary.1.running_mean", "cheap.0.0.weight", "cheap.0.1.weight"} <= names
    plain = [*CGhost(4, 8, 3).state_dict()]
    assert [*CGhost(4, 8, 3, pointwise=4).state_dict()] == [*plain, "pointwise.weight"]
    assert [*CGhost(4, 8, 3, pointwise=1).state_dict()] == [*plain, "pointwise.0.weight", "pointwise.1.weight"]


# -- linear layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "s"), [(10, 2), (11, 3), (5, 4)])
def test_a_linear_layer_of_multiples_is_reproduced(n: int, s: int, bias: bool) -> None:
    linear = nn.Linear(6, n, bias=bias).double()
    m = intrinsic_maps(n, s)
    with torch.no_grad():
        for channel in range(m, n):
            linear.weight[channel] = (channel - 4.5) * linear.weight[channel % m]
    ghost = CGhostLinear.from_linear(linear, s=s)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert ghost(x).shape == (3, n)
    assert torch.allclose(ghost(x), linear(x), rtol=1e-8, atol=1e-10)


def test_a_linear_ghost_counts_as_a_one_by_one_ghost() -> None:
    ghost = CGhostLinear.from_linear(nn.Linear(2048, 1000), s=2, d=3)
    assert sum(p.numel() for p in ghost.parameters()) == 500 * 2048 + 500 * 9 + 1000


@pytest.mark.parametrize("rank", [1, 9])
@pytest.mark.parametrize(("n", "s"), [(10, 2), (11, 3), (5, 4)])
def test_a_linear_ghost_takes_a_pointwise_convolution(n: int, s: int, rank: int) -> None:
    """It begins as nothing, and then adds P·y' to the ghosts."""
    linear, x = nn.Linear(6, n).double(), torch.randn(3, 6, dtype=torch.float64)
    plain, ghost = CGhostLinear.from_linear(linear, s), CGhostLinear.from_linear(linear, s, pointwise=rank)
    assert torch.equal(ghost(x), plain(x))
    nn.init.normal_([*ghost.pointwise.parameters()][-1])
    m = intrinsic_maps(n, s)
    added = plain(x)[:, :m] @ weights_of_p(ghost).T
    assert torch.allclose(ghost(x)[:, m:], plain(x)[:, m:] + added) and torch.equal(ghost(x)[:, :m], plain(x)[:, :m])


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "s", "d", "groups", "words"),
    [
        (8, 1, 3, 1, "2 or more"),
        (8, 0, 3, 1, "2 or more"),
        (8, 2, 2, 1, "odd"),
        (8, 2, 0, 1, "odd"),
        (8, 2, -1, 1, "odd"),
        (8, 9, 3, 1, "larger than the 8 output maps"),
        (8, 3, 3, 4, "larger than the 2 output maps of a group"),
        (4, 2, 3, 4, "larger than the 1 output maps of a group"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(n: int, s: int, d: int, groups: int, words: str) -> None:
    for build in (
        lambda: check(n, s, Cheap(d), groups),
        lambda: CGhost(4, n, 3, groups=groups, s=s, d=d),
        lambda: CGhost.from_conv(nn.Conv2d(4, n, 3, groups=groups), s, d),
    ):
        with pytest.raises(PlanError, match=words) as caught:
            build()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": 2}, r"cheap = depthwise 3 \+ pointwise 3: .* would join its 2 groups; write depthwise 3"),
        ({"norm": nn.BatchNorm2d}, r"cheap = depthwise 3 \+ pointwise 3: .* linear parts only"),
        ({"act": nn.ReLU}, r"cheap = depthwise 3 \+ pointwise 3: .* linear parts only"),
        ({"cheap": "pointwise"}, "cheap = pointwise and d = 3, pointwise = 3 both tell"),
        ({"m": 8}, "m = 8 intrinsic maps: of 8 outputs they must be 4 to 7"),
        ({"m": 3}, "m = 3 intrinsic maps: of 8 outputs they must be 4 to 7"),
        ({"pointwise": -1}, "pointwise = -1: the rank must be 0 .* or more"),
    ],
)
def test_a_pointwise_convolution_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        CGhost(4, 8, 3, **{"pointwise": 3, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("d", [2, 4, 6])
def test_the_odd_size_that_is_suggested_is_accepted(d: int) -> None:
    with pytest.raises(PlanError) as caught:
        Cheap(d)
    for suggested in map(int, str(caught.value).rpartition("try ")[2].rstrip(".").split(" or ")):
        assert Cheap(suggested).d == suggested and abs(suggested - d) == 1


# -- other readers of the module -------------------------------------------------------------------------------


def ghost_of_everything() -> CGhost:
    torch.manual_seed(0)
    return CGhost(4, 10, 3, padding=1, groups=2, s=3, norm=nn.BatchNorm2d, act=nn.ReLU).eval()


def ghost_with_pointwise(rank: int = 2, n: int = 11, s: int = 3) -> CGhost:
    torch.manual_seed(0)
    return CGhost(4, n, 3, padding=1, s=s, pointwise=rank).eval()


def ghost_in_order(groups: int) -> CGhost:
    torch.manual_seed(0)
    ghost = CGhost(4, 10, 3, padding=1, groups=groups, s=3, ordered=True).eval()
    ghost.order.copy_(torch.randperm(10))
    return ghost


def ghost_of_mixtures(cheap: str) -> CGhost:
    torch.manual_seed(0)
    ghost = CGhost(4, 11, 3, padding=1, s=3, cheap=cheap, ordered=True).eval()
    ghost.order.copy_(torch.randperm(11))
    return ghost


each_ghost = pytest.mark.parametrize(
    "make",
    [
        ghost_of_everything,
        ghost_with_pointwise,
        lambda: ghost_with_pointwise(9),
        lambda: ghost_with_pointwise(1, 8, 2),
        lambda: ghost_with_pointwise(1, 5, 4),
        lambda: ghost_in_order(1),
        lambda: ghost_in_order(2),
        lambda: ghost_of_mixtures("pointwise"),
        lambda: ghost_of_mixtures("pointwise 2"),
    ],
    ids=["everything", "low rank", "full", "even", "dropped", "ordered", "ordered groups", "mixed", "mixed low rank"],
)
each_format = pytest.mark.parametrize("kept", [torch.contiguous_format, torch.channels_last], ids=str)


@each_format
@each_ghost
def test_torch_export_takes_it(make: Callable[[], CGhost], kept: torch.memory_format) -> None:
    """With a batch and a size that are not those of the example, too."""
    ghost, x = make(), torch.randn(2, 4, 8, 8).to(memory_format=kept)
    free = {dim: torch.export.Dim(name) for dim, name in ((0, "batch"), (2, "height"), (3, "width"))}
    for dynamic in (None, free):
        exported = torch.export.export(ghost, (x,), dynamic_shapes=None if dynamic is None else (dynamic,)).module()
        assert torch.allclose(exported(x), ghost(x), atol=1e-6)
    other = torch.randn(3, 4, 9, 7).to(memory_format=kept)
    assert torch.allclose(exported(other), ghost(other), atol=1e-6)


@each_format
@each_ghost
def test_torch_compile_takes_it_in_one_graph(make: Callable[[], CGhost], kept: torch.memory_format) -> None:
    ghost, x = make(), torch.randn(2, 4, 8, 8).to(memory_format=kept)
    torch.compiler.reset()  # or the cases before count as recompilations of this one
    compiled = torch.compile(ghost, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), ghost(x), atol=1e-6)


@each_ghost
def test_torch_fx_traces_it(make: Callable[[], CGhost]) -> None:
    """For every format at once."""
    ghost, x = make(), torch.randn(2, 4, 8, 8)
    traced = torch.fx.symbolic_trace(ghost)
    for form in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(traced(x.to(memory_format=form)), ghost(x.to(memory_format=form)))


@pytest.mark.parametrize("n", [16, 14], ids=["whole", "sliced"])
@pytest.mark.parametrize(
    "args", [{}, {"pointwise": 1}, {"pointwise": 4}, {"groups": 2}, {"cheap": "pointwise"}], ids=str
)
@pytest.mark.parametrize("ordered", [False, True], ids=["as-it-comes", "ordered"])
def test_channels_last_comes_out_as_it_went_in(ordered: bool, args: dict[str, Any], n: int) -> None:
    """Even a slice of maps, which is contiguous in no format."""
    ghost = CGhost(4, n, 3, padding=1, s=4, ordered=ordered, **args)
    if ordered:
        ghost.order.copy_(torch.randperm(n))
    x, last = torch.randn(2, 4, 6, 6), torch.channels_last
    expected, found = ghost(x), ghost.to(memory_format=last)(x.to(memory_format=last))
    assert torch.allclose(found, expected, atol=1e-6)
    assert found.stride(1) == 1
    assert found.is_contiguous(memory_format=last) == expected.is_contiguous()


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (3, 6, 5), (2, 3, 2, 7), (2, 3, 4, 3, 2), (2, 3, 1, 1), (1, 3, 6, 5)])
@pytest.mark.parametrize("last", [False, True])
def test_channels_are_selected_as_index_select_does_in_the_format_they_have(last: bool, shape: tuple[int, ...]) -> None:
    indices, dim = torch.tensor([2, 0]), 0 if len(shape) == 3 and shape[0] == 3 else 1
    x = torch.randn(shape, dtype=torch.float64)
    x = (x.movedim(dim, -1).contiguous().movedim(-1, dim) if last else x).requires_grad_()
    for one in (x, x.narrow(-1, 0, 1), x.narrow(-2, 0, 1)):
        found = selected(one, indices, dim)
        assert torch.equal(found, one.index_select(dim, indices))
        assert found.stride(dim) == 1 or not last or found.is_contiguous()
    assert torch.autograd.gradcheck(lambda x: selected(x, indices, dim), (x,))
    assert selected(x.to("meta"), indices.to("meta"), dim).shape == selected(x, indices, dim).shape


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_an_image_without_a_batch_is_taken_as_nn_conv2d_takes_it(rank: int) -> None:
    """(c, H, W) → (n, H', W')"""
    conv = nn.Conv2d(4, 8, 3)
    ghost, x = CGhost.from_conv(conv, s=3, pointwise=rank), torch.randn(4, 8, 8)
    assert ghost(x).shape == conv(x).shape


def test_it_says_what_it_is() -> None:
    assert "4, 10, s=3, cheap=depthwise 3\n" in repr(ghost_of_everything())
    assert "4, 11, s=3, cheap=depthwise 3 + pointwise 2\n" in repr(ghost_with_pointwise())
    assert "4, 11, s=3, cheap=pointwise, ordered\n" in repr(ghost_of_mixtures("pointwise"))
