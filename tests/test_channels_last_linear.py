"""Linear layers on maps whose channels come last, which are 1x1 convolutions: sites of a role of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.flop_counter import FlopCounterMode

from ghostify import Ghosted, compare, convert, load, plan, rewrite, save, scan, trace
from ghostify.channels import Ordering, follow
from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, CGhostLinear, intrinsic_maps
from ghostify.recipe import FitSettings, GhostSettings
from ghostify.scanning import Scan, network_nodes

X = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(1))
TAKEN = GhostSettings(also=("channels-last",), min_saving=0)
MLPS = ["1.mlp.0", "1.mlp.2", "2.mlp.0", "2.mlp.2"]
KEPT = "is a linear layer on maps, kept by default (also: [channels-last] takes it)"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """ConvNeXt's: the channels come last between the depthwise convolution and the layer scale."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.scale = nn.Parameter(torch.full((c, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + self.scale * y.permute(0, 3, 1, 2)


def network(c: int = 12) -> nn.Module:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(c), nn.Linear(c, 5))
    return nn.Sequential(nn.Conv2d(3, c, 2, 2), Block(c), Block(c), pooled)


class OnMaps(nn.Module):
    """One linear layer on the maps of a convolution, the channels last; a norm follows, or it would be the last."""

    def __init__(self, layer: nn.Module, c: int, n: int) -> None:
        super().__init__()
        self.conv, self.layer, self.norm = nn.Conv2d(3, c, 3, padding=1), layer, nn.LayerNorm(n)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(self.conv(x).permute(0, 2, 3, 1)))


def counted(module: nn.Module, x: Tensor) -> Cost:
    """Parameters and MACs by torch, and the elements that convolutions give."""
    made: list[int] = []
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _, args, out: made.append(out.numel()))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    params = sum(p.numel() for p in module.parameters())
    return Cost(params=params, macs=counter.get_total_flops() // 2, acts=sum(made))


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(module).eval()(x)
    return found


def roles(found: Scan) -> dict[str, str]:
    return {site.name: site.role for site in found.sites}


def maps_of_two(c: int, n: int) -> tuple[nn.Linear, Tensor]:
    return nn.Linear(c, n), torch.randn(2, 6, 7, c)


# -- what is a site --------------------------------------------------------------------------------------------


def test_linear_layers_on_maps_are_sites_of_their_own_role() -> None:
    found = scan(network(), X)
    assert [site.name for site in found.sites if site.role == "channels-last"] == MLPS
    site = found.site("1.mlp.0")
    assert site is not None and site.obstacle is None
    assert (site.kind, site.geometry, site.map, site.positions) == ("linear", "12→48 1x1", (12, 12), 2 * 12 * 12)
    assert site.cost == Cost(params=13 * 48, macs=site.positions * 12 * 48)
    assert [row[1] for row in found.table().rows if row[0] in MLPS] == ["channels-last"] * 4
    head = found.site("3.3")
    assert head is not None and (head.role, head.map, head.part) == ("classifier", (1, 1), "linear")


def test_by_default_they_are_left_alone_with_their_reason() -> None:
    proposal = plan(scan(network(), X), min_saving=0)
    assert {skip.target: skip.reason for skip in proposal.skips if skip.target in MLPS} == dict.fromkeys(MLPS, KEPT)
    assert not proposal.swaps
    with pytest.raises(PlanError, match="is a linear layer on maps"):
        proposal.require_changes()


class Views(nn.Module):
    """Linear layers on tokens, on windows cut out of a map, on heads, and on maps and vectors alike."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.tokens, self.windows, self.heads, self.last = (nn.Linear(c, c) for c in (8, 8, 4, 8))
        self.both = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)
        t = self.tokens(y.flatten(1, 2))
        w = self.windows(y.reshape(2, 2, 12, 2, 12, 8).transpose(2, 3).reshape(2, 4, 144, 8))
        h = self.heads(t.unflatten(2, (2, 4)).transpose(1, 2))
        b = self.both(self.both(y).mean((1, 2)))
        return b + self.last(t.mean(1) + w.mean((1, 2)) + h.mean(2).flatten(1))


def test_tokens_windows_and_heads_have_no_neighbours_and_are_none() -> None:
    found = scan(Views(), X)
    assert roles(found) == {"conv": "stem", "last": "classifier", "both": "classifier"}


def test_one_layer_on_maps_and_on_vectors_is_taken_on_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.both, self.norm = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.both(self.both(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2))))

    ghosted = convert(Twice(), X, TAKEN)
    assert [swap.target for swap in ghosted.plan.swaps] == ["both"]
    assert ghosted.plan.after == ghosted.after.cost == counted(ghosted.module, X)


def test_the_first_and_the_last_are_stem_and_classifier_as_convolutions_are() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.last = nn.Linear(3, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.first(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            return self.last(y.permute(0, 2, 3, 1))

    found = scan(Ends(), X)
    assert roles(found) == {"first": "stem", "conv": "body", "last": "classifier"}
    reasons = {skip.target: skip.reason for skip in plan(found, TAKEN).skips}
    assert "the stem is kept" in reasons["first"] and "also: [classifier]" in reasons["last"]
    ghosted = convert(Ends(), X, also=["stem", "classifier"], min_saving=0, s=2)
    assert {swap.target for swap in ghosted.plan.swaps} == {"first", "conv", "last"}
    assert ghosted.plan.after == ghosted.after.cost == counted(ghosted.module, X)


def test_settings_hold_for_them_as_for_any_other() -> None:
    found = scan(network(), X)
    assert plan(found, also=["channels-last"]).skips and not plan(found, also=["channels-last"]).swaps
    few = plan(found, TAKEN, exclude=["2.*"])
    assert [swap.target for swap in few.swaps] == MLPS[:2]
    assert not plan(found, TAKEN, parts="norm-act").swaps
    mixed = plan(found, TAKEN, set={"1.mlp.0": {"s": 4, "cheap": "depthwise 5 + pointwise 3"}})
    found = [(swap.s, str(swap.cheap)) for swap in mixed.swaps]  # type: ignore[union-attr]
    assert found[:2] == [(4, "depthwise 5 + pointwise 3"), (2, "depthwise 3")]


def test_a_network_of_nothing_else_has_something_to_ghost() -> None:
    """Though no convolution; of vectors alone it would have nothing."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    ghosted = convert(model, torch.randn(2, 6, 6, 3), TAKEN)
    assert [swap.target for swap in ghosted.plan.swaps] == ["2"]
    with pytest.raises(PlanError, match="has no convolutions"):
        convert(model, torch.randn(2, 3), TAKEN)


# -- the ghost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("pointwise", ["auto", "full", 2])
def test_on_request_they_become_ghosts(d: int, pointwise: Any) -> None:
    model = network()
    ghosted = convert(model, X, TAKEN, d=d, pointwise=pointwise)
    assert [swap.target for swap in ghosted.plan.swaps] == MLPS
    assert ghosted.plan.before == counted(model, X)
    assert ghosted.plan.after == ghosted.after.cost == counted(ghosted.module, X)
    assert all(type(ghosted.module.get_submodule(name)) is CGhostLinear for name in MLPS)
    assert outputs(ghosted.module, X).shape == outputs(model, X).shape
    ghosted.module.train()(X).square().sum().backward()
    for name in MLPS:
        ghost: Any = ghosted.module.get_submodule(name)
        for parameter in ghost.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert "1.mlp.0" in str(compare(ghosted).by_layer())


@pytest.mark.parametrize("d", [1, 3])
def test_it_is_a_ghost_of_a_convolution_between_two_permutations(d: int) -> None:
    linear, x = maps_of_two(5, 9)
    ghost, conv = CGhostLinear.from_linear(linear, s=3, d=d), nn.Conv2d(5, 9, 1)
    conv.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    other = CGhost.from_conv(conv, s=3, d=d)
    for part in (*ghost.cheap, *other.cheap):
        nn.init.constant_(part.weight, 0.5)
    assert torch.allclose(ghost(x), other(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("pointwise", [0, 2, 4])
def test_what_it_gives_lies_as_a_linear_layers_output_does(pointwise: int) -> None:
    """So it may be viewed; and nothing was copied to make it so."""
    linear, x = maps_of_two(5, 9)
    ghost, seen = CGhostLinear.from_linear(linear, s=2, pointwise=pointwise), []
    ghost.primary.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    y = ghost(x)
    assert y.shape == linear(x).shape and y.is_contiguous() and ghost(x.transpose(1, 2)).is_contiguous()
    assert seen[0][0].data_ptr() == x.data_ptr()
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen[0])


@settings(deadline=None, max_examples=40, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 6), st.integers(2, 11), st.integers(2, 4), st.sampled_from([1, 3]), st.booleans(), st.booleans())
def test_a_layer_whose_filters_repeat_is_reproduced(c: int, n: int, s: int, d: int, bias: bool, folds: bool) -> None:
    """By the library's whole way from trace to rewrite, and it costs what was predicted."""
    s, layer = min(s, n), nn.Linear(c, n, bias=bias)
    m = intrinsic_maps(n, s)
    with torch.no_grad():
        for output in range(m, n):
            layer.weight[output] = layer.weight[output % m] * (1.5 - output)
    model = OnMaps(parametrizations.weight_norm(layer) if folds else layer, c, n)
    ghosted = convert(model, X, TAKEN, s=s, d=d)
    ghost = ghosted.module.get_submodule("layer")
    assert type(ghost) is CGhostLinear and not parametrize.is_parametrized(ghost)
    assert ghosted.plan.after == ghosted.after.cost == counted(ghosted.module, X)
    y = torch.randn(2, 4, 5, c)
    assert torch.allclose(outputs(ghost, y), outputs(layer, y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d", [1, 3])
def test_it_comes_back_from_its_folder_bit_for_bit(tmp_path: Path, d: int) -> None:
    model = network()
    ghosted = convert(model, X, TAKEN, d=d)
    save(ghosted, tmp_path / "run")
    again = load(tmp_path / "run", network(), X)
    assert again.plan == ghosted.plan
    assert torch.equal(outputs(again.module, X), outputs(ghosted.module, X))


def test_a_converted_network_is_not_converted_again() -> None:
    once = convert(network(), X, TAKEN)
    assert not any(site.role == "channels-last" for site in scan(once.module, X).sites)
    with pytest.raises(PlanError, match="changes nothing"):
        convert(once.module, X, TAKEN)


# -- fitting ---------------------------------------------------------------------------------------------------


class Rectified(nn.Module):
    """A block all of whose values have their channels last: what is added is, too, and a rectifier follows."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(F.relu(self.one(self.norm(x)))))


class Rows(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.blocks = nn.Conv2d(3, c, 2, 2), nn.Sequential(Rectified(c), Rectified(c))
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def fitted(model: nn.Module, arrange: Any, **changes: Any) -> Ghosted:
    ghosted = convert(model, X, TAKEN, images=IMAGES, fit=FitSettings(arrange=arrange), **changes)
    assert ghosted.plan.after == ghosted.after.cost == counted(ghosted.module, X)
    return ghosted


@pytest.mark.parametrize("arrange", ["none", "reorder", "select"])
@pytest.mark.parametrize("pointwise", ["auto", "full", 2])
@pytest.mark.parametrize("make", [network, lambda: Rows(12)], ids=["network", "rows"])
def test_they_are_fitted_to_images(make: Any, pointwise: Any, arrange: Any) -> None:
    ghosted = fitted(make(), arrange, pointwise=pointwise)
    assert ghosted.fit is not None and ghosted.fit.error < 0.5 * ghosted.fit.unfitted
    ghosts = {layer.target: layer for layer in ghosted.fit.layers if layer.kind == "ghost"}
    assert {*ghosts} == {swap.target for swap in ghosted.plan.swaps}
    assert all(layer.error <= layer.before * 1.01 for layer in ghosts.values())


@pytest.mark.parametrize("pointwise", ["none", "full"])
def test_a_layer_that_a_ghost_can_be_is_fitted_exactly(pointwise: Any) -> None:
    """Its ghosts are its intrinsic maps, filtered; the fit finds the filters."""
    layer = nn.Linear(6, 8)
    with torch.no_grad():
        layer.weight[4:] = -2 * layer.weight[:4]
    model = OnMaps(layer, 6, 8)
    other = copy.deepcopy(model)
    ghosted = fitted(model, "none", pointwise=pointwise)
    assert torch.allclose(outputs(ghosted.module, X), outputs(other, X), atol=1e-3)


def test_what_shifts_its_maps_is_found_by_the_cheap_filters() -> None:
    """Of a layer that reads every map beside the same map moved by a pixel, half the outputs are the others moved: no
    scale gives them, and filters of 3x3 do."""

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.layer, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 8), nn.LayerNorm(8)
            with torch.no_grad():
                self.layer.weight[:4, 4:] = 0
                self.layer.weight[4:, :4] = 0
                self.layer.weight[4:, 4:] = self.layer.weight[:4, :4]

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).permute(0, 2, 3, 1)
            return self.norm(self.layer(torch.cat([y, F.pad(y, (0, 0, 1, 0))[:, :, :-1]], 3)))

    errors = []
    for d in (1, 3):
        ghosted = fitted(Moved(), "none", d=d, pointwise="none")
        assert ghosted.fit is not None
        errors += [layer.error for layer in ghosted.fit.layers if layer.target == "layer"]
    assert errors[1] < 0.05 < 0.2 < errors[0]


def test_channels_change_places_without_changing_the_network() -> None:
    model = network().eval()
    traced = trace(model, X)
    ordering = Ordering(follow(traced, *network_nodes(traced)))
    found = ordering.roots("1.mlp.0")
    assert found is not None and ordering.movable("1.mlp.0") is not None
    a, b = found[:2].tolist()
    moved = ordering.permuted({a: b, b: a})
    assert torch.allclose(outputs(moved, X), outputs(model, X), atol=1e-5)
    assert torch.equal(moved.get_submodule("1.mlp.0").weight[:2], model.get_submodule("1.mlp.0").weight[:2].flip(0))  # type: ignore[index]


# -- whole networks --------------------------------------------------------------------------------------------


def on_meta(name: str) -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return torchvision.models.get_model(name).eval(), torch.empty(1, 3, 224, 224)


def test_convnext_costs_little_more_than_half() -> None:
    model, x = on_meta("convnext_tiny")
    traced = trace(model, x)
    found = scan(traced)
    default, taken = plan(found), plan(found, also=["channels-last"])
    assert {swap.target for swap in taken.swaps} > {swap.target for swap in default.swaps}
    ghosted = rewrite(traced, taken)
    assert ghosted.after.cost == taken.after
    assert found.cost.macs / ghosted.after.cost.macs > 1.5


def test_of_swin_only_skips_are_added_to_the_default_plan() -> None:
    model, x = on_meta("swin_t")
    proposal = plan(scan(model, x))
    assert not proposal.swaps and proposal.before == proposal.after
    others = {skip.target: skip.reason for skip in proposal.skips if skip.reason != KEPT}
    attention = {name for name, _ in model.named_modules() if name.endswith(("attn.qkv", "attn.proj"))}
    assert others.keys() == {"features.0.0", "head"} | attention
    assert all("on tokens" in others[name] for name in attention)
