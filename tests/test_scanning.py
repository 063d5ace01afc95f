"""The scan: which sites there are, what part they play, and what stands in the way of each."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo import Aliased, Counting, Functional, SharedHead, StandardConv, Tied, conv_bn, head, mobile, squeeze

from ghostify import convert, scan, trace
from ghostify.costs import Cost
from ghostify.scanning import Scan, Site

X = torch.randn(2, 3, 8, 8)


def site_of(model: nn.Module, name: str, example: Any = X) -> Site:
    site = scan(model, example).site(name)
    assert site is not None
    return site


def roles(found: Scan) -> dict[str, str]:
    return {site.name: site.role for site in found.sites}


def obstacle(middle: nn.Module) -> str | None:
    """What is said of a layer of 8 maps in the middle of a plain network."""
    return site_of(nn.Sequential(conv_bn(3, 8), middle, conv_bn(8, 8), head(8)), "1").obstacle


# -- sites -----------------------------------------------------------------------------------------------------


def test_a_site_says_where_and_what_the_convolution_is() -> None:
    model = nn.Sequential(conv_bn(3, 8), nn.Conv2d(8, 12, (3, 5), (2, 1), (1, 2), groups=4))
    site = site_of(model, "1")
    assert (site.kind, site.in_channels, site.out_channels, site.kernel, site.stride) == ("conv", 8, 12, (3, 5), (2, 1))
    assert (site.groups, site.bias, site.calls, site.positions, site.map) == (4, True, 1, 2 * 4 * 8, (4, 8))
    assert site.fan_in == 8 // 4 * 15
    assert site.cost == Cost(params=12 * 30 + 12, macs=64 * 12 * 30, acts=64 * 12)
    assert site.geometry == "8→12 3x5 /2x1 g4"
    assert site.obstacle is None


@pytest.mark.parametrize(
    ("conv", "text"),
    [
        (nn.Conv2d(3, 64, 3), "3→64 3x3"),
        (nn.Conv2d(3, 8, 7, 2), "3→8 7x7 /2"),
        (nn.Conv2d(3, 6, 1, groups=3), "3→6 1x1 g3"),
    ],
)
def test_geometry_is_written_as_people_write_it(conv: nn.Module, text: str) -> None:
    assert site_of(nn.Sequential(conv), "0").geometry == text


def test_geometry_differs_wherever_the_convolution_does() -> None:
    """It is what tells a plan made for another model."""
    convs = [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(4, 8, 3, groups=2)]
    convs += [nn.Conv2d(4, 9, 3), nn.Conv2d(4, 8, (3, 1)), nn.Conv2d(4, 8, 3, (1, 2))]
    assert len({site_of(nn.Sequential(conv), "0", torch.zeros(1, 4, 8, 8)).geometry for conv in convs}) == len(convs)


def test_a_shared_convolution_is_one_site_with_all_its_calls() -> None:
    site = site_of(SharedHead(), "shared")
    assert (site.calls, site.positions) == (2, 2 * (64 + 16))
    assert site.cost == Cost(params=8 * 72 + 8, macs=160 * 8 * 72, acts=160 * 8)


def test_an_alias_is_one_site_found_by_both_names() -> None:
    found = scan(Aliased(), X)
    site = found.site("body.0")
    assert site is not None
    assert site is found.site("again")
    assert (site.name, site.aliases, site.calls) == ("body.0", ("again",), 2)
    assert found.site("nothing") is None


def test_sites_come_in_the_order_of_the_modules() -> None:
    assert [site.name for site in scan(Counting(), X).sites] == ["stem.0", "conv.0", "head.2"]


def test_a_functional_convolution_is_a_site_with_its_own_cost() -> None:
    found = scan(Functional(), torch.randn(1, 3, 8, 8))
    own, blur = (site for site in found.sites if site.kind == "functional")
    assert (own.in_channels, own.out_channels, own.kernel, own.groups) == (8, 8, (3, 3), 1)
    assert own.cost == Cost(macs=64 * 8 * 72, acts=64 * 8)
    assert (blur.groups, blur.cost.macs, blur.map) == (8, 9 * 8 * 9, (3, 3))


def test_linear_layers_are_sites_on_vectors_only() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.conv(x).flatten(2).transpose(1, 2)).mean(1))

    assert [(site.name, site.kind) for site in scan(Tokens(), X).sites] == [("conv", "conv"), ("head", "linear")]


# -- roles -----------------------------------------------------------------------------------------------------


def test_the_parts_that_layers_play() -> None:
    found = roles(scan(mobile(), X))
    assert found["0.0"] == "stem"
    assert found["1.expand.0"] == "body"
    assert found["1.depthwise.0"] == found["2.depthwise.0"] == "depthwise"
    assert found["1.gate.reduce"] == found["1.gate.expand"] == "pooled"
    assert found["1.project.0"] == "body"
    assert found["3.2"] == "classifier"


def test_a_convolution_may_be_the_classifier() -> None:
    found = roles(scan(squeeze(), torch.randn(2, 3, 12, 12)))
    assert found["4.1"] == "classifier"
    assert found["2.squeeze"] == "body"


@pytest.mark.parametrize(
    ("name", "stem", "classifiers"),
    [
        ("resnet18", "conv1", ["fc"]),
        ("vgg11", "features.0", ["classifier.0", "classifier.3", "classifier.6"]),
        ("squeezenet1_1", "features.0", ["classifier.1"]),
        ("mobilenet_v3_small", "features.0.0", ["classifier.0", "classifier.3"]),
        ("densenet121", "features.conv0", ["classifier"]),
    ],
)
def test_stem_and_classifier_of_real_networks(name: str, stem: str, classifiers: list[str]) -> None:
    """Linear layers of a head all count as classifier."""
    with torch.device("meta"):
        model, example = torchvision.models.get_model(name), torch.zeros(1, 3, 32, 32)
    found = roles(scan(model, example))
    assert [layer for layer, role in found.items() if role == "stem"] == [stem]
    assert [layer for layer, role in found.items() if role == "classifier"] == classifiers


def test_every_input_has_its_stem_and_every_output_its_classifier() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.body = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 8, 1)
            self.mask, self.box = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            z = F.relu(self.body(torch.cat([self.left(x), self.right(y)], 1)))
            return self.mask(z).sigmoid(), self.box(z)

    found = roles(scan(Two(), (X, X)))
    assert found == {"left": "stem", "right": "stem", "body": "body", "mask": "classifier", "box": "classifier"}


# -- obstacles -------------------------------------------------------------------------------------------------


def hooked(register: str) -> nn.Module:
    conv = nn.Conv2d(8, 8, 1)
    getattr(conv, register)(lambda *_: None)
    return conv


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight / 2, bias)


class Same(nn.Conv2d):
    """Nothing changed."""


class Flattened(nn.Conv2d):
    """A weight that is prepared as a matrix."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.normalize(self.weight.reshape(1, len(self.weight), -1), dim=2)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def test_a_prepared_weight_is_no_pooled_map() -> None:
    """Though it becomes 1x1 on its way."""
    site = site_of(nn.Sequential(conv_bn(3, 8), Flattened(8, 8, 1), conv_bn(8, 8), head(8)), "1")
    assert (site.role, site.obstacle) == ("body", None)


def test_a_gate_of_a_signal_or_a_clip_is_pooled_too() -> None:
    class Gated(nn.Module):
        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.stem, self.gate, self.out = kind(3, 8, 3), kind(8, 8, 1), kind(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.out(y * self.gate(y.mean([*range(2, y.dim())], keepdim=True)))

    for kind, dims in ((nn.Conv1d, 1), (nn.Conv3d, 3)):
        assert roles(scan(Gated(kind), torch.randn(1, 3, *[6] * dims)))["gate"] == "pooled"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.ConvTranspose2d(8, 8, 1), "is a ConvTranspose2d"),
        (StandardConv(8, 8, 1), None),
        (OwnConvForward(8, 8, 1), None),
        (parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), None),
        (parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)), None),
        (hooked("register_forward_hook"), "carries hooks"),
        (hooked("register_forward_pre_hook"), "carries hooks"),
        (hooked("register_full_backward_hook"), "carries hooks"),
        (hooked("register_full_backward_pre_hook"), "carries hooks"),
        (hooked("register_state_dict_pre_hook"), None),
        (nn.Conv2d(8, 8, 1), None),
        (Same(8, 8, 1), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_stands_in_the_way_is_said(layer: nn.Module, words: str | None) -> None:
    said = obstacle(layer)
    assert said is None if words is None else said is not None and words in said


def test_a_parametrisation_of_the_old_kind_is_seen_too() -> None:
    with pytest.warns(FutureWarning):
        conv = nn.utils.weight_norm(nn.Conv2d(8, 8, 1))
    assert "by a hook" in str(obstacle(conv)) and "parametrizations in its place" in str(obstacle(conv))


@pytest.mark.parametrize(("layer", "kind"), [(nn.Conv1d(3, 4, 1), "conv1d"), (nn.Conv3d(3, 4, 1), "conv3d")])
def test_one_and_three_dimensions_stand_in_no_way(layer: Any, kind: str) -> None:
    site = site_of(nn.Sequential(layer), "0", torch.randn(1, 3, *[4] * len(layer.kernel_size)))
    assert (site.kind, site.map, site.obstacle) == (kind, (4,) * len(layer.kernel_size), None)


def test_a_layer_that_did_not_run_is_left_alone() -> None:
    class Auxiliary(Counting):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (self.auxiliary(self.last).mean() if self.training else 0)

    site = site_of(Auxiliary(), "auxiliary")
    assert (site.calls, site.cost.macs, site.cost.params) == (0, 0, 36)
    assert site.obstacle is not None and "did not run" in site.obstacle


def test_tied_weights_name_each_other() -> None:
    found = scan(Tied(), X)
    assert "'two'" in str(found.site("one")) and "a tie" in str(found.site("one"))
    assert "'one'" in str(found.site("two"))
    assert found.site("body.0").obstacle is None


def test_a_weight_lent_to_a_function_keeps_its_module() -> None:
    site = site_of(Functional(), "lent")
    assert site.obstacle is not None and "elsewhere" in site.obstacle
    assert site.calls == 1


class Reads(nn.Module):
    """Two convolutions, of which the second is also asked for its weight elsewhere: by ``how``."""

    def __init__(self, how: str, kind: type[nn.Conv2d]) -> None:
        super().__init__()
        self.how, self.one, self.two = how, nn.Conv2d(3, 3, 1), kind(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x.to(self.two.weight.dtype) if self.how == "dtype" else x))
        if self.how == "value":
            return y + self.two.weight.sum()
        return y + F.conv2d(y, self.two.weight) if self.how == "call" else y


@pytest.mark.parametrize("kind", [nn.Conv2d, Same])
@pytest.mark.parametrize("how", ["dtype", "value", "call"])
def test_a_convolution_whose_weight_is_read_elsewhere_is_kept(how: str, kind: type[nn.Conv2d]) -> None:
    """``x.to(self.conv.weight.dtype)`` is common, and a ghost has no ``weight``."""
    found = scan(Reads(how, kind), X)
    assert found.site("two").obstacle is not None
    assert found.site("one").obstacle is None
    assert [
        swap.target for swap in convert(Reads(how, kind), X, also=["stem", "classifier"], min_saving=0).plan.swaps
    ] == ["one"]


def test_inside_a_ghost_everything_is_part_of_it() -> None:
    ghosted = convert(mobile(), X, also=["stem", "classifier", "pooled"], min_saving=0)
    inside = [s for s in ghosted.after.sites if owner(s) != s.name]
    assert len(inside) == 2 * len(ghosted.plan.swaps)
    assert all(site.obstacle == f"is part of the C-Ghost module {owner(site)!r} already" for site in inside)


def owner(site: Site) -> str:
    return re.split(r"\.(?:primary|cheap|pointwise)\b", site.name)[0]


# -- whole networks --------------------------------------------------------------------------------------------


def test_within_adds_up_what_stands_below_a_name() -> None:
    model = nn.Sequential(conv_bn(3, 8), nn.Sequential(conv_bn(8, 8), conv_bn(8, 4, 1)), nn.Conv2d(4, 11, 1))
    found = scan(model, torch.randn(1, 3, 4, 4))
    assert found.within("1") == Cost(params=576 + 16 + 32 + 8, macs=16 * (576 + 32), acts=16 * 12)
    assert found.within("1.1.0") == Cost(params=32, macs=16 * 32, acts=64)
    assert found.within("2") == Cost(params=55, macs=16 * 44, acts=16 * 11)
    assert found.within("nothing") == Cost()


def test_a_scan_is_told_in_a_table() -> None:
    text = str(scan(Aliased(), X))
    assert "Aliased on 2x3x8x8" in text
    assert "body.0 (+1 alias)" in text and "(2 calls)" in text and "8→8 3x3" in text


def test_a_scan_survives_json_and_says_what_it_doubts() -> None:
    class Branching(Counting):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    found = scan(Branching(), X)
    assert Scan.model_validate_json(found.model_dump_json()) == found
    assert found.doubts and found.doubts[0] in str(found)


def test_a_model_and_its_recording_give_one_scan() -> None:
    model = mobile()
    assert scan(trace(model, X)) == scan(model, X)


def test_what_one_scan_of_a_recording_was_not_asked_for_another_has() -> None:
    """Also after the blocks of the first were asked for, of which it has none."""
    run = trace(nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), head(8)), X)
    assert scan(run).inner_blocks == []
    assert scan(run, whole=True, stream="kept").inner_blocks
