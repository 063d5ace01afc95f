"""Fitting convolutions as they come: of one to three dimensions, and of classes with a forward of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fitting import EXACT, fitted, ghosts, missed, outputs, parted, planned, settled
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from zoo import CoveringConv, StandardConv

from ghostify import Ghosted, convert, rewrite
from ghostify.errors import FitError
from ghostify.fitting import rewrite_fitted
from ghostify.fitting.kinds.least_squares import times, weight_of
from ghostify.ghosts.narrowing import PLAIN
from ghostify.leastsquares.own_forwards import call_of, settable
from ghostify.leastsquares.sampling import Positions, padded

SIZES: dict[int, tuple[int, ...]] = {1: (24,), 2: (8, 8), 3: (5, 6, 6)}
"""Of images, by their dimensions."""
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
each_dimension = pytest.mark.parametrize("dimensions", [1, 3])


def images(dimensions: int, seed: int = 0) -> Tensor:
    """Thirty-two that are smooth, as real ones are."""
    x = torch.randn(32, 3, *SIZES[dimensions], generator=torch.Generator().manual_seed(seed))
    return x + sum(x.roll(1, axis) for axis in range(2, x.dim()))


# -- the parts: what is read at positions ----------------------------------------------------------------------


class Halved(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight / 2, bias)


class Doubled(nn.Conv2d):
    """It prepares its input, and not by padding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


class Striding(nn.Conv2d):
    """By other steps than it says."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, stride=2)


class Shifted(nn.Conv2d):
    """With a bias besides its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, torch.ones(self.out_channels))


READERS: dict[str, Any] = {
    "1": lambda: nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2),
    "1, uneven": lambda: nn.Conv1d(4, 6, 2, padding="same", dilation=3, padding_mode="reflect"),
    "3": lambda: nn.Conv3d(4, 6, (3, 1, 3), padding=(1, 0, 1), stride=(1, 2, 2)),
    "3, circular": lambda: nn.Conv3d(4, 6, 2, padding=1, padding_mode="circular", dilation=(1, 2, 1)),
    "covering": lambda: CoveringConv(4, 6, 3, stride=2),
    "covering, padded": lambda: CoveringConv(4, 6, 3, stride=2, padding=(1, 2), groups=2),
    "doubled": lambda: Doubled(4, 6, 3, padding=1, padding_mode="replicate"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_patches_times_filters_are_what_a_convolution_gives(name: str) -> None:
    torch.manual_seed(0)
    conv = READERS[name]()
    x = torch.randn(3, 4, *{3: (11,), 4: (9, 8), 5: (7, 6, 5)}[conv.weight.dim()])
    y = conv(x)
    assert settable(conv).filters
    positions = Positions(y.shape, 30, 1, seed=0, channels=1)
    found = times(weight_of(conv), positions.patches(x, conv, 0)).flatten(1) + conv.bias
    assert torch.allclose(found, positions.values(y, 0).double(), atol=1e-5)


@each_dimension
@pytest.mark.parametrize("d", [1, 3])
def test_shifts_are_what_depthwise_filters_of_one_tap_give(dimensions: int, d: int) -> None:
    y = torch.randn(2, 4, *SIZES[dimensions])
    taps = torch.eye(d**dimensions).reshape(-1, 1, *[d] * dimensions).repeat(4, *[1] * (dimensions + 1))
    convolve = getattr(F, f"conv{dimensions}d")
    expected = convolve(y, taps, padding=d // 2, groups=4).unflatten(1, (4, -1)).flatten(3)
    positions = Positions(y.shape, 20, 1, seed=0, channels=1)
    expected = expected[..., positions.chosen[0]].permute(0, 3, 1, 2).flatten(0, 1)
    assert torch.equal(positions.shifts(y, d, 0), expected)


def test_what_a_convolution_pads_with_is_part_of_what_it_reads() -> None:
    conv, x = CoveringConv(2, 3, 3, padding=1), torch.randn(1, 2, 5, 5)
    assert torch.equal(F.conv2d(padded(x, conv), conv.weight, conv.bias), conv(x))
    assert call_of(conv, x).padding == [1, 1]


@pytest.mark.parametrize(
    ("conv", "filters", "bias"),
    [
        (nn.Conv3d(2, 4, 3), True, True),
        (CoveringConv(2, 4, 3), True, True),
        (CoveringConv(2, 4, 3, bias=False), True, True),
        (Doubled(2, 4, 3), True, True),
        (StandardConv(2, 4, 3), False, True),
        (Halved(2, 4, 3), False, True),
        (parametrizations.weight_norm(CoveringConv(2, 4, 3)), False, True),
        (Striding(2, 4, 3), False, True),
        (Shifted(2, 4, 3), False, False),
        (Shifted(2, 4, 3, bias=False), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_only_what_is_used_as_it_stands_can_be_set(conv: nn.Module, filters: bool, bias: bool) -> None:
    before = copy.deepcopy(conv.state_dict())
    assert settable(conv) == (filters, bias)
    assert all(torch.equal(before[key], value) for key, value in conv.state_dict().items())


# -- networks that ghosts can be -------------------------------------------------------------------------------


def of_pixels(conv: Any, order: Sequence[int] | None = None) -> Any:
    """Half of its maps, group by group, are filters of the other half, which are of pixels; in that ``order``.

    The filters of pixels add up to zero, so that a standardised weight can be them.
    """
    groups, kernel = conv.groups, conv.weight.shape[2:]
    half, c, area = conv.out_channels // groups // 2, conv.weight.shape[1], kernel.numel()
    filters = []
    for _ in range(groups):
        pixels = torch.randn(half, c)
        pixels = (pixels - pixels.mean(1, keepdim=True))[:, :, None]
        taps = torch.randn(half, 1, area) / area**0.5
        filters += [pixels * (torch.arange(area) == area // 2), pixels * taps]
    return with_filters(conv, torch.cat(filters), order)


def of_mixtures(conv: Any) -> Any:
    """Half of its maps are mixtures of the others."""
    half, size = conv.out_channels // 2, conv.weight[0].numel()
    filters = torch.randn(half, size) / size**0.5
    filters = filters - filters.mean(1, keepdim=True)
    return with_filters(conv, torch.cat([filters, torch.randn(half, half) @ filters / half**0.5]))


def with_filters(conv: Any, filters: Tensor, order: Sequence[int] | None = None) -> Any:
    """That convolves with these filters (n, …)."""
    filters = filters.reshape(conv.weight.shape)
    filters = filters if order is None else filters[list(order)]
    with torch.no_grad():
        conv.weight.copy_(filters)
        if conv.bias is not None:
            conv.bias.zero_()  # a map that is padded with zeros is a filter of another only without
        if hasattr(conv, "gain"):
            conv.gain.copy_(filters.flatten(1).std(1, correction=0).reshape(conv.gain.shape) + 1e-5)
    return conv


def between(conv: Any, dimensions: int = 2, norm: bool = True) -> nn.Module:
    """A network with that convolution between others, which are kept."""
    plain: Any = PLAIN[dimensions]
    after = [NORMS[dimensions](conv.out_channels)] if norm else []
    first = plain(3, conv.in_channels, 3, padding=1), NORMS[dimensions](conv.in_channels), nn.ReLU()
    last = POOLS[dimensions](1), nn.Flatten(), nn.Linear(conv.out_channels, 4)
    return settled(nn.Sequential(*first, conv, *after, nn.ReLU(), *last), images(dimensions))


ONE = {"min_saving": 0, "exclude": ("0",)}


def one_ghost(model: nn.Module, dimensions: int = 2, fit: dict[str, Any] | None = None, **settings: Any) -> Ghosted:
    ghosted = fitted(model, images(dimensions), fit, **ONE, **settings)
    assert list(ghosts(ghosted.module)) == ["3"]
    assert "3" in [layer.target for layer in ghosted.fit.layers]  # type: ignore[union-attr]
    return ghosted


def relative_error(model: nn.Module, other: nn.Module, dimensions: int = 2) -> float:
    """Largest difference of outputs for images that were not fitted to."""
    (wanted,), (found,) = (outputs(one, images(dimensions, seed=9)) for one in (model, other))
    return float((found - wanted).abs().max() / wanted.abs().max())


def assert_recovered(model: nn.Module, ghosted: Ghosted, dimensions: int = 2) -> None:
    """Exactly, in a network that was far from it unfitted; nothing of it is said."""
    assert relative_error(model, ghosted.module, dimensions) < EXACT
    found = ghosted.fit
    assert found is not None and found.error < 1e-9 < 1e-3 < found.unfitted and not found.notes


@each_dimension
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_plain_ghosts_of_any_dimension_are_recovered(dimensions: int, norm: bool, groups: int) -> None:
    torch.manual_seed(0)
    conv = PLAIN[dimensions](8, 12, 3, padding=1, groups=groups, bias=not norm)
    model = between(of_pixels(conv), dimensions, norm)
    assert_recovered(model, one_ghost(model, dimensions, {"arrange": "none"}, pointwise="none"), dimensions)


@each_dimension
@pytest.mark.parametrize("joint", [True, False])
def test_pointwise_ghosts_of_any_dimension_are_recovered(dimensions: int, joint: bool) -> None:
    torch.manual_seed(0)
    model = between(of_mixtures(PLAIN[dimensions](8, 12, 3, padding=1, bias=False)), dimensions)
    fit = {"joint": joint, "arrange": "none"}
    assert_recovered(model, one_ghost(model, dimensions, fit, pointwise="full"), dimensions)


@each_dimension
@pytest.mark.parametrize("arrange", ["reorder", "select"])
def test_hidden_ghosts_of_any_dimension_are_found(dimensions: int, arrange: str) -> None:
    """By reordering alone: no channel is gathered at run time."""
    torch.manual_seed(0)
    conv = PLAIN[dimensions](8, 12, 3, padding=1, bias=False)
    model = between(of_pixels(conv, torch.randperm(12).tolist()), dimensions)
    hidden = one_ghost(model, dimensions, {"arrange": "none"}, pointwise="none")
    assert relative_error(model, hidden.module, dimensions) > 0.01
    found = one_ghost(model, dimensions, {"arrange": arrange}, pointwise="none")
    assert_recovered(model, found, dimensions)
    assert ghosts(found.module)["3"].order is None


OWN: dict[str, Callable[..., nn.Module]] = {"padding": CoveringConv, "standard": StandardConv, "weight": Halved}


def said_of_own_filters(ghosted: Ghosted) -> bool:
    """Whether the fit says that primary filters stayed as they were."""
    return any("3 keeps its primary filters, because a Halved" in note for note in ghosted.fit.notes)  # type: ignore[union-attr]


def own(name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    return OWN[name](8, 12, 3, **({} if name == "padding" else {"padding": 1}), **fields)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", OWN)
def test_cheap_operations_on_a_class_of_its_own_are_recovered(name: str, groups: int, norm: bool) -> None:
    """The primary filters carried over are right, and stay where they cannot be set."""
    model = between(of_pixels(own(name, groups=groups, bias=not norm)), norm=norm)
    ghosted = one_ghost(model, fit={"arrange": "none"}, pointwise="none")
    assert relative_error(model, ghosted.module) < 10 * EXACT
    assert said_of_own_filters(ghosted) == (name == "weight")
    if name == "weight":
        carried = rewrite(*planned(model, images(2)[:2], **ONE, pointwise="none")).module.get_submodule("3.primary")
        primary: Any = ghosts(ghosted.module)["3"].primary
        assert torch.equal(primary.weight, carried.weight)


@pytest.mark.parametrize("name", OWN)
def test_mixtures_of_maps_of_a_class_of_its_own_are_recovered(name: str) -> None:
    model = between(of_mixtures(own(name, bias=False)))
    ghosted = one_ghost(model, fit={"arrange": "none"}, pointwise="full")
    assert relative_error(model, ghosted.module) < 10 * EXACT
    assert said_of_own_filters(ghosted) == (name == "weight")


@pytest.mark.parametrize("name", OWN)
def test_hidden_ghosts_of_a_class_of_its_own_are_found(name: str) -> None:
    """Its maps are compared, too; where its filters cannot be reordered, it selects."""
    model = between(of_pixels(own(name, bias=False), torch.randperm(12).tolist()))
    hidden = one_ghost(model, fit={"arrange": "none"}, pointwise="none")
    assert relative_error(model, hidden.module) > 0.01
    found = one_ghost(model, pointwise="none")
    assert relative_error(model, found.module) < 10 * EXACT
    assert found.plan.swaps[0].ordered == (name != "padding")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", OWN)
def test_filters_that_can_be_set_need_no_order_before_a_full_pointwise_convolution(name: str) -> None:
    """Those that cannot are chosen among."""
    model = between(own(name))
    ghosted = one_ghost(model, pointwise="full")
    assert ghosted.plan.swaps[0].ordered == (name == "weight")  # type: ignore[union-attr]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pointwise", ["none", "full", 1])
def test_filters_that_stay_give_the_right_means(bias: bool, pointwise: Any) -> None:
    """Of maps the module cannot make, and behind others that are wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(Halved(12, 8, 3, padding=1), nn.ReLU()),
        *(Halved(8, 12, 3, padding=1, bias=bias), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
    )
    model = settled(model, images(2))
    ghosted = fitted(model, images(2), {"arrange": "none", "rectified": False}, pointwise=pointwise, **ONE)
    assert list(ghosts(ghosted.module)) == ["3", "5"]
    with torch.no_grad():
        wanted, found = (copy.deepcopy(one).eval()[:7](parted(images(2))[0]) for one in (model, ghosted.module))
    assert (found - wanted).abs().mean() > 0.05
    assert torch.allclose(found.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-5)


# -- any network -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block; ``norm`` is nothing in a network without norms."""

    def __init__(self, make: Callable[[int, int], nn.Module], norm: Callable[[int], nn.Module], c: int) -> None:
        super().__init__()
        self.one, self.two = nn.Sequential(make(c, c), norm(c)), nn.Sequential(make(c, c), norm(c))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(F.relu(self.one(x))))


def network(make: Callable[[int, int], nn.Module], norm: Callable[[int], nn.Module], dimensions: int = 2) -> nn.Module:
    torch.manual_seed(0)
    stem, head = (make(3, 16), norm(16), nn.ReLU()), (POOLS[dimensions](1), nn.Flatten(), nn.Linear(16, 4))
    return settled(nn.Sequential(*stem, *(Block(make, norm, 16) for _ in range(2)), *head), images(dimensions))


def grouped_norm(c: int) -> nn.Module:
    return nn.GroupNorm(4, c)


def nothing(c: int) -> nn.Module:
    return nn.Identity()


def timms(name: str) -> Callable[[int, int], nn.Module]:
    layers = pytest.importorskip("timm.layers")
    padding = {} if "Same" in name else {"padding": 1}
    return lambda c, n: getattr(layers, name)(c, n, 3, **padding)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "1": lambda: (network(lambda c, n: nn.Conv1d(c, n, 5, padding=2), NORMS[1], 1), 1),
    "1, grouped": lambda: (network(lambda c, n: nn.Conv1d(c, n, 5, padding=2, groups=c // 8 or 1), NORMS[1], 1), 1),
    "3": lambda: (network(lambda c, n: nn.Conv3d(c, n, 3, padding=1), NORMS[3], 3), 3),
    "3, grouped": lambda: (network(lambda c, n: nn.Conv3d(c, n, 3, padding=1, groups=c // 8 or 1), NORMS[3], 3), 3),
    "ours": lambda: (network(lambda c, n: StandardConv(c, n, 3, padding=1, groups=c // 8 or 1), nothing), 2),
}
TIMMS: dict[str, Callable[[int], nn.Module]] = {
    "StdConv2d": grouped_norm,
    "StdConv2dSame": grouped_norm,
    "ScaledStdConv2d": nothing,
    "ScaledStdConv2dSame": nothing,
    "Conv2dSame": nn.BatchNorm2d,
}


@pytest.mark.parametrize("pointwise", ["none", "full"])
@pytest.mark.parametrize("name", [*NETWORKS, *TIMMS])
def test_every_kind_is_fitted_and_does_better_on_other_images(name: str, pointwise: str) -> None:
    model, dimensions = NETWORKS[name]() if name in NETWORKS else (network(timms(name), TIMMS[name]), 2)
    settings = {"min_saving": 0, "pointwise": "none" if "grouped" in name or name == "ours" else pointwise}
    ghosted = fitted(model, images(dimensions), **settings)
    found = ghosted.fit
    assert found is not None and len(ghosts(ghosted.module)) == 4
    assert ghosts(ghosted.module).keys() <= {layer.target for layer in found.layers}
    assert not any("carried over" in note for note in found.notes)
    assert sum(layer.error for layer in found.layers) < sum(layer.before for layer in found.layers)
    unfitted = rewrite(*planned(model, images(dimensions)[:2], **settings)).module
    other = [images(dimensions, seed=5)]
    carried, after = (missed(model, one, other, torch.float32) for one in (unfitted, ghosted.module))
    assert after < 0.7 * carried


@each_dimension
def test_what_follows_a_ghost_is_fitted_in_any_dimension(dimensions: int) -> None:
    """A convolution that is kept, and has no norm."""
    torch.manual_seed(0)
    plain: Any = PLAIN[dimensions]
    layers = plain(3, 8, 3, padding=1), nn.ReLU(), plain(8, 12, 3), nn.ReLU(), plain(12, 8, 2, stride=2)
    model = nn.Sequential(*layers, POOLS[dimensions](1), nn.Flatten(), nn.Linear(8, 4)).eval()
    many = torch.cat([images(dimensions, seed) for seed in range(12)])  # more positions than a filter has unknowns
    ghosted = fitted(model, many, min_saving=0, include=("0", "2"))
    (kept,) = (layer for layer in ghosted.fit.layers if layer.target == "4")  # type: ignore[union-attr]
    assert kept.kind == "layer" and kept.error < kept.before


@each_dimension
def test_noise_stands_in_for_images_of_any_dimension(dimensions: int) -> None:
    model = NETWORKS[str(dimensions)]()[0]
    ghosted = convert(model, images(dimensions)[:2], fit={"how": "weights", "images": 32}, min_saving=0)
    assert ghosted.fit is not None and ghosted.fit.error < ghosted.fit.unfitted


class Single(nn.Module):
    """Runs two convolutions over its first image, without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)).repeat(1, 3)[:, :8] + self.body(x[0]).mean((1, 2)))


@pytest.mark.parametrize("pointwise", ["none", "full"])
def test_what_is_given_an_image_without_a_batch_is_left(pointwise: str) -> None:
    torch.manual_seed(0)
    ghosted = fitted(Single().eval(), images(2), min_saving=0, pointwise=pointwise)
    assert any("body.2 keeps the weights" in note and "without a batch" in note for note in ghosted.fit.notes)  # type: ignore[union-attr]


def test_images_of_another_dimension_are_refused() -> None:
    model = NETWORKS["3"]()[0]
    traced, proposal = planned(model, images(3)[:2], min_saving=0)
    with pytest.raises(FitError, match=r"are 3x8x8 and Sequential was recorded on 3x5x6x6; give images of that size\."):
        rewrite_fitted(traced, proposal, images(2))
    with pytest.raises(FitError, match=r"no calibration images: a tensor of N x 3 x 5 x 6 x 6 is needed, or fit none"):
        rewrite_fitted(traced, proposal, torch.zeros(0, 3, 5, 6, 6))


@pytest.mark.parametrize("name", ["1", "3", "ours"])
def test_what_is_no_ghost_and_reads_what_it_read_stays(name: str) -> None:
    """Where only the last block changes, what runs before keeps its weights to the bit."""
    model, dimensions = NETWORKS[name]()
    ghosted = fitted(model, images(dimensions), min_saving=0, include=("4.two.*",))
    assert list(ghosts(ghosted.module)) == ["4.two.0"]
    before, after = model.state_dict(), ghosted.module.state_dict()
    same = [key for key in before if not key.startswith(("4.two", "7"))]
    assert same and all(torch.equal(before[key], after[key]) for key in same)


# -- what is too large, or not real ----------------------------------------------------------------------------


def of_wide_filters() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 4, 5, padding=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 64, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("pointwise", ["none", "full"])
def test_filters_of_any_width_are_fitted(monkeypatch: pytest.MonkeyPatch, pointwise: Any) -> None:
    """Where there are too many unknowns, filters and rows of linear layers are combinations of known ones."""
    monkeypatch.setattr("ghostify.fitting.kinds.features.FULL", 20)
    model, x = of_wide_filters(), torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x + x.roll(1, 2) + x.roll(1, 3)
    settings = {"also": ["stem"], "min_saving": 0, "pointwise": pointwise}
    carried, found = (convert(model, x[:1], settings, images=images) for images in (None, x))
    made, kept = (dict(ghosted.module.named_modules()) for ghosted in (found, carried))
    for name in ("2.primary", "6"):
        assert not torch.equal(made[name].weight, kept[name].weight), name
    assert found.fit is not None and found.fit.error < 0.8 * found.fit.unfitted
    assert {layer.target for layer in found.fit.layers} == {"0", "2", "6"}


class Spectral(nn.Module):
    """A ghost's maps go on through complex layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.mix = nn.Conv2d(16, 4, 1, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.body(self.first(x).relu()).to(torch.complex64)).abs().mean((2, 3))


def test_complex_layers_after_a_ghost_stay() -> None:
    torch.manual_seed(0)
    model, x = Spectral(), images(2)
    found = convert(model, x[:1], min_saving=0, images=x)
    assert torch.equal(found.module.mix.weight, model.mix.weight)
    assert [layer.target for layer in found.fit.layers] == ["body"] if found.fit else False


# -- weights made by hooks, and layers within autocast ---------------------------------------------------------


def held_by(prepare: Callable[[nn.Module], Any]) -> nn.Module:
    """A ghost-to-be in front of a convolution and a linear layer that ``prepare`` gives a hook."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
    model = nn.Sequential(body, nn.Conv2d(16, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    for layer in (model[1], model[5]):
        prepare(layer)
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("method", ["c-ghost", "both"])
@pytest.mark.parametrize(
    "prepare",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)],
    ids=["weight norm", "spectral norm", "pruned"],
)
def test_layers_that_a_hook_gives_their_weights_stay_as_they_are(prepare: Any, method: str) -> None:
    torch.manual_seed(0)
    model = held_by(prepare).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ghosted = convert(model, images(2)[:2], method=method, min_saving=0, images=images(2))
    after = ghosted.module.state_dict()
    assert [swap.target for swap in ghosted.plan.swaps] == ["0.2"] and ghosted.fit is not None
    assert ghosted.fit.error is not None and ghosted.fit.unfitted is not None
    assert ghosted.fit.error < ghosted.fit.unfitted
    held = [name for name in before if name.startswith(("1.weight", "5.weight"))]
    assert held and all(torch.equal(before[name], after[name]) for name in held)


class InAutocast(nn.Module):
    """A network that computes in bfloat16 by itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = self.inner(x)
        return y.float()


@pytest.mark.parametrize("pointwise", ["none", "full", 2])
def test_a_network_with_autocast_of_its_own_is_fitted(pointwise: Any) -> None:
    """About as well as the same one without: what a layer reads there has fewer bits than its weights."""
    torch.manual_seed(0)
    inner = network(partial(nn.Conv2d, kernel_size=3, padding=1), nn.BatchNorm2d)
    settings = {"pointwise": pointwise, "min_saving": 0}
    errors = [
        fit.error
        for model in (inner, InAutocast(inner))
        if (fit := convert(model.eval(), images(2)[:2], settings, images=images(2)).fit)
    ]
    assert None not in errors and errors[1] == pytest.approx(errors[0], rel=0.2, abs=0.02)


class Underived(nn.Module):
    """An operation that torch has no derivative of."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.heaviside(x, torch.zeros_like(x))


def test_a_network_without_derivatives_is_fitted_without_them() -> None:
    """They only say which errors matter most; then norms say it alone."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), Underived(), nn.Conv2d(24, 8, 1)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    found = convert(model, images(2)[:2], images=images(2), min_saving=0, cheap="pointwise").fit
    assert found is not None and found.error < found.unfitted  # type: ignore[operator]


@pytest.mark.parametrize("where", [2, 4])
def test_a_layer_whose_bias_is_pruned_stays_as_it_is(where: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()
    prune.l1_unstructured(model[where], "bias", 0.5)
    x = torch.randn(64, 3, 8, 8)
    made = convert(model, x[:1], images=x, also=["stem"], min_saving=0)
    before, after = model[where].state_dict(), made.module.get_submodule(str(where)).state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_norm_that_is_pruned_does_not_undo_the_fit(which: str) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16)
    nn.init.normal_(norm.bias)
    layers = [nn.Conv2d(3, 16, 3, padding=1), prune.l1_unstructured(norm, which, 0.3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    images = torch.randn(64, 3, 8, 8)
    made = convert(model, images[:1], images=images, also=["stem"], min_saving=0)
    assert made.fit is not None and made.fit.error is not None and made.fit.unfitted is not None
    assert made.fit.error < 0.5 * made.fit.unfitted
    assert not made.fit.notes
