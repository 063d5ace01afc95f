"""The stages of a network: what a person would name, what is none, and what holds on every net."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision import models
from zoo import ZOO, Net, Residual, SqueezeExcite, basic, bottleneck, conv_bn, head

from ghostify.costs import Cost, own_params
from ghostify.networks import resnet20, resnet56
from ghostify.scanning import scan
from ghostify.stages import Block, Stage, find_stages, stage_nodes
from ghostify.tracing import Traced, trace

Row = tuple[str, int, int, int]
"""Name, n, width, side of the maps."""


def on_meta(constructor: Callable[[], nn.Module], *shape: int) -> Traced:
    try:
        with torch.device("meta"):
            model = constructor()
    except (RuntimeError, NotImplementedError):  # its initialisation needs real numbers
        model = constructor().to("meta")
    return trace(model, torch.zeros(shape, device="meta"), verify=False)


def rows(stages: list[Stage]) -> list[Row]:
    assert all(stage.resolution == (stage.resolution[0],) * 2 for stage in stages)
    return [(stage.name, stage.n, stage.width, stage.resolution[0]) for stage in stages]


def stages_of(*layers: nn.Module, size: int = 16) -> list[Stage]:
    """The stages of a sequence of layers on one RGB image."""
    return find_stages(trace(nn.Sequential(*layers), torch.randn(1, 3, size, size)))


# -- as a person would name them -------------------------------------------------------------------------------


def resnet_rows(*depths: int, widths: tuple[int, ...]) -> list[Row]:
    numbered = enumerate(zip(depths, widths, (56, 28, 14, 7), strict=True), 1)
    return [(f"layer{i}", n, width, side) for i, (n, width, side) in numbered]


BOTTLENECK = (256, 512, 1024, 2048)
BY_TORCHVISION: dict[str, list[Row]] = {
    "resnet34": resnet_rows(3, 4, 6, 3, widths=(64, 128, 256, 512)),
    "resnet50": resnet_rows(3, 4, 6, 3, widths=BOTTLENECK),
    "resnet101": resnet_rows(3, 4, 23, 3, widths=BOTTLENECK),
    "resnext50_32x4d": resnet_rows(3, 4, 6, 3, widths=BOTTLENECK),
    "wide_resnet50_2": resnet_rows(3, 4, 6, 3, widths=BOTTLENECK),
    "regnet_x_3_2gf": [("trunk_output.block2", 6, 192, 28), ("trunk_output.block3", 15, 432, 14)],
    "regnet_y_400mf": [
        ("trunk_output.block2", 3, 104, 28),
        ("trunk_output.block3", 6, 208, 14),
        ("trunk_output.block4", 6, 440, 7),
    ],
    "vgg13": [],
    "vgg16": [
        ("features.10..features.15", 3, 256, 56),
        ("features.17..features.22", 3, 512, 28),
        ("features.24..features.29", 3, 512, 14),
    ],
    "vgg16_bn": [
        ("features.14..features.22", 3, 256, 56),
        ("features.24..features.32", 3, 512, 28),
        ("features.34..features.42", 3, 512, 14),
    ],
    "vgg19": [
        ("features.10..features.17", 4, 256, 56),
        ("features.19..features.26", 4, 512, 28),
        ("features.28..features.35", 4, 512, 14),
    ],
    "mobilenet_v2": [
        ("features.4..features.6", 3, 32, 28),
        ("features.7..features.10", 4, 64, 14),
        ("features.11..features.13", 3, 96, 14),
        ("features.14..features.16", 3, 160, 7),
    ],
    "mobilenet_v3_small": [("features.4..features.6", 3, 40, 14), ("features.9..features.11", 3, 96, 7)],
    "mobilenet_v3_large": [
        ("features.4..features.6", 3, 40, 28),
        ("features.7..features.10", 4, 80, 14),
        ("features.13..features.15", 3, 160, 7),
    ],
    "efficientnet_b0": [("features.4", 3, 80, 14), ("features.5", 3, 112, 14), ("features.6", 4, 192, 7)],
    "efficientnet_v2_s": [
        ("features.2", 4, 48, 56),
        ("features.3", 4, 64, 28),
        ("features.4", 6, 128, 14),
        ("features.5", 9, 160, 14),
        ("features.6", 15, 256, 7),
    ],
    "mnasnet1_0": [
        ("layers.8", 3, 24, 56),
        ("layers.9", 3, 40, 28),
        ("layers.10", 3, 80, 14),
        ("layers.12", 4, 192, 7),
    ],
    "convnext_tiny": [
        ("features.1", 3, 96, 56),
        ("features.3", 3, 192, 28),
        ("features.5", 9, 384, 14),
        ("features.7", 3, 768, 7),
    ],
    "shufflenet_v2_x1_0": [("stage2", 4, 116, 28), ("stage3", 8, 232, 14), ("stage4", 4, 464, 7)],
    "resnet18": [],
    "densenet121": [],
    "squeezenet1_0": [],
    "alexnet": [],
    "vit_b_16": [],
}


@pytest.mark.parametrize("name", BY_TORCHVISION)
def test_torchvision_has_the_stages_a_person_would_name(name: str) -> None:
    traced = on_meta(partial(models.get_model, name, weights=None), 1, 3, 224, 224)
    assert rows(find_stages(traced)) == BY_TORCHVISION[name]


def cifar_rows(n: int) -> list[Row]:
    return [("layer1", n, 16, 32), ("layer2", n, 32, 16), ("layer3", n, 64, 8)]


@pytest.mark.parametrize(("constructor", "n"), [(resnet20, 3), (resnet56, 9)])
def test_cifar_resnets_have_three_stages_with_their_blocks_as_children(
    constructor: Callable[[], nn.Module], n: int
) -> None:
    stages = find_stages(on_meta(constructor, 1, 3, 32, 32))
    assert rows(stages) == cifar_rows(n)
    assert [stage.parent for stage in stages] == ["layer1", "layer2", "layer3"]


def hrnet_rows() -> list[Row]:
    widths, sides = (18, 36, 72, 144), (56, 28, 14, 7)
    branches = [
        (f"stage{stage}.{module}.branches.{branch}", 4, widths[branch], sides[branch])
        for stage, modules in ((2, 1), (3, 4), (4, 3))
        for module in range(modules)
        for branch in range(stage)
    ]
    return [("layer1", 4, 256, 56), *branches]


BY_TIMM: dict[str, list[Row]] = {
    "cspresnet50": [("stages.0.blocks", 3, 128, 56), ("stages.1.blocks", 3, 256, 28), ("stages.2.blocks", 5, 512, 14)],
    "resnetv2_50": [
        ("stages.0.blocks", 3, 256, 56),
        ("stages.1.blocks", 4, 512, 28),
        ("stages.2.blocks", 6, 1024, 14),
        ("stages.3.blocks", 3, 2048, 7),
    ],
    "repvgg_b0": [("stages.0", 4, 64, 56), ("stages.1", 6, 128, 28), ("stages.2", 16, 256, 14)],
    "tf_efficientnet_b0": [("blocks.3", 3, 80, 14), ("blocks.4", 3, 112, 14), ("blocks.5", 4, 192, 7)],
    "legacy_senet154": resnet_rows(3, 8, 36, 3, widths=BOTTLENECK),
    "mobilenetv1_100": [("blocks.3", 6, 512, 14)],
    "convmixer_768_32": [("blocks", 32, 768, 32)],
    "resnetblur50": resnet_rows(3, 4, 6, 3, widths=BOTTLENECK),
    "hrnet_w18": hrnet_rows(),
}


@pytest.mark.parametrize("name", BY_TIMM)
def test_timm_has_the_stages_a_person_would_name(name: str) -> None:
    timm = pytest.importorskip("timm")
    stages = find_stages(on_meta(partial(timm.create_model, name), 1, 3, 224, 224))
    assert sorted(rows(stages)) == sorted(BY_TIMM[name])


@pytest.mark.parametrize("name", ["mixnet_s", "nasnetalarge"])
def test_what_cannot_be_read_gives_fewer_stages_and_no_error(name: str) -> None:
    timm = pytest.importorskip("timm")
    traced = on_meta(partial(timm.create_model, name), 1, 3, 224, 224)
    assert len(find_stages(traced)) <= 1


def test_clips_of_resnet18_have_none() -> None:
    assert not find_stages(on_meta(partial(models.video.r3d_18, weights=None), 1, 3, 8, 32, 32))


def test_it_takes_a_moment() -> None:
    traced = on_meta(partial(models.get_model, "resnet152", weights=None), 1, 3, 64, 64)
    begin = time.process_time()
    find_stages(traced)
    assert time.process_time() - begin < 0.3  # 0.02 s when the machine is idle


# -- what a stage says -----------------------------------------------------------------------------------------


def test_blocks_have_ends_shapes_and_costs() -> None:
    model = models.resnet34(weights=None)
    traced = trace(model, torch.randn(1, 3, 64, 64))
    stage = find_stages(traced)[1]
    assert str(stage) == "layer2: 4 x 128 @ 8x8"
    assert [block.name for block in stage.blocks] == [f"layer2.{i}" for i in range(4)]
    assert (stage.entry.in_shape, stage.entry.out_shape) == ((1, 64, 16, 16), (1, 128, 8, 8))
    assert stage.cost == scan(traced).within("layer2")
    assert [block.cost.params for block in stage.blocks] == [own_params(block) for block in model.layer2]
    assert Stage.model_validate_json(stage.model_dump_json()) == stage


def test_blocks_follow_one_another() -> None:
    stage = find_stages(trace(resnet20(), torch.randn(1, 3, 32, 32)))[1]
    assert [block.entry for block in stage.blocks[1:]] == [block.exit for block in stage.blocks[:-1]]


def test_names_play_no_part() -> None:
    class Nameless(nn.Module):
        """A ResNet without modules for stages or blocks."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(7))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a[0](x)
            for one, two in zip(self.a[1::2], self.a[2::2], strict=True):
                x = F.relu(x + two(F.relu(one(x))))
            return x.mean((2, 3))

    (stage,) = find_stages(trace(Nameless(), torch.randn(1, 3, 8, 8)))
    assert (stage.name, stage.n, stage.parent) == ("a.1..a.6", 3, None)
    assert [block.name for block in stage.blocks] == ["a.1..a.2", "a.3..a.4", "a.5..a.6"]


# -- nets made by hand -----------------------------------------------------------------------------------------


def test_two_blocks_are_no_stage() -> None:
    assert not stages_of(conv_bn(3, 8), bottleneck(8, 16), bottleneck(16, 16), head(16))


def test_the_first_block_may_widen_and_downsample() -> None:
    (stage,) = stages_of(conv_bn(3, 8), bottleneck(8, 16, 2), bottleneck(16, 16), bottleneck(16, 16), head(16))
    assert (stage.name, stage.n, stage.entry.name, stage.entry.in_shape) == ("1..3", 3, "1", (1, 8, 16, 16))
    assert stage.parent == ""


def test_a_plain_stack_is_a_stage_of_single_convolutions() -> None:
    stack = [conv_bn(8, 16, stride=2), conv_bn(16, 16), conv_bn(16, 16)]
    assert rows(stages_of(conv_bn(3, 8, 5), *stack, head(16))) == [("1..3", 3, 16, 8)]


def test_a_pool_ends_a_stage_and_belongs_to_none() -> None:
    first = [conv_bn(3, 8, 5), conv_bn(8, 8), conv_bn(8, 8), conv_bn(8, 8), nn.MaxPool2d(2)]
    second = [conv_bn(8, 8), conv_bn(8, 8), conv_bn(8, 8)]
    assert rows(stages_of(*first, *second, head(8))) == [("1..3", 3, 8, 16), ("5..7", 3, 8, 8)]


def test_kernels_that_differ_make_no_run() -> None:
    assert not stages_of(conv_bn(3, 8, 7), conv_bn(8, 8, 3), conv_bn(8, 8, 5), conv_bn(8, 8, 3, groups=2), head(8))


def test_pointwise_convolutions_alone_are_no_stage() -> None:
    assert not stages_of(conv_bn(3, 8), conv_bn(8, 8, 1), conv_bn(8, 8, 1), conv_bn(8, 8, 1), head(8))


def test_a_block_may_be_two_plain_convolutions() -> None:
    pairs = [layer for _ in range(3) for layer in (conv_bn(8, 16, 1), conv_bn(16, 8, 3))]
    (stage,) = stages_of(conv_bn(3, 8, 5), *pairs, head(8))
    assert (stage.n, stage.width, stage.parent) == (3, 8, None)
    assert [block.out_shape[1] for block in stage.blocks] == [8, 8, 8]


def test_depthwise_convolutions_join_the_next_and_gates_the_one_before() -> None:
    def separable() -> nn.Sequential:
        return nn.Sequential(conv_bn(8, 8, groups=8), SqueezeExcite(8), conv_bn(8, 8, 1), SqueezeExcite(8))

    (stage,) = stages_of(conv_bn(3, 8), separable(), separable(), separable(), head(8))
    assert [block.name for block in stage.blocks] == ["1", "2", "3"]
    assert stage.parent == ""


def test_nested_residuals_are_one_stage_of_the_outer_ones() -> None:
    groups = [Residual(nn.Sequential(*(basic(8, 8) for _ in range(4))), 8, 8, 1) for _ in range(3)]
    assert rows(stages_of(conv_bn(3, 8), *groups, head(8))) == [("1..3", 3, 8, 16)]


def test_stages_inside_a_residual_are_found_where_there_is_no_outer_run() -> None:
    groups = [Residual(nn.Sequential(*(basic(8, 8) for _ in range(4))), 8, 8, 1) for _ in range(2)]
    assert rows(stages_of(conv_bn(3, 8), *groups, head(8))) == [("1.body", 4, 8, 16), ("2.body", 4, 8, 16)]


class Tapped(nn.Module):
    """Basic blocks of one width, of which some are read from outside too."""

    def __init__(self, blocks: int, taps: set[int]) -> None:
        super().__init__()
        self.stem, self.taps = conv_bn(3, 8), taps
        self.blocks = nn.ModuleList(basic(8, 8) for _ in range(blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, out = self.stem(x), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            out += [x] if index in self.taps else []
        return [*out, x.mean((2, 3))]


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        (set(), [("blocks", 7, 8, 8)]),
        ({2}, [("blocks.0..blocks.2", 3, 8, 8), ("blocks.3..blocks.6", 4, 8, 8)]),
        ({4}, [("blocks.0..blocks.4", 5, 8, 8)]),
        ({6}, [("blocks", 7, 8, 8)]),
        ({1, 3, 5}, []),
    ],
)
def test_a_tap_inside_splits_a_stage_and_one_at_its_ends_does_not(taps: set[int], expected: list[Row]) -> None:
    assert rows(find_stages(trace(Tapped(7, taps), torch.randn(1, 3, 8, 8)))) == expected


def test_backbones_with_feature_taps_keep_their_stages() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = models.resnet34(weights=None)

        def forward(self, x: Tensor) -> list[Tensor]:
            body, out = self.body, []
            x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
            for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
                out.append(x := layer(x))
            return out

    stages = find_stages(on_meta(Features, 1, 3, 224, 224))
    assert [(stage.name, stage.n) for stage in stages] == [
        (f"body.layer{i}", n) for i, n in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True)
    ]


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.fine = nn.Sequential(*(basic(8, 8) for _ in range(3)))
        self.coarse = nn.Sequential(*(basic(8 if i == 0 else 16, 16, 2 if i == 0 else 1) for i in range(4)))
        self.head = head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        up = F.interpolate(self.coarse(x), scale_factor=2)
        return self.head(torch.cat([self.fine(x), up], 1))


def test_each_branch_has_its_own_stage() -> None:
    found = rows(find_stages(trace(TwoBranches(), torch.randn(1, 3, 8, 8))))
    assert sorted(found) == [("coarse", 4, 16, 4), ("fine", 3, 8, 8)]


def test_a_shared_module_is_no_child_and_its_weights_count_once() -> None:
    block = basic(8, 8)
    (stage,) = stages_of(conv_bn(3, 8), block, block, block, head(8))
    assert (stage.n, stage.parent) == (3, None)
    assert [block.cost.params for block in stage.blocks] == [own_params(block), 0, 0]
    assert stage.cost.params == own_params(block)


def test_a_standardised_weight_counts_in_its_block() -> None:
    class Standard(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)

    (stage,) = stages_of(conv_bn(3, 8, 5), *(Standard(8, 8, 3) for _ in range(3)), head(8))
    assert [block.cost.params for block in stage.blocks] == [8 * 8 * 9 + 8] * 3


def test_a_block_written_to_through_a_view_is_none() -> None:
    class Halved(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            x[:, :4] *= 0.5
            return x

    blocks = [Halved(conv_bn(8, 8), 8, 8, 1) for _ in range(3)]
    assert not stages_of(conv_bn(3, 8), *blocks, head(8))


def test_a_norm_before_the_convolutions_belongs_to_its_block() -> None:
    class PreAct(nn.Module):
        def __init__(self, c: int, n: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(c), nn.Conv2d(c, n, 3, padding=1)
            self.shortcut = nn.Identity() if c == n else nn.Conv2d(c, n, 1)

        def forward(self, x: Tensor) -> Tensor:
            before = F.relu(self.norm(x))
            return self.conv(before) + self.shortcut(x if isinstance(self.shortcut, nn.Identity) else before)

    blocks = [PreAct(8, 8), PreAct(8, 8), PreAct(8, 8), PreAct(8, 16), PreAct(16, 16), PreAct(16, 16)]
    first, second = stages_of(conv_bn(3, 8, 5), *blocks, nn.BatchNorm2d(16), head(16))
    assert (first.name, second.name, first.parent, second.parent) == ("1..3", "4..6", "", "")


# -- what holds on every net -----------------------------------------------------------------------------------


def deep(constructor: Callable[..., nn.Module], *args: Any) -> Callable[[], Traced]:
    return lambda: on_meta(partial(constructor, *args), 2, 3, 32, 32)


NETS: dict[str, Callable[[], Traced]] = {
    **{net.name: partial(lambda net: trace(net.build(), net.example()), net) for net in ZOO},
    "tapped": deep(Tapped, 7, {2}),
    "two-branches": deep(TwoBranches),
    "resnet56": deep(resnet56),
    "mobilenet_v2": deep(models.mobilenet_v2),
    "vgg16_bn": deep(models.vgg16_bn),
    "shufflenet": deep(models.shufflenet_v2_x0_5),
    "convnext": deep(models.convnext_tiny),
    "efficientnet": deep(models.efficientnet_b0),
}


@pytest.mark.parametrize("name", NETS)
def test_stages_are_what_they_say(name: str) -> None:
    traced = NETS[name]()
    stages = find_stages(traced)
    assert find_stages(traced) == stages
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    seen: set[fx.Node] = set()
    for stage in stages:
        assert stage.n >= 3 and len({block.out_shape for block in stage.blocks}) == 1
        assert all(
            a.exit == b.entry and a.out_shape == b.in_shape
            for a, b in zip(stage.blocks, stage.blocks[1:], strict=False)
        )
        assert stage.cost == sum((block.cost for block in stage.blocks), Cost())
        for block, nodes in zip(stage.blocks, stage_nodes(traced, stage), strict=True):
            assert seen.isdisjoint(nodes)
            seen.update(nodes)
            assert_one_way_in_and_out(traced, block, set(nodes))
    exits = [order[node(traced, stage.blocks[-1].exit)] for stage in stages]
    assert exits == sorted(exits) or name == "two-branches"


def assert_one_way_in_and_out(traced: Traced, block: Block, nodes: set[fx.Node]) -> None:
    live = reachable(traced.graph)
    outside = {source for inner in nodes for source in inner.all_input_nodes if source in live} - nodes
    assert {source.name for source in outside} == {block.entry}
    read_outside = {inner.name for inner in nodes if not set(inner.users) & live <= nodes}
    assert read_outside == {block.exit}
    assert node(traced, block.entry).meta["shapes"][0] == block.in_shape
    assert node(traced, block.exit).meta["shapes"][0] == block.out_shape


def reachable(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that are made from an input."""
    found: set[fx.Node] = set()
    for one in graph.nodes:
        if one.op == "placeholder" or found & set(one.all_input_nodes):
            found.add(one)
    return found


def node(traced: Traced, name: str) -> fx.Node:
    return next(one for one in traced.graph.nodes if one.name == name)


@pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)
def test_a_block_that_is_a_module_costs_what_the_module_costs(net: Net) -> None:
    traced = trace(net.build(), net.example())
    whole = scan(traced)
    for stage in find_stages(traced):
        for block in stage.blocks if stage.parent is not None else ():
            assert block.cost == whole.within(block.name)
