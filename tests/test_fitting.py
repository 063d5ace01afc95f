"""Fitting: exact where the converted network can be the original, on any network no worse, and nobody else's bother."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Counting, Net, Residual, conv_bn, head, mobile, plain, residual

import ghostify.fitting.fit as fit_module
from ghostify import Ghosted, Plan, Traced, load, plan, rewrite, save, trace
from ghostify.errors import FitError, PlanError
from ghostify.fitting import rewrite_fitted
from ghostify.fitting.agenda.epilogue import line
from ghostify.fitting.calibration import Calibration
from ghostify.fitting.interpreter import batched
from ghostify.fitting.norms import Statistics
from ghostify.fitting.norms import renew as real_renew
from ghostify.ghosts import CGhost, CGhostLinear, GGhostStage
from ghostify.planning import check, scan_for
from ghostify.recipe import FitSettings, GhostSettings, Role
from ghostify.running import frozen_parts

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EXACT = 3e-6
"""Relative to the largest output."""


def norms(module: nn.Module) -> dict[str, Any]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return {name: part for name, part in module.named_modules() if isinstance(part, kinds)}


def settled(model: nn.Module, images: Tensor = IMAGES) -> nn.Module:
    """With norms whose lines are drawn at random, and which know the images' statistics; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in norms(model).values():
            for tensor, least in ((norm.weight, 0.5), (norm.bias, -0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + least)
        trained = copy.deepcopy(model).train()
        for norm in norms(trained).values():
            norm.momentum = 1.0
        trained(images.clone().to(next(model.parameters()).dtype))
        for name, norm in norms(model).items():
            norm.load_state_dict(norms(trained)[name].state_dict())
    return model.eval()


def planned(model: nn.Module, example: Any, **settings: Any) -> tuple[Traced, Plan]:
    traced = trace(model, example)
    wanted = GhostSettings(**settings)
    return traced, plan(scan_for(traced, wanted), wanted)


def fitted(model: nn.Module, images: Tensor = IMAGES, fit: dict[str, Any] | None = None, **settings: Any) -> Ghosted:
    traced, proposal = planned(model, images[:2], **settings)
    return rewrite_fitted(traced, proposal, images, FitSettings(**(fit or {})))


def parted(images: Tensor) -> tuple[Tensor, Tensor]:
    """The images fitted to, and those that nothing is fitted to."""
    split = Calibration.of(images)
    return torch.cat([*split.fitted]), torch.cat([*split.judging])


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """In eval mode, of a copy."""
    with torch.no_grad():
        given = copy.deepcopy(model).eval()(images.clone())
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def relative_error(model: nn.Module, other: nn.Module) -> float:
    """Largest difference of outputs for images that were not fitted to."""
    fresh = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    (wanted,), (found,) = outputs(model, fresh), outputs(other, fresh)
    return float((found - wanted).abs().max() / wanted.abs().max())


def assert_exact(model: nn.Module, ghosted: Ghosted, at_first: float = 1e-3) -> None:
    """The network is the original, and was far from it with its weights as they were carried over."""
    assert ghosted.fit is not None
    assert relative_error(model, ghosted.module) < EXACT
    assert ghosted.fit.error < 1e-9 and ghosted.fit.unfitted > at_first
    assert all(layer.error < 1e-8 for layer in ghosted.fit.layers)


# -- networks that ghosts can be -------------------------------------------------------------------------------


def with_filters(conv: nn.Conv2d, filters: Tensor) -> nn.Conv2d:
    with torch.no_grad():
        conv.weight.copy_(filters.reshape(conv.weight.shape))
    return conv


def of_mixtures(c: int, n: int) -> nn.Conv2d:
    """A convolution half of whose filters are mixtures of the others."""
    filters = torch.randn(n // 2, 9 * c) / (9 * c) ** 0.5
    mixtures = torch.randn(n // 2, n // 2) @ filters / (n // 2) ** 0.5
    return with_filters(nn.Conv2d(c, n, 3, padding=1, bias=False), torch.cat([filters, mixtures]))


def of_pixels(c: int, n: int, s: int, mixed: int = 0) -> nn.Conv2d:
    """A convolution of pixels (1x1), and 3x3 filters of what those give; ``mixed``: rank of mixtures added to these."""
    m = math.ceil(n / s)
    pixels = torch.randn(m, c, 1, 1) / c**0.5
    filters = torch.randn(n - m, 1, 3, 3) / 3
    if mixed:
        filters[:, :, 1, 1] = 0  # else a mixture would have to tell its own map apart
    ghosts = pixels[torch.arange(n - m) % m] * filters
    if mixed:
        mixture = (torch.rand(n - m, mixed) - 0.5) @ (torch.rand(mixed, m) - 0.5)
        ghosts = ghosts + F.pad((mixture @ pixels.flatten(1))[:, :, None, None], (1, 1, 1, 1))
    return with_filters(nn.Conv2d(c, n, 3, padding=1, bias=False), torch.cat([F.pad(pixels, (1, 1, 1, 1)), ghosts]))


class Body(nn.Module):
    """A block of two convolutions and their norms, with or without a shortcut around."""

    def __init__(self, one: nn.Conv2d, two: nn.Conv2d, shortcut: bool) -> None:
        super().__init__()
        self.one, self.two = one, two
        self.norm1, self.norm2 = nn.BatchNorm2d(one.out_channels), nn.BatchNorm2d(two.out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.two(F.relu(self.norm1(self.one(x)))))
        return F.relu(x + y if self.shortcut else y)


def two_blocks(make: Callable[[int, int], nn.Conv2d], shortcut: bool) -> nn.Module:
    torch.manual_seed(0)
    blocks = (Body(make(8, 12), make(12, 8), shortcut) for _ in range(2))
    return settled(nn.Sequential(conv_bn(3, 8), *blocks, head(8)))


shortcuts = pytest.mark.parametrize("shortcut", [True, False], ids=["residual", "plain"])


@shortcuts
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("cheap", ["pointwise", "depthwise 3 + pointwise"])
def test_filters_of_half_rank_become_full_pointwise_ghosts(shortcut: bool, joint: bool, cheap: str) -> None:
    model = two_blocks(of_mixtures, shortcut)
    ghosted = fitted(model, cheap=cheap, min_saving=0, fit={"joint": joint, "arrange": "none"})
    assert all(isinstance(ghost.pointwise, nn.Conv2d) for ghost in ghosts(ghosted.module).values())
    assert_exact(model, ghosted, at_first=1e-3 if "depthwise" in cheap else 0)  # mixtures are carried over as such


@shortcuts
@pytest.mark.parametrize("s", [2, 3])
def test_filters_of_pixels_become_plain_ghosts(shortcut: bool, s: int) -> None:
    """As they stand; ``test_arranging`` has them in other orders."""
    model = two_blocks(lambda c, n: of_pixels(c, n, s), shortcut)
    ghosted = fitted(model, cheap="depthwise 3", s=s, min_saving=0, fit={"arrange": "none"})
    assert len(ghosts(ghosted.module)) == 4
    assert_exact(model, ghosted)


@shortcuts
def test_filters_of_pixels_and_mixtures_become_pointwise_ghosts_of_low_rank(shortcut: bool) -> None:
    model = two_blocks(lambda c, n: of_pixels(c, n, 2, mixed=1), shortcut)
    ghosted = fitted(model, cheap="depthwise 3 + pointwise 1", min_saving=0, fit={"arrange": "none"})
    assert all(isinstance(ghost.pointwise, nn.Sequential) for ghost in ghosts(ghosted.module).values())
    assert_exact(model, ghosted)


class Doubled(nn.Module):
    """Every map twice."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


def read_from_doubled_maps(filters: Tensor) -> nn.Module:
    """A network of a layer whose filters are these on maps that come twice, and in themselves no mixtures at all."""
    apart = torch.randn_like(filters) / 6
    n, c = filters.shape[:2]
    conv = with_filters(nn.Conv2d(2 * c, n, 3, padding=1, bias=False), torch.cat([filters + apart, -apart], 1))
    return settled(nn.Sequential(conv_bn(3, c), Doubled(), conv, nn.BatchNorm2d(n), nn.ReLU(), head(n)))


@pytest.mark.parametrize(
    ("s", "m", "cheap", "rank"),
    [(2, None, "pointwise", 6), (2, 5, "pointwise", 5), (3, 7, "pointwise", 6), (2, None, "pointwise 1", 1)],
)
def test_ghosts_without_filters_are_fitted_to_what_maps_have_in_common(
    s: int, m: int | None, cheap: str, rank: int
) -> None:
    """Twelve maps of which the later ones are mixtures, of a rank, of those before them."""
    torch.manual_seed(0)
    first = m or 12 // s
    filters = torch.randn(first, 4, 3, 3) / 6
    mixing = torch.randn(12 - first, rank) @ torch.randn(rank, first) / first**0.5
    model = read_from_doubled_maps(torch.cat([filters, torch.einsum("gm,mcij->gcij", mixing, filters)]))
    traced, proposal = planned(model, IMAGES[:2], s=s, cheap=cheap, round_to=1, min_saving=0)
    swaps = tuple(swap.model_copy(update={"m": m}) for swap in proposal.swaps)
    again = check(proposal.model_copy(update={"swaps": swaps}), scan_for(traced, proposal))
    ghosted = rewrite_fitted(traced, again, IMAGES, FitSettings(arrange="none"))
    (ghost,) = ghosts(ghosted.module).values()
    assert ghost.m == first and len(ghost.cheap) == 0
    assert isinstance(ghost.pointwise, nn.Sequential) is (rank == 1)
    assert_exact(model, ghosted)


@pytest.mark.parametrize("cheap", ["pointwise", "depthwise 3 + pointwise"])
@pytest.mark.parametrize("bias", [True, False])
def test_intercepts_go_to_biases_where_there_are_any_and_else_to_norms(bias: bool, cheap: str) -> None:
    """Of joint ghosts, too, whose maps are far from zero in the mean."""

    def conv(c: int, n: int) -> nn.Conv2d:
        made = of_mixtures(c, n)
        made.bias = nn.Parameter(5 * torch.randn(n)) if bias else None
        return made

    torch.manual_seed(0)
    layers: Iterator[nn.Module] = iter([conv(8, 12), nn.ReLU(), conv(12, 8), nn.BatchNorm2d(8), nn.ReLU()])
    model = settled(nn.Sequential(conv_bn(3, 8), *layers, head(8)))
    assert_exact(model, fitted(model, cheap=cheap, min_saving=0), at_first=1e-3 if "depthwise" in cheap else 0)


def test_groups_have_ghosts_of_their_own() -> None:
    torch.manual_seed(0)
    halves = [of_pixels(4, 6, 2).weight for _ in range(2)]
    conv = with_filters(nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False), torch.cat(halves))
    model = settled(nn.Sequential(conv_bn(3, 8), conv, nn.BatchNorm2d(12), nn.ReLU(), head(12)))
    assert_exact(model, fitted(model, pointwise="none", min_saving=0, fit={"arrange": "none"}))


@pytest.mark.parametrize("pointwise", ["none", "full"])
def test_linear_layers_become_ghosts_too(pointwise: str) -> None:
    """Multiples of others without a pointwise convolution, mixtures with one; multiples are found in any order."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 12, bias=False)
    with torch.no_grad():
        if pointwise == "full":
            linear.weight[6:] = torch.randn(6, 6) @ linear.weight[:6]
        else:
            linear.weight[6:] = torch.randn(6, 1) * linear.weight[:6]
            linear.weight.copy_(linear.weight[torch.randperm(12)])
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = settled(nn.Sequential(conv_bn(3, 8), *pooled, linear, nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)))
    ghosted = fitted(model, pointwise=pointwise, min_saving=0, also=("classifier",), include=("3",))
    assert isinstance(ghosted.module.get_submodule("3"), CGhostLinear)
    assert relative_error(model, ghosted.module) < EXACT


@pytest.mark.parametrize(
    "settings",
    [{"min_saving": 0, "pointwise": rank} for rank in ("none", "full", 1)]
    + [{"method": "thin", "width": 0.5, "round_to": 12}],  # what it reads is narrower, and it is not
    ids=["plain", "full", "low-rank", "thin"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_what_a_layer_gives_is_right_in_the_mean_and_its_error_is_as_told(settings: dict[str, Any], bias: bool) -> None:
    """Of maps that it cannot make: least squares with a constant, over all positions of the images fitted to; its error
    is that on the others."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 12, 3, padding=1, bias=bias)
    model = settled(nn.Sequential(conv_bn(3, 16), conv, nn.BatchNorm2d(12), nn.ReLU(), head(12)))
    ghosted = fitted(model, fit={"arrange": "none", "rectified": False}, **settings)
    seen, judged = parted(IMAGES)
    with torch.no_grad():
        wanted, found = (copy.deepcopy(one).eval()[:3](torch.cat([seen, judged])) for one in (model, ghosted.module))
    count = len(seen)
    assert (found - wanted).abs().mean() > 0.1
    assert torch.allclose(found[:count].mean((0, 2, 3)), wanted[:count].mean((0, 2, 3)), atol=1e-5)
    told = next(layer for layer in ghosted.fit.layers if layer.target == "1")  # type: ignore[union-attr]
    variance = wanted.transpose(0, 1).flatten(1).var(1, unbiased=False).mean()
    assert told.error == pytest.approx(float((found - wanted)[count:].square().mean() / variance), rel=1e-3)
    assert told.positions == count * 64


# -- networks that can do with fewer channels ------------------------------------------------------------------


def with_copies(one: nn.Conv2d, norm: nn.BatchNorm2d, two: nn.Module, dead: bool) -> None:
    """Let half of the channels between two layers be weak copies of the others behind the rectifier; some unread.

    Copies differ from what they copy by a positive factor; all stand in a random order.
    """
    n = one.out_channels
    factor = 0.1 + 0.4 * torch.rand(n // 2)
    again = torch.cat([torch.arange(n // 2)] * 2)
    scale = torch.cat([torch.ones(n // 2), factor])
    places = torch.randperm(n)
    with torch.no_grad():
        one.weight.copy_((one.weight[again] * scale[:, None, None, None])[places])
        norm.running_mean.copy_((norm.running_mean[again] * scale)[places])
        norm.running_var.copy_(((norm.running_var[again] + norm.eps) * scale.square() - norm.eps)[places])
        gain = torch.cat([torch.ones(n // 2), 0.5 + torch.rand(n // 2)])
        norm.weight.copy_((norm.weight[again] * gain)[places])
        norm.bias.copy_((norm.bias[again] * gain)[places])
        if dead:
            two.weight[:, places >= n * 3 // 4] = 0


@pytest.mark.parametrize("dead", [True, False], ids=["some-unread", "all-read"])
def test_thin_blocks_do_without_copies_and_what_nobody_reads(dead: bool) -> None:
    """Inside blocks; the layers after take the copies' part over."""
    torch.manual_seed(0)
    blocks = [Body(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1), True) for _ in range(2)]
    model = settled(nn.Sequential(conv_bn(3, 8), *blocks, head(8)))
    for block in blocks:
        block.one.bias = None
        with_copies(block.one, block.norm1, block.two, dead)
    ghosted = fitted(model, method="thin", width=0.5, round_to=1)
    assert [ghosted.module.get_submodule(f"{i}.one").out_channels for i in (1, 2)] == [8, 8]
    assert_exact(model, ghosted)


def test_thin_blocks_do_without_mixtures_where_no_activation_is_between() -> None:
    torch.manual_seed(0)
    bodies = [nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 8, 3, padding=1)) for _ in range(2)]
    for one, _ in bodies:
        with torch.no_grad():
            one.weight[8:] = 0.2 * torch.einsum("ij,jchw->ichw", torch.randn(8, 8), one.weight[:8])
    model = settled(nn.Sequential(conv_bn(3, 8), *(Residual(body, 8, 8, 1) for body in bodies), head(8)))
    assert_exact(model, fitted(model, method="thin", width=0.5, round_to=1))


def test_a_narrower_network_does_without_copies_and_what_nobody_reads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 16), conv_bn(16, 16, 1), conv_bn(16, 16), head(16))
    settled(model)
    for part, after, dead in ((0, model[1][0], False), (1, model[2][0], True)):
        with_copies(model[part][0], model[part][1], after, dead)
    with_copies(model[2][0], model[2][1], model[3][2], False)
    assert_exact(model, fitted(model, method="width", width=0.5, round_to=1, keep="strongest"))


@pytest.mark.parametrize("method", ["thin", "width"])
def test_nothing_is_lost_where_what_is_dropped_was_dead(method: str) -> None:
    """Weak filters that nobody reads: the thinner network is exact at once, and stays so."""
    torch.manual_seed(0)
    model = settled(nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), head(16)))
    with torch.no_grad():
        for index, reader in ((0, model[1][0]), (1, model[2][2])):
            places = torch.randperm(16)[:8]
            model[index][0].weight[places] *= 0.01
            reader.weight[:, places] = 0
    ghosted = fitted(model, method=method, width=0.5, round_to=1, keep="strongest")
    assert ghosted.fit is not None and ghosted.fit.error <= ghosted.fit.unfitted < 1e-9
    assert relative_error(model, ghosted.module) < EXACT


# -- stages ----------------------------------------------------------------------------------------------------


def apart(block: Residual, kept: Tensor) -> None:
    """Let some channels of a block and the rest keep to themselves; what the rest adds is a 1x1 map, and positive."""
    (conv1, norm, _), conv2 = block.body
    rest = torch.tensor([channel for channel in range(16) if channel not in kept.tolist()])
    with torch.no_grad():
        for conv in (conv1, conv2):
            conv.weight[kept[:, None], rest] = 0
            conv.weight[rest] = 0
            conv.weight[rest[:, None], rest, 1, 1] = torch.rand(8, 8) / 8
        conv2.bias[rest] = 0
        norm.running_mean[rest] = norm.bias[rest] = 0  # what is positive stays so
        norm.running_var[rest] = 1


def basic_block(c: int, n: int, stride: int) -> Residual:
    body = nn.Sequential(nn.Conv2d(c, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n), nn.ReLU())
    return Residual(nn.Sequential(body, nn.Conv2d(n, n, 3, padding=1)), c, n, stride)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("cheap", ["1x1", "3x3"])
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_a_stage_whose_ghosts_are_a_map_of_its_first_block_becomes_one(end: bool, cheap: str, keep: str) -> None:
    """Whichever channels are kept; the thin layers are fitted to theirs."""
    torch.manual_seed(0)
    blocks = [basic_block(8, 16, 2), *(basic_block(16, 16, 1) for _ in range(3))]
    model = settled(nn.Sequential(conv_bn(3, 8), nn.Sequential(*blocks), head(16)))
    kept = torch.arange(8) if keep == "first" else torch.randperm(16)[:8]
    for block in blocks[1:]:
        apart(block, kept)
    ghosted = fitted(model, method="g-ghost", end=end, cheap=cheap, keep=keep, round_to=1)
    ((name, stage),) = ((name, part) for name, part in ghosted.module.named_modules() if isinstance(part, GGhostStage))
    assert stage.kept == 8 and (stage.end is not None) == end and (stage.order is None) == (keep == "first")
    inside = {f"{name}.{inner}" for inner, part in stage.named_modules() if isinstance(part, nn.Conv2d)}
    told = {layer.target for layer in ghosted.fit.layers}  # type: ignore[union-attr]
    assert told == {name, "2.2", *inside} - {f"{name}.cheap.0"}
    assert_exact(model, ghosted)


@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_blocks_that_read_the_stream_and_ghosts_of_their_outputs_are_fitted(keep: str) -> None:
    """Thin channels read the others, which stay those of Y1 until the last block adds a map of the thin ones."""
    torch.manual_seed(0)
    blocks = [basic_block(8, 16, 2), *(basic_block(16, 16, 1) for _ in range(3))]
    model = settled(nn.Sequential(conv_bn(3, 8), nn.Sequential(*blocks), head(16)))
    kept = torch.arange(8) if keep == "first" else torch.randperm(16)[:8]
    rest = torch.tensor([channel for channel in range(16) if channel not in kept.tolist()])
    with torch.no_grad():
        for block in blocks[1:]:
            block.body[1].weight[rest], block.body[1].bias[rest] = 0, 0
        (conv1, norm, _), conv2 = blocks[-1].body
        nn.init.dirac_(conv1.weight)
        norm.load_state_dict(nn.BatchNorm2d(16).state_dict())
        conv2.weight.zero_()
        conv2.bias.zero_()
        conv2.weight[rest[:, None], kept, 1, 1] = torch.rand(8, 8) / 8
    ghosted = fitted(model, method="g-ghost", preset="stream", inner_width=1.0, keep=keep, round_to=1)
    (stage,) = (part for part in ghosted.module.modules() if isinstance(part, GGhostStage))
    assert (stage.entry, stage.cheap_input, stage.kept) == ("stream", "outputs", 8)
    assert_exact(model, ghosted)


def test_a_mix_operation_makes_what_is_added_to_whole_maps() -> None:
    """Ghosts of the first block's maps, and of the mean of the thin path's."""

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pooled = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Linear(16, 16, bias=False)
            with torch.no_grad():
                self.conv.weight[:8, 8:] = self.conv.weight[8:] = 0
                self.pooled.weight[:8] = self.pooled.weight[:, 8:] = 0
                self.pooled.weight[8:, :8].uniform_()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.conv(x) + self.pooled(x.mean((2, 3)))[:, :, None, None])

    torch.manual_seed(0)
    model = settled(nn.Sequential(conv_bn(3, 16, stride=2), nn.Sequential(*(Pooling() for _ in range(3))), head(16)))
    many = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    assert_exact(model, fitted(model, many, method="g-ghost", end=False, keep="first", round_to=1))


# -- any network -----------------------------------------------------------------------------------------------

EAGER: dict[str, Any] = {"also": get_args(Role), "min_saving": 0}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {**EAGER, "cheap": "depthwise 3"},
    "pointwise": {**EAGER, "cheap": "pointwise"},
    "low-rank": {**EAGER, "cheap": "depthwise 3 + pointwise 1"},
    "g-ghost": {"method": "g-ghost"},
    "thin": {"method": "thin", "width": 0.5, "round_to": 1},
    "width": {"method": "width", "width": 0.5, "round_to": 1},
}
SEVERAL_INPUTS = ("by-name", "nested")
UNREADABLE = ("subclassed", "parametrised", "in-place", "attentive")
UNFIT = ("shuffled", "functional", "shuffle-stage")
"""Nets whose channels cannot be followed, or whose code cannot work with fewer of them."""
DEEP = "resnet20"
"""Three stages of what resnet8 has, too; they make a difference to G-Ghost stages alone."""
KINDS_OF_LAYERS = (
    "biased", "bottlenecks", "grouped", "mobile", "dense", "dilated", "padded", "odd", "shared-head", "aliased",
    "functional", "subclassed", "signal", "video", "in-place", "tied", "attentive", "double", "bfloat16", "next-stage",
    "group-normed",
)  # fmt: skip
"""Nets that differ in what is swapped; the others differ in what is around it, which is the same for every ghost."""
KINDS_OF_CHANNELS = (
    "plain", "bottlenecks", "grouped", "mobile", "dense", "unet", "padded", "signal", "video", "aliased", "tied",
    "frozen", "double", "bfloat16", "next-stage", "gated-stage", "group-normed",
)  # fmt: skip
"""Nets that differ in how channels hang together; every net is thinned, which goes the same way."""
NETS = {net.name: net for net in ZOO}
GHOSTED = [net for net in ZOO if net.name not in (*SEVERAL_INPUTS, DEEP)]
NARROWED = [net for net in GHOSTED if net.name not in (*UNREADABLE, *UNFIT)]
CASES = [
    *((net, "plain") for net in GHOSTED),
    *((net, "pointwise") for net in GHOSTED if net.name in KINDS_OF_LAYERS),
    *((net, "low-rank") for net in GHOSTED if net.name in ("bottlenecks", "mobile", "residual-stage")),
    *((net, "g-ghost") for net in ZOO if net.stages),
    *((net, "thin") for net in NARROWED),
    *((net, "width") for net in NARROWED if net.name in KINDS_OF_CHANNELS),
]
each_case = pytest.mark.parametrize(
    ("net", "method"), [pytest.param(net, method, id=f"{net.name}-{method}") for net, method in CASES]
)


@dataclass
class Case:
    """One net, converted and fitted, with what else there was to be seen."""

    model: nn.Module
    images: Tensor
    traced: Traced
    plan: Plan
    ghosted: Ghosted
    renewed: dict[int, tuple[dict[str, Tensor], Statistics]]
    """By the id of a norm, its state before it was renewed, and what it saw."""
    before: dict[str, Any]
    after: dict[str, Any]

    @cached_property
    def carried(self) -> nn.Module:
        """The network with its weights as they are carried over, without a fit."""
        return rewrite(self.traced, self.plan).module

    @property
    def kept_fit(self) -> bool:
        """Whether the fit was any good."""
        return not any("as carried over" in note for note in self.ghosted.fit.notes)  # type: ignore[union-attr]


def visible(traced: Traced, model: nn.Module, images: Tensor) -> dict[str, Any]:
    """What somebody could notice a change in: two modules' tensors, modes and attributes, images, random states."""
    seen: dict[str, Any] = {"images": images.tolist(), "random": torch.get_rng_state().tolist()}
    for which, root in (("model", model), ("traced", traced.module)):
        for name, tensor in root.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                version = tensor._version if which == "model" else 0
                seen[f"{which} {name}"] = (id(tensor), version, tensor.requires_grad, tensor.grad, tensor.tolist())
        for name, part in root.named_modules():
            plain = {k: v for k, v in vars(part).items() if v is None or isinstance(v, (bool, int, float, str))}
            seen[f"{which} {name} attributes"] = plain
    return seen


@cache
def case(name: str, method: str) -> Case:
    net = NETS[name]
    example = net.example()
    images = torch.randn(24, *example.shape[1:], generator=torch.Generator().manual_seed(3))
    model = settled(net.build(), images)
    for part, mode in zip(model.modules(), [part.training for part in net.build().modules()], strict=True):
        part.training = mode
    traced, proposal = planned(model, example, **METHODS[method])
    renewed: dict[int, tuple[dict[str, Tensor], Statistics]] = {}

    def renew(norm: nn.Module, seen: Statistics) -> None:
        renewed[id(norm)] = copy.deepcopy(norm.state_dict()), seen
        real_renew(norm, seen)

    before = visible(traced, model, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "renew", renew)
        ghosted = rewrite_fitted(traced, proposal, images)
    return Case(model, images, traced, proposal, ghosted, renewed, before, visible(traced, model, images))


def ghosts(module: nn.Module) -> dict[str, CGhost]:
    return {name: part for name, part in module.named_modules() if isinstance(part, CGhost)}


def missed(model: nn.Module, other: nn.Module, batches: list[Tensor], kind: torch.dtype) -> float:
    """Squared difference of outputs over their variance within batches."""
    wrong = total = 0.0
    for batch in batches:
        for wanted, found in zip(*(outputs(one, batch.to(kind)) for one in (model, other)), strict=True):
            wrong += float((found.double() - wanted.double()).square().sum())
            total += float((wanted.double() - wanted.double().mean(0)).square().sum())
    return wrong / total


def missed_by_judges(model: nn.Module, other: nn.Module, images: Tensor, kind: torch.dtype) -> float:
    """Squared difference of outputs, on the images that nothing is fitted to, over their variance on all images."""
    split = Calibration.of(images.to(kind))
    by_batch = [zip(outputs(model, batch), outputs(other, batch), strict=True) for batch in split.batches]
    wrong = total = 0.0
    for pairs in zip(*by_batch, strict=True):
        wanted, found = (torch.cat([pair[side].double() for pair in pairs]) for side in (0, 1))
        judged = len(split.judging) * len(split.batches[0])
        wrong += float((found - wanted)[-judged:].square().mean() * wanted[0].numel())
        total += float(wanted.var(0).sum())
    return wrong / total


def tolerances(the: Case) -> dict[str, float]:
    """Of an error counted again; in half precision, rounding is an error of its own."""
    exact = all(p.dtype in (torch.float32, torch.float64) for p in the.model.parameters())
    return {"rel": 1e-3, "abs": 1e-6} if exact else {"rel": 0.2, "abs": 0.02}


@each_case
def test_the_model_its_recording_and_the_images_are_untouched(net: Net, method: str) -> None:
    the = case(net.name, method)
    assert the.after.keys() == the.before.keys()
    assert [key for key in the.before if the.after[key] != the.before[key]] == []


@each_case
def test_what_is_missed_of_the_outputs_is_as_told_and_never_more_than_before(net: Net, method: str) -> None:
    """Counted again on the images held out; of what it was unfitted, too, where no channels were arranged first."""
    the = case(net.name, method)
    found = the.ghosted.fit
    assert found is not None and found.images == 24 and found.layers
    kind = next(the.model.parameters()).dtype
    again = missed_by_judges(the.model, the.ghosted.module, the.images, kind)
    assert again == pytest.approx(found.error, **tolerances(the))
    assert found.error <= found.unfitted
    if method in ("g-ghost", "thin", "width"):
        carried = missed_by_judges(the.model, the.carried, the.images, kind)
        assert carried == pytest.approx(found.unfitted, **tolerances(the))


@each_case
def test_every_part_is_told_of_and_no_worse_where_it_is_fitted(net: Net, method: str) -> None:
    """Fitted parts are layers of the network, each once; what is missed there is finite."""
    the = case(net.name, method)
    layers = the.ghosted.fit.layers  # type: ignore[union-attr]
    names = [layer.target for layer in layers]
    assert len(names) == len(set(names))
    kinds = {"ghost": CGhost, "layer": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear), "stage": GGhostStage}
    for layer in layers:
        assert isinstance(the.ghosted.module.get_submodule(layer.target), kinds[layer.kind])
        assert math.isfinite(layer.before) and math.isfinite(layer.error) and layer.positions > 0
    assert ghosts(the.ghosted.module).keys() <= set(names)


@each_case
def test_the_result_has_the_modes_names_kinds_and_places_of_a_rewrite(net: Net, method: str) -> None:
    """But for the orders of ghosts, and what images decide."""
    the = case(net.name, method)
    old, new = dict(the.carried.named_modules()), dict(the.ghosted.module.named_modules())
    assert list(old) == list(new)
    one, other = ([(type(part).__name__, part.training) for part in parts.values()] for parts in (old, new))
    assert one == other
    before, after = the.carried.state_dict(keep_vars=True), the.ghosted.module.state_dict(keep_vars=True)
    assert list(before) == [name for name in after if not name.endswith(".order") or name in before]
    for name, tensor in before.items():
        if isinstance(tensor, Tensor):
            other = after[name]
            assert (tensor.shape, tensor.dtype, tensor.device) == (other.shape, other.dtype, other.device), name
            assert tensor.requires_grad == other.requires_grad and type(tensor) is type(other)
            assert not other.is_floating_point() or other.isfinite().all(), name


@each_case
def test_nothing_is_shared_with_the_model(net: Net, method: str) -> None:
    the = case(net.name, method)

    def memory(module: nn.Module) -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}

    assert memory(the.model).isdisjoint(memory(the.ghosted.module))
    assert memory(the.traced.module).isdisjoint(memory(the.ghosted.module))


@each_case
def test_it_trains_from_where_it_stands(net: Net, method: str) -> None:
    """Forward and backward in train mode; gradients are finite and reach what the fit wrote."""
    the = case(net.name, method)
    module = copy.deepcopy(the.ghosted.module).train()
    given = module(the.images[:8].to(next(the.model.parameters()).dtype))
    found = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and leaf.requires_grad]
    sum(leaf.float().square().mean() for leaf in found).backward()
    for layer in the.ghosted.fit.layers:  # type: ignore[union-attr]
        for name, parameter in module.get_submodule(layer.target).named_parameters():
            assert not parameter.requires_grad or parameter.grad is not None, f"{layer.target}.{name}"
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@each_case
def test_renewed_norms_leave_the_function_as_it_was(net: Net, method: str) -> None:
    """With the state of every norm from before it was renewed, the network gives the same in eval mode."""
    the = case(net.name, method)
    if not the.kept_fit:
        return
    renewed = {
        name: the.renewed[id(norm)][0] for name, norm in norms(the.ghosted.module).items() if id(norm) in the.renewed
    }
    assert len(renewed) == len(the.renewed)
    undone = copy.deepcopy(the.ghosted.module)
    for name, state in renewed.items():
        undone.get_submodule(name).load_state_dict(state)
    kind = next(the.model.parameters()).dtype
    for one, other in zip(*(outputs(m, the.images.to(kind)) for m in (the.ghosted.module, undone)), strict=True):
        near = 0.05 if kind == torch.bfloat16 else 1e-4
        assert torch.allclose(one, other, rtol=near, atol=near * float(one.abs().max()))


def read_by_norms(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each norm reads in eval mode, over all its calls, (C, N·H·W)."""
    module, read = copy.deepcopy(model).eval(), {}
    for name, norm in norms(module).items():
        norm.register_forward_pre_hook(lambda part, args, name=name: read.setdefault(name, []).append(args[0]))
    batches = batched(images)
    with torch.no_grad():
        for batch in batches:
            module(batch)
    rows = [[part.double().transpose(0, 1).flatten(1) for part in maps] for maps in read.values()]
    return {name: torch.cat(maps, 1) for name, maps in zip(read, rows, strict=True)}


def alike(y: Tensor, other: Tensor | None) -> bool:
    """Whether two are the same maps, in whichever order."""
    if other is None or y.shape != other.shape:
        return False
    return torch.allclose(y.mean(1).sort().values, other.mean(1).sort().values, rtol=1e-3, atol=1e-5)


@each_case
def test_renewed_norms_hold_the_statistics_of_what_they_see(net: Net, method: str) -> None:
    """Over the calibration images, but for channels that do not vary; and all that see other maps are renewed."""
    the = case(net.name, method)
    kind = next(the.model.parameters()).dtype
    if not the.kept_fit or kind == torch.bfloat16:
        return
    before, seen = (read_by_norms(one, the.images.to(kind)) for one in (the.model, the.ghosted.module))
    renewed = {name for name, norm in norms(the.ghosted.module).items() if id(norm) in the.renewed}
    assert len(renewed) == len(the.renewed)
    frozen = {inner for part in frozen_parts(the.model) for inner in part.modules()}
    kept = {name for name, norm in norms(the.model).items() if norm in frozen}
    assert {name for name, y in seen.items() if not alike(y, before.get(name))} <= renewed | kept
    for name in renewed:
        y, norm = seen[name], the.ghosted.module.get_submodule(name)
        mean, var = y.mean(1), y.var(1, unbiased=False)
        varies = var > 1e-6 * var.max()
        scale = var.sqrt() + norm.eps**0.5
        assert ((norm.running_mean - mean).abs() <= 1e-3 * scale)[varies].all(), name
        assert torch.allclose(norm.running_var.double()[varies], var[varies], rtol=1e-3), name


@pytest.mark.parametrize(
    ("net", "method"), [case for case in CASES if case[0].name in ("plain", "bottlenecks", "next-stage", "in-place")]
)
def test_fitting_is_deterministic(net: Net, method: str) -> None:
    """Another recording of an equal net, at another random state, gives the same bits; by every method."""
    the = case(net.name, method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        again = rewrite_fitted(trace(the.model, net.example()), the.plan, the.images)
    state, expected = again.module.state_dict(), the.ghosted.module.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(value, state[name]) for name, value in expected.items() if isinstance(value, Tensor))
    assert again.fit.model_copy(update={"seconds": 0}) == the.ghosted.fit.model_copy(update={"seconds": 0})  # type: ignore[union-attr]


@pytest.mark.parametrize(("net", "method"), [(net, method) for net, method in CASES if method in ("plain", "g-ghost")])
def test_a_run_folder_gives_the_fitted_module_back(net: Net, method: str, tmp_path: Any) -> None:
    the = case(net.name, method)
    save(the.ghosted, tmp_path / "run")
    again = load(tmp_path / "run", model=net.build(), example=net.example())
    assert again.plan == the.ghosted.plan
    images = the.images.to(next(the.model.parameters()).dtype)
    assert all(
        torch.equal(a, b)
        for a, b in zip(outputs(again.module, images), outputs(the.ghosted.module, images), strict=True)
    )


@pytest.mark.parametrize("method", ["plain", "thin"])
@pytest.mark.parametrize("name", SEVERAL_INPUTS)
def test_nets_that_take_several_inputs_take_no_single_tensor(name: str, method: str) -> None:
    if (name, method) == ("nested", "thin"):
        return  # has nothing to be thinned
    net = NETS[name]
    traced, proposal = planned(net.build(), net.example(), **METHODS[method])
    assert_refused("takes other inputs than one tensor of images", traced, proposal, IMAGES)


# -- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"compensate": False}, {"rectified": False}, {"kept": False}, {"joint": False}], ids=str
)
@pytest.mark.parametrize("method", ["plain", "pointwise", "thin"])
def test_every_switch_gives_a_fit(method: str, change: dict[str, bool]) -> None:
    torch.manual_seed(0)
    ghosted = fitted(settled(residual()), fit=change, **METHODS[method])
    assert ghosted.fit is not None and ghosted.fit.error < 0.5 * ghosted.fit.unfitted


def test_layers_that_are_kept_are_fitted_only_where_that_is_wanted() -> None:
    """Else they have the weights they had."""
    torch.manual_seed(0)
    model = settled(mobile())
    for wanted in (True, False):
        ghosted = fitted(model, fit={"kept": wanted, "arrange": "none"}, min_saving=0)
        kinds = {layer.kind for layer in ghosted.fit.layers}  # type: ignore[union-attr]
        assert kinds == ({"ghost", "layer"} if wanted else {"ghost"})
        kept = {name: part for name, part in model.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))}
        same = {
            name
            for name, part in kept.items()
            if not isinstance(new := ghosted.module.get_submodule(name), CGhost)
            and torch.equal(new.weight, part.weight)
        }
        swapped = {swap.target for swap in ghosted.plan.swaps}
        assert same == set(kept) - swapped if not wanted else "0.0" in same < set(kept) - swapped


@pytest.mark.parametrize("how", ["none", "auto"])
def test_without_a_fit_it_is_a_rewrite(how: Any) -> None:
    """By wish, and where there are no images."""
    traced, proposal = planned(plain(), IMAGES[:2])
    ghosted = rewrite_fitted(traced, proposal, IMAGES if how == "none" else None, FitSettings(how=how))
    wanted = rewrite(traced, proposal).module.state_dict()
    assert ghosted.fit is None
    assert all(torch.equal(value, wanted[name]) for name, value in ghosted.module.state_dict().items())


def test_progress_is_told_part_by_part() -> None:
    told: list[tuple[int, int]] = []
    traced, proposal = planned(residual(), IMAGES[:2], min_saving=0)
    ghosted = rewrite_fitted(traced, proposal, IMAGES, told=lambda done, total: told.append((done, total)))
    parts = len(ghosted.fit.layers)  # type: ignore[union-attr]
    assert told == [(done, parts) for done in range(parts + 1)]


def test_images_that_are_noise_stand_in_for_none() -> None:
    """As many as are set, the same every time; none that are given are looked at."""
    model = settled(plain())
    found = [fitted(model, images, fit={"how": "weights", "images": 64}, min_saving=0) for images in (IMAGES, -IMAGES)]
    one, other = (ghosted.module.state_dict() for ghosted in found)
    assert all(torch.equal(one[name], other[name]) for name in one)
    told = found[0].fit
    assert told is not None and (told.how, told.images) == ("weights", 64) and told.error < told.unfitted


@pytest.mark.parametrize("method", ["plain", "thin"])
def test_polish_goes_on_from_the_fit_and_never_back(method: str) -> None:
    """By the error on images held out, counted again; norms then hold the statistics of what they see."""
    model = settled(residual())
    ghosted = fitted(model, fit={"how": "polish", "seconds": 1.0}, **METHODS[method])
    plainly = fitted(model, **METHODS[method])
    found = ghosted.fit
    assert found is not None and found.how == "polish" and plainly.fit is not None
    assert found.polished == pytest.approx(missed_by_judges(model, ghosted.module, IMAGES, torch.float32), rel=1e-3)
    assert found.error == plainly.fit.error and found.polished <= found.error * (1 + 1e-6)
    assert [part.training for part in ghosted.module.modules()] == [part.training for part in plainly.module.modules()]
    module, seen = copy.deepcopy(ghosted.module).eval(), Statistics()
    norm = norms(module)["0.1"]
    norm.register_forward_pre_hook(lambda part, args: seen(args[0]))
    with torch.no_grad():
        module(IMAGES)
    assert torch.allclose(norm.running_mean.double(), seen.mean, atol=1e-5)
    assert torch.allclose(norm.running_var.double(), seen.variance, rtol=1e-4)


def test_polish_without_images_to_judge_by_changes_nothing() -> None:
    model = settled(plain())
    polished, plainly = (
        fitted(model, IMAGES[:7], fit=fit) for fit in ({"how": "polish", "seconds": 1.0}, {"how": "data"})
    )
    images = torch.randn(16, 3, 8, 8)
    (one,), (other,) = outputs(polished.module, images), outputs(plainly.module, images)
    assert torch.allclose(one, other, atol=1e-5)


# -- few images, dead channels, dtypes -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["plain", "pointwise", "thin"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_images_do_no_harm(count: int, method: str) -> None:
    """A single one is fitted to, and nothing judges that; none is both fitted to and judged by."""
    ghosted = fitted(settled(residual()), IMAGES[:count], **METHODS[method])
    found = ghosted.fit
    assert found is not None and found.images == count and found.judged == min(1, count - 1)
    if count == 1:
        assert found.error is None and found.unfitted is None and "not measured" in found.summary
    else:
        assert found.error is not None and found.unfitted is not None and found.error <= found.unfitted
    assert all(tensor.isfinite().all() for tensor in ghosted.module.state_dict().values())


def test_a_layer_with_fewer_positions_than_unknowns_is_named() -> None:
    """Of the rest nothing is said."""
    torch.manual_seed(0)
    model = settled(nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), nn.AdaptiveAvgPool2d(1), conv_bn(8, 64, 1), head(64)))
    ghosted = fitted(model, IMAGES[:16], min_saving=0, also=("pooled",))
    (note,) = ghosted.fit.notes  # type: ignore[union-attr]
    assert note.startswith("4.2 has 64 unknowns per filter and 12 positions") and note.endswith("better.")


@pytest.mark.parametrize("method", ["plain", "pointwise", "low-rank", "thin"])
@pytest.mark.parametrize("silent", [0, 5, slice(0, 8), slice(None)], ids=str)
def test_channels_that_a_norm_silences_do_no_harm(method: str, silent: Any) -> None:
    """Intrinsic maps, ghosts, or all.  They keep the filters they had, so that training may wake them."""
    torch.manual_seed(0)
    model = settled(nn.Sequential(conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 16), head(16)))
    with torch.no_grad():
        model[1][1].weight[silent] = 0
    ghosted = fitted(model, fit={"arrange": "none"}, **METHODS[method])
    found = ghosted.fit
    assert (
        found is not None and found.error <= found.unfitted and not any("carried over" in note for note in found.notes)
    )
    assert all(tensor.abs().max() < 1e3 for tensor in ghosted.module.parameters())
    if method != "thin":
        primary: Any = ghosted.module.get_submodule("1.0.primary")
        dead = torch.zeros(16, dtype=torch.bool)
        dead[silent] = True
        kept = [torch.equal(one, other) for one, other in zip(primary.weight, model[1][0].weight, strict=False)]
        assert kept == dead[:8].tolist()


@pytest.mark.parametrize("rectified", [True, False])
def test_a_layer_keeps_the_filters_of_what_a_norm_silences(rectified: bool) -> None:
    torch.manual_seed(0)
    blocks = [Body(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1), True) for _ in range(2)]
    model = settled(nn.Sequential(conv_bn(3, 8), *blocks, head(8)))
    with torch.no_grad():
        blocks[0].norm2.weight[2] = 0
    ghosted = fitted(model, fit={"rectified": rectified}, method="thin", width=0.5, round_to=1)
    layer = ghosted.module.get_submodule("1.two")
    kept = [bool(torch.isin(row, old).all()) for row, old in zip(layer.weight, blocks[0].two.weight, strict=True)]
    assert kept == [row == 2 for row in range(8)]


def test_weights_are_finite_where_features_repeat() -> None:
    """Two channels alike, one that is constant, and one of zeros."""
    torch.manual_seed(0)
    model = settled(nn.Sequential(conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 16), head(16)))
    with torch.no_grad():
        conv, norm, _ = model[1]
        conv.weight[1], conv.weight[2] = conv.weight[0], 0
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[1] = tensor[0]
        norm.bias[2], norm.bias[3], norm.weight[3] = 3.0, -1.0, 0
    for method in ("plain", "pointwise", "thin", "width"):
        ghosted = fitted(model, **METHODS[method])
        assert all(tensor.isfinite().all() for tensor in ghosted.module.state_dict().values())
        assert ghosted.fit is not None and ghosted.fit.error < ghosted.fit.unfitted


@cache
def in_float32(method: str) -> tuple[nn.Module, Tensor, Ghosted]:
    torch.manual_seed(0)
    model = settled(plain())
    images = torch.randn(128, 3, 8, 8)
    return model, images, fitted(model, images, **METHODS[method])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["plain", "pointwise", "thin"])
def test_other_dtypes_come_back(kind: torch.dtype, method: str) -> None:
    """The fit works in float32 and gives back what it was given, as good as a float32 network's within rounding."""
    model, images, exact = in_float32(method)
    traced, proposal = planned(copy.deepcopy(model).to(kind), images[:2].to(kind), **METHODS[method])
    ghosted = rewrite_fitted(traced, proposal, images)
    assert {tensor.dtype for tensor in ghosted.module.state_dict().values() if tensor.is_floating_point()} == {kind}
    assert all(tensor.dtype == kind for tensor in traced.module.parameters())
    assert ghosted.fit is not None and exact.fit is not None
    assert ghosted.fit.error == pytest.approx(exact.fit.error, rel=0.5)
    (wanted,), (found,) = outputs(exact.module, IMAGES), outputs(ghosted.module, IMAGES.to(kind))
    assert found.dtype == kind
    assert (found - wanted).abs().max() < (1e-3 if kind == torch.float64 else 0.5) * wanted.abs().max()


class Mixed(nn.Module):
    """A part in half precision between others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(8, 16).to(torch.bfloat16), head(16)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).to(self.body[1].weight.dtype))
        return self.head(x.to(self.head[2].weight.dtype) * self.scale)


def test_every_tensor_gets_its_own_dtype_back() -> None:
    """New ones that of what they took the place of."""
    torch.manual_seed(0)
    model = settled(Mixed())
    ghosted = fitted(model, min_saving=0, exclude=("head.*",), also=("stem",))
    wanted = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for name, tensor in ghosted.module.state_dict().items():
        layer = next((swap.target for swap in ghosted.plan.swaps if name.startswith(f"{swap.target}.")), None)
        assert tensor.dtype == wanted[name if layer is None else f"{layer}.weight"], name
    assert ghosted.module.get_submodule("body.1").running_mean.dtype == torch.bfloat16


# -- structures that need care ---------------------------------------------------------------------------------


class SharedNorm(nn.Module):
    """One norm behind two convolutions without a bias: no intercept may go into it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = conv_bn(3, 8), nn.BatchNorm2d(8), head(8)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(self.stem(x))))
        return self.head(F.relu(self.norm(self.two(x))))


@pytest.mark.parametrize("method", ["plain", "pointwise"])
def test_a_norm_that_is_used_twice_keeps_its_function(method: str) -> None:
    """No intercept goes into it; its statistics become those of both layers, and its line stays."""
    torch.manual_seed(0)
    model = settled(SharedNorm())
    ghosted = fitted(model, **METHODS[method])
    (slope, offset), (was, before) = (line(one.norm, 8, IMAGES) for one in (ghosted.module, model))
    assert torch.allclose(slope, was, rtol=1e-4) and torch.allclose(offset, before, atol=1e-4)
    assert not torch.equal(ghosted.module.norm.running_mean, model.norm.running_mean)
    last = ghosted.fit.layers[-1]  # type: ignore[union-attr]
    assert last.target == "head.2" and ghosted.fit.error == pytest.approx(last.error, rel=0.05)  # type: ignore[union-attr]


class TiedLayers(nn.Module):
    """Two kept layers over one weight, of which neither may be fitted by itself, and one reads the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(8, 8), head(8)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.one(self.body(self.stem(x))))))


def test_tied_layers_that_are_kept_are_fitted_together() -> None:
    torch.manual_seed(0)
    model = settled(TiedLayers())
    ghosted = fitted(model, min_saving=0, include=("body",))
    assert {layer.target for layer in ghosted.fit.layers} == {"body.0", "one", "head.2"}  # type: ignore[union-attr]
    assert ghosted.module.one.weight is ghosted.module.two.weight


class Rows(nn.Module):
    """A linear layer over rows, whose norm is one of the rows and not of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.linear = conv_bn(3, 6), conv_bn(6, 6), nn.Linear(64, 10)
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(60, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(self.linear(self.body(self.stem(x)).flatten(2)))).flatten(1))


def test_a_linear_layer_over_rows_is_fitted() -> None:
    torch.manual_seed(0)
    ghosted = fitted(settled(Rows()), min_saving=0)
    fits = {layer.target: layer for layer in ghosted.fit.layers}  # type: ignore[union-attr]
    assert "linear" in fits and fits["linear"].error <= fits["linear"].before * 1.01


class Idle(nn.Module):
    """Identities and dropouts wherever a network may have them, as timm's do."""

    def __init__(self, idle: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = conv_bn(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.norm2, self.head = nn.BatchNorm2d(8), nn.BatchNorm2d(8), head(8)
        self.idle = idle
        self.drop, self.path = nn.Dropout(0.5), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if not self.idle:
            return self.head(F.relu(self.norm2(self.two(F.relu(self.norm1(self.one(x))))) + x))
        y = self.drop(F.relu(self.path(self.norm1(self.path(self.one(x))))))
        return self.head(self.path(F.relu(self.path(self.norm2(self.path(self.two(y)))) + x)))


def test_what_does_nothing_changes_nothing() -> None:
    without, within = settled(Idle(False)), Idle(True).eval()
    within.load_state_dict(without.state_dict())
    one, other = (fitted(model, min_saving=0).module.state_dict() for model in (without, within))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class WritesItsInput(nn.Module):
    def __init__(self, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.body = how, plain()

    def forward(self, x: Tensor) -> Tensor:
        self.how(x)
        return self.body(x)


each_way = pytest.mark.parametrize("fit", [{}, {"how": "polish", "seconds": 0.1}], ids=["data", "polish"])


@each_way
@pytest.mark.parametrize("how", [lambda x: x.sub_(0.5), lambda x: x[:, :1].zero_(), lambda x: x.__setitem__(0, 1.0)])
def test_a_network_that_writes_into_its_images_writes_into_others(
    how: Callable[[Tensor], Any], fit: dict[str, Any]
) -> None:
    images = IMAGES.clone()
    model = settled(WritesItsInput(how))
    ghosted = fitted(model, images, fit, min_saving=0)
    assert torch.equal(images, IMAGES)
    found = ghosted.fit
    assert found is not None and found.error < found.unfitted
    told = found.error if found.polished is None else found.polished
    assert told == pytest.approx(missed_by_judges(model, ghosted.module, IMAGES, torch.float32), rel=1e-3)


@each_way
def test_what_a_network_remembers_of_its_runs_is_not_of_the_fit(fit: dict[str, Any]) -> None:
    model = Counting().eval()
    traced, proposal = planned(model, IMAGES[:2], min_saving=0)
    ghosted = rewrite_fitted(traced, proposal, IMAGES, FitSettings(**fit))
    for one in (model, traced.module, ghosted.module):
        assert (one.times, one.last, int(one.calls)) == (0, None, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [True, False])
def test_the_fit_is_the_same_in_either_mode_and_the_mode_stays(mode: bool) -> None:
    torch.manual_seed(0)
    model = settled(residual())
    wanted = fitted(model, **METHODS["plain"]).module.state_dict()
    module = fitted(model.train(mode), **METHODS["plain"]).module
    assert all(part.training == mode for part in module.modules())
    assert all(torch.equal(wanted[name], value) for name, value in module.state_dict().items())


def test_parts_with_norms_of_their_own_are_left_and_what_follows_is_fitted() -> None:
    torch.manual_seed(0)
    ghosted = fitted(settled(residual()), min_saving=0, parts="norm-act", include=("1.body.0.0",))
    targets = {layer.target for layer in ghosted.fit.layers}  # type: ignore[union-attr]
    assert "1.body.0.0" not in targets and "1.body.1" in targets


# -- what is refused -------------------------------------------------------------------------------------------


def assert_refused(reason: str, *args: Any, error: type[Exception] = FitError, **settings: Any) -> None:
    """In one sentence (and, it may be, what to do), and without a trace."""
    with pytest.raises(error, match=reason) as refused:
        rewrite_fitted(*args, **settings)
    message = str(refused.value)
    assert "\n" not in message and message.endswith((".", "?")) and message[0] == message[0].upper()


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.zeros(0, 3, 8, 8), "no calibration images"),
        (torch.zeros(8), "no calibration images"),
        ([1, 2, 3], "no calibration images"),
        (torch.zeros(8, 3, 16, 16), "are 3x16x16 and Sequential was recorded on 3x8x8"),
        (torch.zeros(8, 1, 8, 8), "are 1x8x8 and Sequential was recorded on 3x8x8"),
        (torch.zeros(3, 8, 8), "are 8x8 and"),
    ],
    ids=["none", "flat", "list", "size", "channels", "one"],
)
def test_images_that_do_not_fit_are_refused(images: Any, reason: str) -> None:
    traced, proposal = planned(plain(), IMAGES[:2], min_saving=0)
    assert_refused(reason, traced, proposal, images)


def test_data_without_images_is_refused() -> None:
    traced, proposal = planned(plain(), IMAGES[:2], min_saving=0)
    assert_refused("no calibration images", traced, proposal, None, FitSettings(how="data"))


@pytest.mark.parametrize("method", ["plain", "pointwise"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["1.0.weight", "2.1.running_mean", "2.1.weight"])
def test_a_layer_that_gives_what_is_not_finite_is_named(method: str, value: float, where: str) -> None:
    """The layer itself, or the one before a norm that does."""
    torch.manual_seed(0)
    model = settled(plain())
    with torch.no_grad():
        model.state_dict()[where][0] = value
    traced, proposal = planned(model, IMAGES[:2], **METHODS[method])
    name = where.rpartition(".")[0].replace("2.1", "2.0")
    assert_refused(f"{name} of the original gives values that are not finite", traced, proposal, IMAGES)


def test_images_that_are_not_finite_are_refused() -> None:
    images = IMAGES.clone()
    images[3, 0, 2, 2] = math.nan
    traced, proposal = planned(plain(), IMAGES[:2], min_saving=0)
    assert_refused("not finite", traced, proposal, images)


def test_a_network_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        traced, proposal = planned(plain(), torch.empty(2, 3, 8, 8), min_saving=0)
    assert_refused("Sequential is on the meta device", traced, proposal, IMAGES)


class FromList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.body(images[0])


@pytest.mark.parametrize("form", [lambda x: ([x],), lambda x: {"images": [x]}], ids=["list", "keyword"])
def test_a_network_that_takes_a_tensor_in_something_is_fitted_to_tensors_in_it(form: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    traced, proposal = planned(FromList().eval(), form(IMAGES[:2]), min_saving=0)
    assert_refused("FromList takes other inputs", traced, proposal, IMAGES)
    one, other = (rewrite_fitted(*given) for given in ((traced, proposal, form(IMAGES)), (*_body(traced), IMAGES)))
    assert one.fit and other.fit and one.fit.error == pytest.approx(other.fit.error, rel=1e-6) != one.fit.unfitted


def _body(traced: Traced) -> tuple[Traced, Plan]:
    return planned(traced.module.body, IMAGES[:2], min_saving=0)


class Chooses(nn.Module):
    """Takes another way for other images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(-x if x.mean() > 5 else x)


def test_a_network_that_goes_other_ways_for_other_images_is_refused() -> None:
    images = IMAGES.clone()
    images[7::8] += 10
    traced, proposal = planned(settled(Chooses()), IMAGES[:2], min_saving=0)
    assert_refused("Chooses does on other images something else", traced, proposal, images)


def test_a_plan_is_checked_before_anything_is_done() -> None:
    """One for another network, and one that changes nothing, as ``rewrite`` refuses them."""
    traced, proposal = planned(plain(), IMAGES[:2], min_saving=0)
    other, others = planned(residual(), IMAGES[:2], min_saving=0)
    assert_refused("which Sequential does not have|made for another network", other, proposal, IMAGES, error=PlanError)
    nothing = proposal.model_copy(update={"swaps": ()})
    assert_refused("changes nothing", traced, nothing, IMAGES, error=PlanError)
    assert len(others.swaps) != len(proposal.swaps)


def test_a_layer_may_be_named_by_any_of_its_names() -> None:
    net = NETS["aliased"]
    traced, proposal = planned(net.build(), net.example(), **METHODS["plain"])
    renamed = tuple(
        swap.model_copy(update={"target": "again"}) if swap.target == "body.0" else swap for swap in proposal.swaps
    )
    found = [
        rewrite_fitted(traced, proposal.model_copy(update={"swaps": swaps}), IMAGES)
        for swaps in (proposal.swaps, renamed)
    ]
    states = [ghosted.module.state_dict() for ghosted in found]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_was_not_fitted_is_told() -> None:
    model = settled(nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), head(16)))
    assert not fitted(model, min_saving=0).fit.notes
    notes = fitted(model, min_saving=0, parts="norm-act").fit.notes
    assert any(note.startswith("1.0 keeps the weights") and "norms and activations" in note for note in notes)


def test_as_many_images_are_fitted_to_as_are_asked_for() -> None:
    """Evenly spread; all of them where no number is given, or a larger one."""
    model = settled(plain())
    one = fitted(model, fit={"images": 10}, min_saving=0).fit
    other = fitted(model, IMAGES[0:30:3], min_saving=0).fit
    assert one is not None and other is not None
    assert one.images == other.images
    assert one.error == other.error
    whole = fitted(model, min_saving=0).fit
    more = fitted(model, fit={"images": 100}, min_saving=0).fit
    assert whole is not None and more is not None
    assert whole.images == more.images > one.images
