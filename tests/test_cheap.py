"""The cheap operation as a value, and the C-Ghost modules whose cheap operation is a pointwise convolution alone.

What it is not: not of an even size, not of a rank below 1, not pointwise with groups or norms in the parts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostify.cheap import Cheap
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, CGhostLinear, intrinsic_maps

RANKS = (None, 1, 8, "full")
VALUES = [Cheap(d, rank) for d in (None, 1, 3, 7) for rank in RANKS if d or rank]


# -- as it is written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cheap", VALUES, ids=str)
def test_what_is_written_is_read_back(cheap: Cheap) -> None:
    assert Cheap.read(str(cheap)) == cheap
    assert Cheap.read(str(cheap).upper()) == cheap


@pytest.mark.parametrize(
    ("text", "cheap"),
    [
        ("depthwise", Cheap(3)),
        ("depthwise 5", Cheap(5)),
        ("depthwise=5", Cheap(5)),
        ("pointwise", Cheap(pointwise="full")),
        ("pointwise 8", Cheap(pointwise=8)),
        ("pointwise+depthwise", Cheap(3, "full")),
        ("  depthwise 1 +  pointwise 2 ", Cheap(1, 2)),
    ],
)
def test_it_is_read_in_any_order_and_with_the_usual_size(text: str, cheap: Cheap) -> None:
    assert Cheap.read(text) == cheap


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cheap = '': it is no cheap operation; write depthwise 3, pointwise"),
        ("dephtwise 3", "Did you mean 'depthwise'"),
        ("pointwize", "Did you mean 'pointwise'"),
        ("depthwise 3 + pontwise 8", "Did you mean 'pointwise'"),
        ("depthwise 3 + depthwise 5", "is no cheap operation"),
        ("none", "is no cheap operation"),
        ("depthwise -1", "is no cheap operation"),
        ("depthwise 4", "cheap kernel d = 4: it must be odd, .*; try 3 or 5"),
        ("pointwise 0", "pointwise 0: the rank must be 1 or more"),
    ],
)
def test_what_is_no_cheap_operation_is_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        Cheap.read(text)
    assert "\n" not in str(caught.value)


def test_there_is_none_without_either_part() -> None:
    with pytest.raises(PlanError, match="needs a cheap operation"):
        Cheap()


# -- what it costs ---------------------------------------------------------------------------------------------


@given(st.sampled_from(VALUES), st.integers(2, 40), st.integers(2, 5), st.booleans())
def test_its_weights_biases_and_outputs_are_those_of_the_module_it_builds(
    cheap: Cheap, n: int, s: int, bias: bool
) -> None:
    s = min(s, n)
    m = intrinsic_maps(n, s)
    ghost, work = CGhost(3, n, 3, padding=1, bias=bias, s=s, cheap=cheap), cheap.work(n, m, s)
    parts = [conv for conv in (*ghost.cheap.modules(), *_convs(ghost.pointwise)) if isinstance(conv, nn.Conv2d)]
    assert work.weights == sum(conv.weight.numel() for conv in parts)
    assert sum(conv.bias.numel() for conv in parts if conv.bias is not None) == (work.biases if bias else 0)
    assert work.outputs == sum(conv.out_channels for conv in parts)
    assert ghost.operation == cheap.for_width(n, m)


def _convs(module: nn.Module | None) -> list[nn.Module]:
    return [] if module is None else [*module.modules()]


@pytest.mark.parametrize(
    ("cheap", "moved"),
    [
        (Cheap(3), 2 * 32 + 64 + 64),  # the filters' in and out, the concatenation's in and out
        (Cheap(pointwise="full"), 32 + 32 + 64 + 64),  # the mixture's in and out, the concatenation's
        (Cheap(pointwise=4), 32 + 4 + 4 + 32 + 64 + 64),
        (Cheap(3, "full"), 2 * 32 + 64 + 64 + 32 + 32 + 3 * 32),  # both, and their sum
    ],
    ids=str,
)
def test_what_it_moves_by_hand(cheap: Cheap, moved: int) -> None:
    """64 maps of 32 intrinsic ones, at s = 2."""
    assert cheap.work(64, 32, 2).moved == moved


def test_a_rank_that_saves_nothing_is_a_full_one() -> None:
    assert Cheap(3, 16).for_width(64, 32) == Cheap(3, "full")  # 16·64 weights, as many as 32·32
    assert Cheap(3, 15).for_width(64, 32) == Cheap(3, 15)
    assert Cheap(3).for_width(64, 32) == Cheap(3)
    assert [Cheap(None, rank).mixes_freely(64, 32) for rank in (15, 16, "full")] == [False, True, True]
    assert not Cheap(7).mixes_freely(64, 32)


# -- a pointwise convolution alone -----------------------------------------------------------------------------

each_mixture = pytest.mark.parametrize(
    ("n", "s", "cheap", "m"),
    [
        (8, 2, "pointwise", None),
        (11, 3, "pointwise", None),
        (11, 3, "pointwise 2", None),
        (11, 3, "pointwise", 5),
        (11, 2, "pointwise", 2),
        (2, 2, "pointwise", None),
    ],
)


def product(pointwise: nn.Module) -> Tensor:
    """P, (n−m, m), multiplied out."""
    first, *second = (part.weight.flatten(1) for part in pointwise.modules() if isinstance(part, nn.Conv2d))
    return second[0] @ first if second else first


@each_mixture
def test_its_ghosts_are_weighted_sums_of_all_intrinsic_maps(n: int, s: int, cheap: str, m: int | None) -> None:
    ghost = CGhost(4, n, 3, stride=2, s=s, cheap=cheap, m=m).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    y, bias = ghost.primary(x), [part.bias for part in ghost.pointwise.modules() if hasattr(part, "bias")][-1]
    made = torch.einsum("gm,bmhw->bghw", product(ghost.pointwise), y) + bias[:, None, None]
    assert len(ghost.cheap) == 0 and ghost.m == (m or intrinsic_maps(n, s))
    assert torch.allclose(ghost(x), torch.cat([y, made], 1), rtol=1e-9, atol=1e-12)


@each_mixture
def test_filters_that_are_mixtures_of_the_first_are_carried_over_exactly(
    n: int, s: int, cheap: str, m: int | None
) -> None:
    """The rest of the filter bank, and its biases, are such mixtures of a rank that the module has."""
    m = m or intrinsic_maps(n, s)
    rank = Cheap.read(cheap).rank(n, m)
    conv, mixing = nn.Conv2d(4, n, 3).double(), torch.randn(n - m, rank) @ torch.randn(rank, m)
    with torch.no_grad():
        conv.weight[m:] = torch.einsum("gm,mcij->gcij", mixing.double(), conv.weight[:m])
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    ghost = CGhost.from_conv(conv, s, cheap=cheap, m=m)
    assert (ghost(x) - conv(x)).std() < 0.01 * conv(x).std()


def test_filters_alike_or_zero_are_carried_over_finite() -> None:
    conv = nn.Conv2d(4, 8, 3)
    with torch.no_grad():
        conv.weight[:4] = conv.weight[0]
        conv.weight[5:] = 0
    ghost = CGhost.from_conv(conv, cheap="pointwise")
    assert all(parameter.isfinite().all() for parameter in ghost.parameters())
    assert torch.allclose(ghost(x := torch.randn(1, 4, 5, 5))[:, 5:], conv(x)[:, 5:], atol=1e-3)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_what_follows_the_primary_convolution_is_one_1x1_convolution(dimensions: int, kernel: int) -> None:
    """The two convolutions that a module becomes where its filters have one tap: W (n, m) holds the identity's rows."""
    kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    conv = kinds[dimensions](4, 10, kernel, padding=kernel // 2).double()
    x = torch.randn(2, 4, *[6] * dimensions, dtype=torch.float64)
    order = torch.randperm(10).tolist()
    for form in ({"cheap": "pointwise"}, {"cheap": "pointwise 1"}, {"d": 1, "pointwise": 5}, {"d": 1}):
        for given_order in (None, order):
            ghost = CGhost.from_conv(conv, s=3, order=given_order, **form)
            weight, bias = ghost.linear_map()
            assert weight.shape == (10, ghost.m)
            merged = torch.einsum("nm,bm...->bn...", weight, ghost.primary(x)) + bias.view(-1, *[1] * dimensions)
            assert torch.allclose(merged, ghost(x))
            place = range(ghost.m) if given_order is None else ghost.order.argsort()[: ghost.m].tolist()
            assert torch.equal(weight[list(place)], torch.eye(ghost.m, dtype=torch.float64))


def test_groups_have_such_a_map_too_and_larger_filters_and_norms_have_none() -> None:
    grouped, x = CGhost(4, 10, 3, groups=2, bias=False, s=3, d=1), torch.randn(2, 4, 6, 6)
    weight, bias = grouped.linear_map()
    assert bias is None
    assert torch.allclose(torch.einsum("nm,bmhw->bnhw", weight.float(), grouped.primary(x)), grouped(x), atol=1e-6)
    assert CGhost(4, 10, 3).linear_map() is None
    assert CGhost(4, 10, 3).linear_map(on_vectors=True) is not None
    assert CGhost(4, 10, 3, s=2, cheap="depthwise 3 + pointwise").linear_map() is None
    assert CGhost(4, 10, 3, d=1, norm=nn.BatchNorm2d).linear_map() is None


@pytest.mark.parametrize("shape", [(3, 9), (3, 5, 6, 9)])
def test_a_linear_layer_becomes_two(shape: tuple[int, ...]) -> None:
    """On vectors, whatever the size of its depthwise filters."""
    ghost = CGhostLinear.from_linear(nn.Linear(9, 8).double(), cheap="pointwise" if len(shape) > 2 else "depthwise 3")
    x, conv = torch.randn(shape, dtype=torch.float64), ghost.primary
    weight, bias = ghost.linear_map(on_vectors=len(shape) == 2)
    two = (x @ conv.weight.flatten(1).T + conv.bias) @ weight.T + bias
    assert torch.allclose(ghost(x), two)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": 2}, "cheap = pointwise: .* would join its 2 groups; write depthwise 3"),
        ({"norm": nn.BatchNorm2d}, "cheap = pointwise: .* linear parts only, .*; write depthwise 3"),
        ({"m": 8}, "m = 8 intrinsic maps: of 8 outputs they must be 1 to 7"),
        ({"m": 0}, "m = 0 intrinsic maps"),
        ({"cheap": "pointwise 8 x"}, "is no cheap operation"),
    ],
)
def test_what_it_cannot_be_combined_with_is_told_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        CGhost(4, 8, 3, **{"cheap": "pointwise", **changes})
    assert "\n" not in str(caught.value)
