"""Networks that hold ghost modules already, made narrower or thinner: by channels followed through the ghosts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from zoo import basic, bottleneck, conv_bn, head

from ghostify import CGhost, GGhostStage, Ghosted, convert, plan, scan
from ghostify.errors import PlanError

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def residual() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), basic(16, 16), basic(16, 32, 2), *(basic(32, 32) for _ in range(2)), head(32))


def grouped() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), conv_bn(16, 32, groups=4), bottleneck(32, 32, groups=4), head(32))


def odd() -> nn.Module:
    return nn.Sequential(conv_bn(3, 15), conv_bn(15, 21), conv_bn(21, 25), head(25))


def next_like() -> nn.Module:
    torch.manual_seed(0)
    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 3)], num_classes=4)


GHOSTS: dict[str, dict[str, Any]] = {
    "plain": {"pointwise": "none"},
    "pointwise": {"pointwise": "full"},
    "low rank": {"pointwise": 2},
    "three": {"s": 3, "pointwise": "none"},
    "three with pointwise": {"s": 3, "pointwise": "full"},
    "norm-act": {"parts": "norm-act", "pointwise": "none"},
}
NETS: dict[str, Callable[[], nn.Module]] = {"residual": residual, "grouped": grouped, "odd": odd, "next": next_like}
TIED = {("grouped", "three"), ("grouped", "three with pointwise")}
"""Where s = 3 slices a map off every group, which ties the groups to each other."""
each = pytest.mark.parametrize("ghosts", GHOSTS)


def example(net: str) -> Tensor:
    return X.repeat(1, 1, 2, 2) if net == "next" else X


@cache
def ghosted(net: str, ghosts: str) -> nn.Module:
    also = ("channels-last",) if net == "next" else ()
    changes = {**GHOSTS[ghosts]}
    if net == "next" and "parts" in changes:
        del changes["parts"]  # a linear layer takes no norm
    return convert(NETS[net](), example(net), min_saving=0, also=also, **changes).module


def assert_narrower(again: Ghosted, x: Tensor) -> None:
    """It costs what was promised (``convert`` checks), its ghosts know their widths, and it learns."""
    assert again.after.cost.macs < again.before.cost.macs
    for name, module in again.module.named_modules():
        if isinstance(module, CGhost):
            seen: list[tuple[int, int]] = []
            dim = -1 if "Linear" in type(module).__name__ else 1
            hook = module.register_forward_hook(
                lambda _, given, made, dim=dim, seen=seen: seen.append((given[0].shape[dim], made.shape[dim]))
            )
            again.module.eval()(x)
            hook.remove()
            assert seen[0] == (module.in_channels, module.out_channels), name
    again.module.train()(x).sum().backward()


@pytest.mark.parametrize(
    ("net", "ghosts", "keep"),
    [
        *((net, ghosts, "strongest") for net in NETS for ghosts in GHOSTS if (net, ghosts) not in TIED),
        *(("residual", ghosts, "first") for ghosts in GHOSTS),
    ],
)
def test_a_ghosted_network_becomes_narrower(net: str, ghosts: str, keep: str) -> None:
    again = convert(ghosted(net, ghosts), example(net), method="width", width=0.5, round_to=2, keep=keep)
    assert_narrower(again, example(net))


@each
@pytest.mark.parametrize("net", ["residual", "next"])
def test_the_blocks_of_a_ghosted_network_become_thinner(net: str, ghosts: str) -> None:
    again = convert(ghosted(net, ghosts), example(net), method="thin", width=0.5, round_to=2)
    assert_narrower(again, example(net))


def reordered() -> nn.Module:
    """An ordered ghost, as fitting makes them."""
    net = residual()
    order = [*range(1, 32, 2), *range(0, 32, 2)]
    net[3].body[0][0] = CGhost.from_conv(net[3].body[0][0], pointwise=2, order=order)
    return net


@pytest.mark.parametrize("method", ["width", "thin"])
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_an_ordered_ghost_keeps_its_order_among_what_is_kept(method: str, keep: str) -> None:
    again = convert(reordered(), X, method=method, width=0.5, round_to=2, keep=keep)
    assert_narrower(again, X)
    order = again.module[3].body[0][0].order
    assert sorted(order.tolist()) == list(range(16))


def test_a_network_that_selects_channels_by_a_buffer_becomes_narrower() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3)
            self.register_buffer("places", torch.randperm(16, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return self.three(torch.relu(self.two(self.one(x).index_select(1, self.places))))

    again = convert(Shuffled(), X, method="width", width=0.5, keep="strongest")
    assert sorted(again.module.places.tolist()) == list(range(8))


@pytest.mark.parametrize("method", ["width", "thin"])
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_a_g_ghost_stage_keeps_its_width_and_the_rest_becomes_narrower(method: str, keep: str) -> None:
    staged = convert(residual(), X, method="g-ghost", keep=keep, round_to=2).module
    again = convert(staged, X, method=method, width=0.5, round_to=2)
    assert_narrower(again, X)
    (before,), (after,) = (
        [module for module in net.modules() if isinstance(module, GGhostStage)] for net in (staged, again.module)
    )
    assert after.width == before.width
    assert any("G-Ghost stage" in skip.reason for skip in again.plan.skips)


def test_ghosting_again_says_that_the_layers_are_ghosts_already() -> None:
    with pytest.raises(PlanError, match=r"is part of the C-Ghost module .* already"):
        plan(scan(ghosted("next", "plain"), example("next")), also=("channels-last",)).require_changes()
