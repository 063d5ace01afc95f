"""The G-Ghost rule: what it proposes and why not, what it promises, and what a rewritten stage begins as."""

from __future__ import annotations

import copy
import io
import itertools
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from torch import Tensor, nn
from zoo import (
    ZOO,
    Residual,
    Shuffle,
    basic,
    conv_bn,
    gated_stage,
    grouped_stage,
    head,
    plain,
    scaled_stage,
    shuffle_stage,
)

from ghostify import Ghosted, Plan, Scan, convert, load, plan, read_plan, rewrite, save, scan, trace
from ghostify.costs import Cost
from ghostify.errors import PlanError, RecipeError, RewriteError
from ghostify.ghosts import CGhost, GGhostStage
from ghostify.networks import resnet20
from ghostify.planning import check, resolved, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting import counted
from ghostify.rules import CGhostSwap, GGhostSwap, g_ghost

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
G: dict[str, Any] = {"method": "g-ghost"}


class MobileBlock(nn.Module):
    """An inverted residual as in MobileNetV2."""

    def __init__(self, c: int, n: int, stride: int = 1) -> None:
        super().__init__()
        wide = 3 * c
        middle = nn.Sequential(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide))
        narrow = nn.Sequential(nn.Conv2d(wide, n, 1, bias=False), nn.BatchNorm2d(n))
        self.body = nn.Sequential(conv_bn(c, wide, 1), middle, nn.ReLU6(), narrow)
        self.same = (c, stride) == (n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), MobileBlock(8, 16, 2), *(MobileBlock(16, 16) for _ in range(3)), head(16))


def vgg() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), nn.MaxPool2d(2), *(conv_bn(16, 16) for _ in range(4)), head(16))


def deep(c: int = 16, n: int = 6) -> nn.Module:
    return nn.Sequential(conv_bn(3, c), nn.Sequential(*(basic(c, c) for _ in range(n))), head(c))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": partial(resnet20, width=8),
    "mobilenet": mobilenet,
    "vgg": vgg,
}


def seeded(constructor: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return constructor()


@cache
def traced(name: str) -> Any:
    return trace(seeded(NETS[name]), X)


@cache
def scanned(name: str) -> Scan:
    return scan(traced(name))


def reasons(proposal: Plan) -> dict[str, str]:
    return {skip.target: skip.reason for skip in proposal.skips}


def stages(module: nn.Module) -> dict[str, GGhostStage]:
    return {name: part for name, part in module.named_modules() if isinstance(part, GGhostStage)}


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def trained_like(model: nn.Module) -> nn.Module:
    """With statistics as of some training, so that no norm is the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                noise = torch.randn(buffer.shape, generator=generator)
                buffer.copy_(noise.abs() + 0.5 if "var" in name else noise * 0.1)
    return model


# -- proposing -------------------------------------------------------------------------------------------------


def test_every_stage_of_a_resnet_is_proposed_in_the_default_form() -> None:
    proposal = plan(scanned("resnet20"), **G)
    assert [swap.target for swap in proposal.swaps] == ["layer1", "layer2", "layer3"]
    swap = proposal.swaps[1]
    assert isinstance(swap, GGhostSwap)
    assert swap.blocks == ("layer2.0", "layer2.1", "layer2.2") and swap.geometry == "3 x 16 @ 8x8"
    assert swap.touches == swap.blocks[1:]
    assert {key: getattr(swap, key) for key in g_ghost.PRESETS["default"].model_dump()} == g_ghost.PRESETS[
        "default"
    ].model_dump()
    assert proposal.after.macs < proposal.before.macs


@pytest.mark.parametrize(
    ("settings", "target", "reason"),
    [
        ({"include": ["layer1"]}, "layer2", "is matched by no include pattern"),
        ({"exclude": ["layer[23]"]}, "layer3", "is excluded by 'layer[23]'"),
        (
            {"ratio": 0.1},
            "layer2",
            "has 16 channels, of which a ratio of 0.1 leaves no ghosts (round_to is 8)",
        ),
        ({"mix": 1, "cheap": "5x5", "ratio": 0.9}, "layer1", "would cost more as a G-Ghost stage than it does now"),
        ({"cheap": "none"}, "layer1", "has no ghosts to mix into with cheap operation 'none'; set mix to 0"),
        (
            {"cheap": "identity", "cheap_input": "full"},
            "layer1",
            "can pass only the other channels of Y1 on as they are; set cheap_input to slice",
        ),
    ],
)
def test_a_stage_left_alone_says_why(settings: dict[str, Any], target: str, reason: str) -> None:
    assert reasons(plan(scanned("resnet20"), **G, **settings))[target] == reason


def test_obstacles_are_the_reason() -> None:
    class Softmaxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x).softmax(1)

    net = nn.Sequential(conv_bn(3, 16), *(Softmaxed() for _ in range(3)), head(16))
    (stage,) = scan(net, X).stages
    assert re.fullmatch(r"cannot be thinned: softmax in '\d' is a softmax over the channels", stage.obstacle or "")
    assert reasons(plan(scan(net, X), **G))[stage.name] == stage.obstacle
    hooked = deep()
    hooked[1][2].register_forward_hook(lambda *_: None)
    assert reasons(plan(scan(hooked, X), **G))["1"].startswith("has a block, 1.2, that carries hooks")


def test_a_block_that_is_called_with_more_than_its_input_is_left() -> None:
    """As efficientnet_pytorch's are, which are told how often to be dropped."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor, rate: float) -> Tensor:
            return x + self.conv(x) * (1 - rate)

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            stem, *blocks, last = self
            x = stem(x)
            for block in blocks:
                x = block(x, rate=0.1)
            return cast(Tensor, last(x))

    net = Net(conv_bn(3, 16), *(Dropped() for _ in range(3)), head(16))
    (stage,) = scan(net, X).stages
    assert stage.obstacle == "has a block, 1, that is called with more than its input, or gives more than one tensor"
    assert reasons(plan(scan(net, X), **G))[stage.name] == stage.obstacle


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"exclude 'layr3' matches no layer or stage .* Did you mean 'layer3'\?"):
        plan(scanned("resnet20"), **G, exclude=["layr3"])


def test_a_plan_without_swaps_names_what_stood_in_the_stages_way() -> None:
    proposal = plan(scanned("mobilenet"), **G, cheap="none")
    with pytest.raises(PlanError, match="set mix to 0"):
        proposal.require_changes()


def test_a_network_without_stages_is_told_so() -> None:
    with pytest.raises(PlanError, match=r"no stage"):
        convert(plain(), X, **G)


# -- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(g_ghost.PRESETS))
def test_a_preset_gives_the_form_and_settings_change_it(preset: Any) -> None:
    form = g_ghost.PRESETS[preset].model_dump()
    (swap,) = plan(scanned("vgg"), **G, preset=preset).swaps
    assert {key: getattr(swap, key) for key in form} == form
    (changed,) = plan(scanned("vgg"), **G, preset=preset, cheap="3x3", mix=0, keep="strongest").swaps
    assert {key: getattr(changed, key) for key in form} == form | {"cheap": "3x3", "mix": 0, "keep": "strongest"}


def test_settings_by_name_win_and_the_last_of_them() -> None:
    named = {"layer3": {"ratio": 0.25}, "layer*": {"mix": 0}, "layer2": {"mix": 2, "end": False}}
    swaps = {swap.target: swap for swap in plan(scanned("resnet20"), **G, mix=1, set=named).swaps}
    assert {name: (swap.ratio, swap.mix, swap.end) for name, swap in swaps.items()} == {
        "layer1": (0.5, 0, True),
        "layer2": (0.5, 2, False),
        "layer3": (0.25, 0, True),
    }


@pytest.mark.parametrize(
    ("ratio", "round_to", "rounding", "kept"),
    [
        (0.5, 8, "nearest", 16),
        (0.4, 8, "nearest", 16),  # 19.2
        (0.3, 8, "nearest", 24),  # 22.4
        (0.3, 8, "down", 16),
        (0.3, 1, "nearest", 22),
        (0.28, 1, "nearest", 23),  # 23.04
        (0.3, 1, "down", 22),
        (0.9, 8, "nearest", 8),  # 3.2 is less than one multiple
    ],
)
def test_widths_are_rounded_as_asked(ratio: float, round_to: int, rounding: str, kept: int) -> None:
    settings = {"ratio": ratio, "round_to": round_to, "rounding": rounding, "include": ["layer3"], "cheap": "1x1"}
    stage = scanned("resnet20").stages[2]
    (swap,) = plan(scanned("resnet20"), **G, **settings).swaps
    assert g_ghost.thin_width(stage, swap) == kept
    (ghosted,) = stages(rewrite(traced("resnet20"), Plan.model_validate(_alone("resnet20", swap))).module).values()
    assert ghosted.kept == kept and ghosted.width == 32


def _alone(name: str, *swaps: GGhostSwap, **changes: Any) -> dict[str, Any]:
    """A plan of these swaps as plain values."""
    found = scanned(name)
    values = [swap.model_dump(mode="json") for swap in swaps]
    return {"network": found.network, "inputs": found.inputs, "swaps": values, "before": found.cost} | changes


def test_auto_goes_by_the_device() -> None:
    assert resolved("auto", torch.device("cpu")) == "c-ghost"
    assert resolved("auto", torch.device("cuda")) == "g-ghost"
    rules = {
        kind: {swap.rule for swap in plan(scanned("vgg"), method="auto", device=torch.device(kind)).swaps}
        for kind in ("cpu", "cuda")
    }
    assert rules == {"cpu": {"c-ghost"}, "cuda": {"g-ghost"}}


@pytest.mark.parametrize("settings", [{"ratio": 0}, {"ratio": 1}, {"mix": 3}, {"cheap": "7x7"}, {"group_width": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        plan(scanned("vgg"), **G, **settings)


# -- the promise -----------------------------------------------------------------------------------------------

FORMS = [
    dict(zip(("cheap", "cheap_input", "entry", "mix", "mix_y1", "end"), form, strict=True))
    for form in itertools.product(
        ("1x1", "3x3", "5x5", "identity", "none"),
        ("slice", "full"),
        ("slice", "projection"),
        (0, 1, 2),
        (False, True),
        (False, True),
    )
    if not (form[0] == "none" and form[3])
    and not (form[0] == "identity" and form[1] == "full")
    and not (form[3] == 0 and form[4])
    and not (form[0] == "none" and form[1] == "full")
]
FORMS += [
    {"cheap": cheap, "cheap_input": cheap_input, "entry": entry, "mix": mix, "end": end, "inner_width": inner}
    for cheap, cheap_input, entry, mix, end, inner in itertools.product(
        ("1x1", "3x3", "identity"),
        ("slice", "outputs"),
        ("slice", "stream"),
        (0, 1),
        (False, True),
        (None, 0.25),
    )
    if not (cheap == "identity" and cheap_input != "slice")
]


SHORT: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nn.Sequential(conv_bn(3, 8), basic(8, 16, 2), basic(16, 16), basic(16, 16), head(16)),
    "inverted": lambda: nn.Sequential(MobileBlock(3, 16, 2), MobileBlock(16, 16), MobileBlock(16, 16), head(16)),
    "stacked": lambda: nn.Sequential(conv_bn(3, 16, stride=2), *(conv_bn(16, 16) for _ in range(3)), head(16)),
}
NETS |= SHORT


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("cheap", ["1x1", "3x3", "5x5", "identity", "none"])
def test_predicted_is_counted_for_every_form(name: str, cheap: str) -> None:
    """``rewrite`` itself refuses a result that does not count as planned; here the stages' parts are counted again."""
    for form in (form for form in FORMS if form["cheap"] == cheap):
        stage = scanned(name).stages[-1]
        proposed = GGhostSwap(
            target=stage.name,
            geometry=stage.geometry,
            blocks=tuple(block.name for block in stage.blocks),
            ratio=0.5,
            **form,
        )
        proposal = check(Plan.model_validate(_alone(name, proposed)), scanned(name))
        ghosted = rewrite(traced(name), proposal)
        (swap,) = ghosted.plan.swaps
        assert swap.after == g_ghost.predict(stage, proposed) == counted(swap, ghosted.before, ghosted.after), form
        assert ghosted.after.cost == proposal.after, form
        assert ghosted.after.cost.params == sum(p.numel() for p in ghosted.module.parameters()), form
        (new,) = stages(ghosted.module).values()
        cheap_cost, mix_cost, projection = g_ghost.extras(stage, swap)
        assert (cheap_cost.params, mix_cost.params) == (parameters(new.cheap), parameters(new.mix)), form
        assert (mix_cost.macs > 0) == (new.mix is not None), form
        if is_whole(swap, len(new.thin)):
            continue  # nothing is thin, which no settings propose
        assert (projection is not None) == (form["entry"] == "projection"), form
        projections = [part for name, part in new.thin[0].named_modules() if name == "projection"]
        assert projection is None or projection.params == sum(map(parameters, projections)), form


def is_whole(swap: GGhostSwap, thin: int) -> bool:
    """Whether the one thin block reads all of Y1 and makes all channels, so that it is the block it was."""
    return thin == 1 and swap.cheap == "none" and swap.entry == "projection"


def parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("entry", "share"), [("slice", 1 / 8), ("stream", 3 / 16)])
def test_theory_knows_the_width_inside_and_what_thin_blocks_read(entry: str, share: float) -> None:
    """A quarter inside and half between: an eighth of the MACs, and of the first half twice that where all is read."""
    form = {"cheap": "identity", "mix": 0, "end": False, "inner_width": 0.25, "round_to": 4, "entry": entry}
    (swap,) = plan(scanned("resnet20"), **G, include=["layer2"], **form).swaps
    stage = scanned("resnet20").stages[1]
    first, *others = (block.cost.macs for block in stage.blocks)
    assert swap.after.macs == first + share * sum(others)
    assert g_ghost.theory(stage, swap).r_f == pytest.approx(swap.before.macs / swap.after.macs)


@pytest.mark.parametrize("group_width", [1.0, 0.75, 0.5])
@pytest.mark.parametrize("keep", ["first", "strongest"])
@pytest.mark.parametrize("entry", ["slice", "projection", "stream"])
def test_predicted_is_counted_with_groups(group_width: float, keep: str, entry: str) -> None:
    ghosted = convert(seeded(grouped_stage), X, **G, group_width=group_width, keep=keep, entry=entry)
    (new,) = stages(ghosted.module).values()
    grouped = [m for m in new.thin.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert {conv.weight.shape[1] for conv in grouped} == {int(4 * group_width)}
    assert ghosted.after.cost == ghosted.plan.after


def test_a_stage_of_option_a_costs_what_eq_13_says() -> None:
    """Without a mix and with cheap ghosts for nothing, the thin blocks' MACs are (1 − λ)² of the full ones'."""
    stage = scanned("resnet20").stages[1]
    (swap,) = plan(scanned("resnet20"), **G, include=["layer2"], cheap="identity", mix=0, end=False).swaps
    first, *others = (block.cost.macs for block in stage.blocks)
    assert swap.after.macs == first + sum(others) // 4


# -- the weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, Ghosted]:
    model = trained_like(seeded(NETS["resnet20"]))
    return model, convert(model, X, **G)


def test_thin_blocks_hold_the_weights_of_the_first_channels() -> None:
    model = trained_like(seeded(NETS["resnet20"]))
    ghosted = convert(model, X, **G, keep="first")
    for layer in ("layer1", "layer2", "layer3"):
        old, new = model.get_submodule(f"{layer}.1"), ghosted.module.get_submodule(f"{layer}.1").thin[0]
        kept = new.conv1.out_channels
        assert new.conv1.weight.shape[:2] == (kept, kept)
        for key, value in new.state_dict().items():
            whole = old.state_dict()[key]
            index = tuple(slice(0, size) for size in value.shape)
            assert torch.equal(value, whole[index] if value.dim() else whole), key


def test_thin_blocks_hold_the_weights_of_the_strongest_channels(pair: tuple[nn.Module, Ghosted]) -> None:
    """By default; which those are inside a block, the statistics tell, for no two channels have the same."""
    model, ghosted = pair
    for layer in ("layer1", "layer2", "layer3"):
        stage = ghosted.module.get_submodule(f"{layer}.1")
        old, new, stream = model.get_submodule(f"{layer}.1"), stage.thin[0], stage.kept_index
        middle = torch.isin(old.bn1.running_mean, new.bn1.running_mean).nonzero().flatten()
        assert len(stream) == new.bn2.num_features and len(middle) == new.bn1.num_features
        assert torch.equal(new.conv1.weight, old.conv1.weight[middle][:, stream])
        assert torch.equal(new.conv2.weight, old.conv2.weight[stream][:, middle])
        for norm, places in (("bn1", middle), ("bn2", stream)):
            state = old.get_submodule(norm).state_dict()
            for key, value in new.get_submodule(norm).state_dict().items():
                assert torch.equal(value, state[key][places] if value.dim() else state[key]), key
        strength = model.get_submodule(layer)[1].conv2.weight.new_zeros(stage.width)
        for block in model.get_submodule(layer)[1:]:
            strength += block.conv2.weight.detach().square().sum((1, 2, 3))
        assert stream.tolist() == sorted(strength.topk(len(stream)).indices.tolist())


def test_the_first_and_the_last_block_keep_every_weight(pair: tuple[nn.Module, Ghosted]) -> None:
    model, ghosted = pair
    for layer in ("layer1", "layer2", "layer3"):
        for old, new in (
            (f"{layer}.0", ghosted.module.get_submodule(f"{layer}.0")),
            (f"{layer}.2", ghosted.module.get_submodule(f"{layer}.1").end),
        ):
            state = model.get_submodule(old).state_dict()
            assert state.keys() == new.state_dict().keys()
            assert all(torch.equal(state[key], value) for key, value in new.state_dict().items())


def test_names_outside_the_stages_are_unchanged(pair: tuple[nn.Module, Ghosted]) -> None:
    model, ghosted = pair
    inside = tuple(f"layer{i}.{j}." for i in (1, 2, 3) for j in (1, 2))
    old, new = (
        {key: value for key, value in m.state_dict().items() if not key.startswith(inside)}
        for m in (model, ghosted.module)
    )
    assert list(old) == list(new)
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert type(ghosted.module.layer1[2]) is nn.Identity and len(ghosted.module.layer1) == 3


def test_the_model_given_is_bit_equal_afterwards() -> None:
    model = trained_like(seeded(NETS["mobilenet"]))
    before, given = copy.deepcopy(model.state_dict()), outputs(model)
    for form in (
        {},
        {"entry": "projection", "keep": "strongest"},
        {"entry": "stream", "cheap_input": "outputs"},
        {"entry": "slice", "cheap": "none", "mix": 0},
    ):
        convert(model, X, **G, **form)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(outputs(model), given) and model.training


def test_the_strongest_channels_keep_their_places() -> None:
    """Blocks that pass everything on: whichever channels are kept, each comes out at its own place."""
    model = deep(8, 4)
    with torch.no_grad():
        for index, block in enumerate(model[1]):
            for parameter in block.parameters():
                parameter.zero_()
            if index:  # the filters that make channels 1, 2, 5, 7 of the stream are the strong ones
                block.body[1].weight[[1, 2, 5, 7]] = 1e-3
    ghosted = convert(model, X, **G, keep="strongest", round_to=1, mix=0)
    (stage,) = stages(ghosted.module).values()
    assert stage.kept_index.tolist() == [1, 2, 5, 7] and stage.ghost_index.tolist() == [0, 3, 4, 6]
    assert {"kept_index", "ghost_index", "order"} <= stage.state_dict().keys()
    y1 = torch.rand(2, 8, 4, 4)
    with torch.no_grad():
        given = copy.deepcopy(stage).eval()(y1)
    assert torch.allclose(given, y1, atol=1e-4)


def test_the_first_channels_need_no_indices() -> None:
    ghosted = convert(seeded(NETS["vgg"]), X, **G, keep="first")
    (stage,) = stages(ghosted.module).values()
    assert stage.kept_index is stage.ghost_index is stage.order is None


@pytest.mark.parametrize("mix", [0, 1, 2])
@pytest.mark.parametrize("cheap", ["1x1", "3x3", "identity"])
@pytest.mark.parametrize("cheap_input", ["slice", "full"])
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_ghosts_begin_as_the_channels_of_y1(mix: int, cheap: str, cheap_input: str, keep: str) -> None:
    """The cheap operation starts as the identity up to a fresh norm's ε, and the mix adds nothing; ReLU follows."""
    if cheap == "identity" and cheap_input == "full":
        return
    form = {"cheap": cheap, "cheap_input": cheap_input, "mix": mix, "keep": keep, "end": False}
    ghosted = convert(seeded(partial(deep, 16, 3)), X, **G, **form)
    (stage,) = stages(ghosted.module).values()
    y1 = torch.rand(2, 16, 4, 4)
    with torch.no_grad():
        given = copy.deepcopy(stage).eval()(y1)
    kept = range(8) if stage.kept_index is None else stage.kept_index.tolist()
    ghosts = [channel for channel in range(16) if channel not in kept]
    assert (keep == "first") == (stage.kept_index is None)
    assert torch.allclose(given[:, ghosts], y1[:, ghosts], atol=1e-4)


@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_every_ghost_begins_as_some_channel_of_y1_where_the_thin_path_changes_channels(keep: str) -> None:
    """Without shortcuts, the thin path may keep other channels at its end than it reads."""
    ghosted = convert(seeded(NETS["vgg"]), X, **G, keep=keep)
    (stage,) = stages(ghosted.module).values()
    weight = stage.cheap[0].weight.flatten(1)
    assert weight.sum(1).eq(1).all() and weight.square().sum(1).eq(1).all()


@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_every_ghost_learns(keep: str) -> None:
    """Nothing ever reaches a filter of zeros under ReLU, with a mix operation that adds nothing."""
    ghosted = convert(seeded(NETS["vgg"]), X, **G, keep=keep).module.train()
    (stage,) = stages(ghosted).values()
    nn.functional.cross_entropy(ghosted(X), torch.tensor([0, 1])).backward()
    assert stage.cheap[0].weight.grad.flatten(1).abs().sum(1).gt(0).all()
    assert stage.mix.fc.weight.grad.abs().sum(1).gt(0).all()


class Counting(Residual):
    """Counts its calls in a buffer."""

    def __init__(self, c: int) -> None:
        super().__init__(nn.Sequential(conv_bn(c, c), nn.Conv2d(c, c, 3, padding=1)), c, c, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_blocks_remember_nothing_of_being_tried() -> None:
    ghosted = convert(nn.Sequential(conv_bn(3, 16), *(Counting(16) for _ in range(4)), head(16)), X, **G)
    assert stages(ghosted.module)
    assert {key: int(value) for key, value in ghosted.module.named_buffers() if "calls" in key and value} == {}


def test_a_projection_begins_by_picking_the_channels_of_the_thin_path() -> None:
    model = trained_like(seeded(NETS["resnet20"]))
    ghosted = convert(model, X, **G, entry="projection", keep="strongest")
    for stage in stages(ghosted.module).values():
        conv, norm = stage.thin[0].projection
        assert conv.weight.sum() == len(conv.weight) and conv.weight.flatten(1).sum(1).eq(1).all()
        assert norm.weight.eq(1).all() and norm.running_mean.eq(0).all()


def test_thin_blocks_do_what_the_blocks_do_with_the_other_channels_silenced() -> None:
    """By hand: silence the dropped filters and the dropped inputs of block 2, and compare the kept channels."""
    model = trained_like(seeded(NETS["resnet20"]))
    thin = convert(model, X, **G, keep="first").module.layer1[1].thin[0].eval()
    block = copy.deepcopy(model.layer1[1]).eval()
    with torch.no_grad():
        block.conv1.weight[4:], block.conv2.weight[4:] = 0, 0
        for norm in (block.bn1, block.bn2):
            norm.weight[4:], norm.bias[4:] = 0, 0
        y1 = torch.rand(2, 8, 8, 8)
        y1[:, 4:] = 0
        assert torch.allclose(thin(y1[:, :4]), block(y1)[:, :4], atol=1e-5)


@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_blocks_that_read_the_stream_lose_no_input(keep: str) -> None:
    """Block 2 by hand, its own dropped filters silenced: it gives its channels of what the block makes of all of Y1."""
    model = trained_like(seeded(NETS["resnet20"]))
    ghosted = convert(model, X, **G, keep=keep, entry="stream", end=False)
    stage, block, y1 = ghosted.module.layer1[1].eval(), copy.deepcopy(model.layer1[1]).eval(), torch.rand(2, 8, 8, 8)
    kept = list(range(4)) if stage.kept_index is None else stage.kept_index.tolist()
    others = [channel for channel in range(8) if channel not in kept]
    inner = g_ghost.outputs_kept(traced("resnet20"), scanned("resnet20").stages[0], ghosted.plan.swaps[0])
    with torch.no_grad():
        dropped = [channel for channel in range(8) if channel not in inner["layer1.1.conv1"]]
        block.bn1.weight[dropped], block.bn1.bias[dropped] = 0, 0
        given = stage.thin[0](torch.cat([y1[:, kept], y1[:, others]], 1))
        assert torch.allclose(given, block(y1)[:, kept], atol=1e-5)


@pytest.mark.parametrize("net", [net for net in ZOO if net.stages], ids=lambda net: net.name)
def test_any_stage_can_read_its_stream(net: Any) -> None:
    """A rewrite itself refuses thin blocks that do something else, and a cost that is not the predicted one."""
    model, example = seeded(net.build).eval(), net.example()
    ghosted = convert(model, example, **G, entry="stream", inner_width=0.25, round_to=1, ratio=0.25)
    assert {stage.entry for stage in stages(ghosted.module).values()} == {"stream"}
    assert ghosted.after.cost.macs < ghosted.before.cost.macs


@pytest.mark.parametrize(("inner", "width"), [(None, 8), (0.25, 4), (0.75, 12)])
def test_the_width_inside_thin_blocks_is_chosen_apart(inner: float | None, width: int) -> None:
    form = {"inner_width": inner, "round_to": 4, "end": False}
    ghosted = convert(seeded(NETS["resnet20"]), X, **G, **form, include=["layer2"])
    for block in ghosted.module.layer2[1].thin:
        assert (block.conv1.out_channels, block.conv2.out_channels) == (width, 8)


@pytest.mark.parametrize("form", [{}, {"cheap": "3x3"}, {"entry": "projection"}, {"mix": 2}])
def test_the_random_state_does_not_decide_the_weights(form: dict[str, Any]) -> None:
    assert _weights(1, form) == _weights(2, form)


def _weights(seed: int, form: dict[str, Any]) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        ghosted = rewrite(traced("vgg"), plan(scanned("vgg"), **G, **form))
        assert torch.equal(torch.get_rng_state(), before)
    return {key: value.tolist() for key, value in ghosted.module.state_dict().items()}


# -- stages named by hand --------------------------------------------------------------------------------------


def by_hand(name: str, *blocks: str, **form: Any) -> dict[str, Any]:
    """A plan with one stage named by its blocks, as a person writes it."""
    shape = scan(traced(name), stages=[blocks]).stage(blocks)
    assert shape is not None
    (like,) = plan(scanned("vgg"), **G).swaps
    swap = like.model_dump(mode="json") | {"target": "mine", "blocks": blocks, "geometry": shape.geometry} | form
    return _alone(name) | {"swaps": [swap]}


def read(values: dict[str, Any], folder: Path) -> Plan:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(Plan.model_validate(values).model_dump(mode="json")), encoding="utf-8")
    return read_plan(path)


def test_a_stage_may_be_named_by_its_blocks(tmp_path: Path) -> None:
    """Three of the five blocks of a longer one, by a plan that goes through its file."""
    the = trace(seeded(deep), X)
    blocks = ("1.1", "1.2", "1.3", "1.4")
    found = scan(the, stages=[blocks])
    stage = found.stage(blocks)
    assert stage is not None and stage.geometry == "4 x 16 @ 16x16"
    (like,) = plan(scan(the), **G).swaps
    swap = like.model_dump(mode="json") | {"target": "mine", "blocks": blocks, "geometry": stage.geometry}
    values = {"network": found.network, "inputs": found.inputs, "before": found.cost, "swaps": [swap]}
    given = read(values, tmp_path)
    ghosted = rewrite(the, given)
    assert list(stages(ghosted.module)) == ["1.2"]
    assert ghosted.plan.swaps[0].blocks == blocks
    (tmp_path / "again.yaml").write_text(ghosted.plan.to_yaml(), encoding="utf-8")
    again = read_plan(tmp_path / "again.yaml")
    assert again == ghosted.plan
    assert check(again, scan_for(the, again)) == ghosted.plan
    save(ghosted, tmp_path / "run")
    assert torch.equal(outputs(load(tmp_path / "run", model=seeded(deep)).module), outputs(ghosted.module))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (("2", "3", "4"), r"names a block '2', which did not run or is not there"),
        (("layer1.0", "layer1.1", "layer1.3"), r"names a block 'layer1.3'.* Did you mean 'layer1\.\d'\?"),
        (("layer1.0", "layer1.2", "layer1.1"), r"'layer1.2' does not read what 'layer1.0' gives"),
        (("layer1.0", "layer1.1", "layer2.0"), r"'layer1.1' .*|'layer2.0' does not read what 'layer1.1' gives"),
        (("layer1.2", "layer2.0", "layer2.1"), r"are no stage: 'layer2.0' changes its maps' shape"),
        (("layer1.0", "linear", "layer1.1"), r"does not read what"),
    ],
)
def test_blocks_that_are_no_stage_are_refused(blocks: tuple[str, ...], message: str) -> None:
    (like,) = plan(scanned("vgg"), **G).swaps
    swap = like.model_copy(update={"target": "mine", "blocks": blocks})
    with pytest.raises(PlanError, match=message):
        rewrite(traced("resnet20"), Plan.model_validate(_alone("resnet20", swap)))


def test_two_blocks_are_no_stage() -> None:
    values = by_hand("resnet20", "layer1.0", "layer1.1", "layer1.2")
    values["swaps"][0]["blocks"] = ["layer1.0", "layer1.1"]
    with pytest.raises(ValueError, match="at least 3 items"):
        Plan.model_validate(values)


def test_a_stage_of_another_geometry_is_of_another_network() -> None:
    values = by_hand("resnet20", "layer1.0", "layer1.1", "layer1.2", geometry="3 x 64 @ 56x56")
    with pytest.raises(PlanError, match=r"made for another network: 'mine' is 3 x 8 @ 16x16"):
        rewrite(traced("resnet20"), Plan.model_validate(values))


def test_swaps_that_overlap_are_refused() -> None:
    """Two stages of common blocks; a stage and a convolution inside it."""
    the = trace(seeded(deep), X)
    (like,) = plan(scan(the), **G).swaps
    found = scan(the)
    overlapping = [
        like.model_copy(update={"target": name, "blocks": blocks, "geometry": f"{len(blocks)} x 16 @ 16x16"})
        for name, blocks in (("one", ("1.0", "1.1", "1.2", "1.3")), ("two", ("1.2", "1.3", "1.4", "1.5")))
    ]
    common = {"network": found.network, "inputs": found.inputs, "before": found.cost}
    with pytest.raises(PlanError, match=r"The plan swaps '1\.\d' twice"):
        rewrite(the, Plan(swaps=tuple(overlapping), **common))
    conv = next(swap for swap in plan(found, min_saving=0).swaps if swap.target == "1.3.body.1")
    with pytest.raises(PlanError, match=r"twice"):
        rewrite(the, Plan(swaps=(overlapping[0], conv), **common))


def test_stages_that_meet_at_their_ends_are_refused_or_go_together() -> None:
    """The last block of one is the first of the next: one replaces it, the other reads it."""
    the = trace(seeded(partial(deep, 16, 7)), X)
    (like,) = plan(scan(the), **G).swaps
    found = scan(the)
    meeting = tuple(
        like.model_copy(update={"target": name, "blocks": blocks, "geometry": "4 x 16 @ 16x16"})
        for name, blocks in (("one", ("1.0", "1.1", "1.2", "1.3")), ("two", ("1.3", "1.4", "1.5", "1.6")))
    )
    given = Plan(swaps=meeting, network=found.network, inputs=found.inputs, before=found.cost)
    ghosted = rewrite(the, given)
    assert ghosted.after.cost == ghosted.plan.after and ghosted.module(X).shape == (2, 4)


# -- together with C-Ghost -------------------------------------------------------------------------------------


def test_both_takes_stages_and_then_what_is_left() -> None:
    ghosted = convert(seeded(NETS["resnet20"]), X, method="both", min_saving=0)
    by_rule: dict[str, list[str]] = {}
    for swap in ghosted.plan.swaps:
        by_rule.setdefault(swap.rule, []).append(swap.target)
    assert by_rule["g-ghost"] == ["layer1", "layer2", "layer3"]
    assert by_rule["c-ghost"] == [f"layer{i}.0.conv{j}" for i in (1, 2, 3) for j in (1, 2)]
    assert ghosted.after.cost == ghosted.plan.after
    assert all(type(ghosted.module.get_submodule(name)) is CGhost for name in by_rule["c-ghost"])
    inside = [part for stage in stages(ghosted.module).values() for part in stage.modules()]
    assert not any(isinstance(part, CGhost) for part in inside)


def test_a_second_conversion_builds_on_the_first(tmp_path: Path) -> None:
    """C-Ghost after G-Ghost, from a loaded run: the layers of the stage are layers like others."""
    first = convert(seeded(deep), X, **G)
    save(first, tmp_path / "first")
    loaded = load(tmp_path / "first", model=seeded(deep))
    second = convert(loaded.module, X, min_saving=0)
    assert second.after.cost == second.plan.after and second.after.cost.macs < first.after.cost.macs
    assert isinstance(second.module.get_submodule("1.1"), GGhostStage)
    assert any(swap.target.startswith("1.1.thin") for swap in second.plan.swaps)
    assert torch.equal(outputs(loaded.module), outputs(first.module))
    assert second.module(X).shape == (2, 4)


def test_stages_of_c_ghosts_are_thinned_like_others() -> None:
    first = convert(seeded(deep), X, min_saving=0, s=2)
    second = convert(first.module, X, **G)
    assert second.after.cost == second.plan.after and second.after.cost.macs < first.after.cost.macs
    (stage,) = stages(second.module).values()
    assert all(any(isinstance(part, CGhost) for part in thin.modules()) for thin in stage.thin)
    assert second.module(X).shape == (2, 4)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({}, r"has no stage"),
        ({"entry": "projection"}, r"has no stage"),
        ({"mix": 0}, r"changes nothing.*: '1\.1\.thin' is part of the G-Ghost stage '1\.1' already\.$"),
        (
            {"mix": 0, "cheap": "none"},
            r"changes nothing.*: '1\.1\.thin\S*' is part of the G-Ghost stage '1\.1' already\.$",
        ),
    ],
)
def test_a_stage_is_not_made_twice(form: dict[str, Any], reason: str) -> None:
    """Planning a converted network again finds no stage in the stage, or tells what it is part of."""
    with pytest.raises(PlanError, match=reason):
        plan(scan(convert(seeded(deep), X, **G, **form).module, X), **G, **form).require_changes()


# -- blocks that are wired anew --------------------------------------------------------------------------------


class Dropped(nn.Module):
    """A residual block whose body is left out at random in training."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(c, c), nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + (y * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5)) if self.training else y)


def dropping() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), *(Dropped(16) for _ in range(4)), head(16))


@pytest.mark.parametrize("form", [{"entry": "projection"}, {"cheap": "none", "mix": 0}])
def test_blocks_with_dropped_paths_are_not_wired_anew(form: dict[str, Any]) -> None:
    """A recording in evaluation mode would never drop a path again."""
    with pytest.raises(PlanError, match=r"its block \d does something else in training"):
        convert(seeded(dropping), X, **G, **form)
    the = trace(seeded(dropping), X)
    with pytest.raises(RewriteError, match=r"its block \d does something else in training"):
        rewrite(the, plan(scan(the), **G, **form))


def test_blocks_with_dropped_paths_are_sliced_as_they_are() -> None:
    ghosted = convert(seeded(dropping), X, **G)
    (stage,) = stages(ghosted.module).values()
    assert all(type(block) is Dropped for block in stage.thin)
    block, x = stage.thin[0].train(), torch.randn(64, 8, 4, 4)
    kept = (block(x) == x).flatten(1).all(1)
    assert kept.any() and not kept.all()


def test_sizes_written_out_are_brought_in_line() -> None:
    ghosted = convert(seeded(scaled_stage), X[:, :, :8, :8], **G)
    (stage,) = stages(ghosted.module).values()
    assert {type(block).__name__ for block in stage.thin} == {"RewiredBlock"}
    assert ghosted.module(torch.randn(5, 3, 12, 12)).shape == (5, 4)


def test_channels_that_change_places_are_wired_anew() -> None:
    """A channel shuffle of other than the first channels puts them in another order."""
    ghosted = convert(seeded(shuffle_stage), X, **G, keep="strongest")
    (stage,) = stages(ghosted.module).values()
    assert {type(block).__name__ for block in stage.thin} == {"RewiredBlock"}
    assert ghosted.module(torch.randn(3, 3, 12, 12)).shape == (3, 4)


def uneven() -> nn.Module:
    """Residual blocks whose grouped convolution has twice as many filters as inputs."""

    def block() -> nn.Module:
        body = nn.Sequential(conv_bn(16, 16, 1), conv_bn(16, 32, groups=4), nn.Conv2d(32, 16, 1))
        return Residual(body, 16, 16, 1)

    return nn.Sequential(conv_bn(3, 16), *(block() for _ in range(4)), head(16))


def test_a_group_width_says_nothing_to_groups_of_unequal_sides() -> None:
    ghosted = convert(seeded(uneven), X, **G, group_width=0.5)
    assert ghosted.after.cost == convert(seeded(uneven), X, **G).after.cost


def test_groups_of_unequal_sides_are_dropped_whole() -> None:
    ghosted = convert(seeded(uneven), X, **G)
    (stage,) = stages(ghosted.module).values()
    assert [m.groups for m in stage.thin.modules() if isinstance(m, nn.Conv2d) and m.groups > 1] == [2, 2]


class Gated(nn.Module):
    """A gate in the block's own forward, with the batch read off the input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.fc = conv_bn(c, c), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return nn.functional.relu(x + y * torch.sigmoid(self.fc(y.mean((2, 3)))).view(x.size(0), -1, 1, 1))


def reading_sizes() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), *(Gated(16) for _ in range(4)), head(16))


@pytest.mark.parametrize("form", [{"entry": "projection"}, {"cheap": "none", "mix": 0}])
def test_blocks_that_read_sizes_off_their_input_are_not_wired_anew(form: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"does something else in training or at another size"):
        convert(seeded(reading_sizes), X, **G, **form)


def test_blocks_that_read_sizes_off_their_input_are_sliced_as_they_are() -> None:
    assert convert(seeded(reading_sizes), X, **G).module(torch.randn(3, 3, 20, 20)).shape == (3, 4)


class Attentive(nn.Module):
    """A residual block with a gate by a convolution over the channels (ECA)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body, self.slide = conv_bn(c, c), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * torch.sigmoid(self.slide(y.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(-1)


class Rescaled(nn.Module):
    """A residual block that goes down and up again."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(c, c, stride=2), nn.ConvTranspose2d(c, c, 2, 2), conv_bn(c, c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@pytest.mark.parametrize(("block", "kept"), [(Attentive, "first"), (Rescaled, "strongest")])
@pytest.mark.parametrize("asked", [{}, {"keep": "strongest"}])
def test_stages_of_less_usual_layers_are_costed_rightly(
    block: type[nn.Module], kept: str, asked: dict[str, Any]
) -> None:
    """Where a filter slides over the channels, the first are kept whatever is asked for."""
    net = nn.Sequential(conv_bn(3, 16), *(block(16) for _ in range(4)), head(16))
    ghosted = convert(net, X, **G, **asked)
    (stage,) = stages(ghosted.module).values()
    assert ghosted.plan.swaps[0].keep == kept
    assert (stage.kept_index is None) == (kept == "first")
    assert ghosted.after.cost == ghosted.plan.after


# -- what comes out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"entry": "projection"}, {"mix": 2, "keep": "strongest"}])
def test_the_result_is_a_module_like_any(form: dict[str, Any]) -> None:
    """Copied, pickled, and its state dict loaded elsewhere: bit-equal."""
    ghosted = convert(seeded(NETS["resnet20"]), X, **G, **form).module
    expected = outputs(ghosted)
    stream = io.BytesIO()
    torch.save(ghosted, stream)
    stream.seek(0)
    other = convert(seeded(NETS["resnet20"]), X, **G, **form).module
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(3.0)
    other.load_state_dict(ghosted.state_dict(), strict=True)
    for again in (copy.deepcopy(ghosted), torch.load(stream, weights_only=False), other):
        assert torch.equal(outputs(again), expected)


@pytest.mark.parametrize(
    "form", [{}, {"preset": "cifar"}, {"mix": 2, "keep": "strongest"}, {"entry": "projection", "keep": "strongest"}]
)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "vgg"])
def test_a_run_folder_gives_it_back(name: str, form: dict[str, Any], tmp_path: Path) -> None:
    """The weights decide which are strongest only when it is made: loading starts from any weights."""
    ghosted = convert(trained_like(seeded(NETS[name])), X, **G, **form)
    save(ghosted, tmp_path / "run")
    blank = NETS[name]()
    again = load(tmp_path / "run", model=blank)
    assert again.plan == ghosted.plan
    assert torch.equal(outputs(again.module), outputs(ghosted.module))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training: bool) -> None:
    model = seeded(NETS["vgg"]).train(training)
    ghosted = convert(model, X, **G).module
    assert all(part.training == training for part in ghosted.modules())
    assert all(part.training == training for part in model.modules())


def test_what_is_left_of_a_block_has_its_mode() -> None:
    model = seeded(deep)
    model[1][3].eval()
    new = convert(model, X, **G).module[1]
    assert [type(part) for part in new[2:]] == [nn.Identity] * 4
    assert (
        [part.training for part in new] == [part.training for part in model[1]] == [True, True, True, False, True, True]
    )


@pytest.mark.parametrize("name", ["mobilenet", "vgg"])
@pytest.mark.parametrize("training", [True, False])
def test_the_result_with_two_mix_layers_can_be_traced_symbolically(name: str, training: bool) -> None:
    """In training too, though its norms of pooled maps do something else on a single value; batches stay open."""
    ghosted = convert(trained_like(seeded(NETS[name])), X, **G, mix=2).module
    for x in (X, X[:1]):
        module = copy.deepcopy(ghosted).train(training)
        graph = torch.fx.symbolic_trace(copy.deepcopy(module))
        assert torch.equal(graph(x), module(x))
        state = graph.state_dict()
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items() if key in state)
        assert {key for key in module.state_dict() if "running" in key} <= state.keys()


def test_the_result_with_two_mix_layers_takes_synchronised_norms() -> None:
    ghosted = convert(trained_like(seeded(NETS["vgg"])), X, **G, mix=2).module
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(ghosted))
    norms = [part for part in synchronised.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in ghosted.modules())
    assert all(type(norm) is nn.SyncBatchNorm for norm in norms)
    assert torch.equal(outputs(synchronised), outputs(ghosted))


@pytest.mark.parametrize("form", [{}, {"entry": "projection"}, {"mix": 2}, {"keep": "strongest"}])
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 3, 20, 24)])
def test_other_batches_and_sizes_run(form: dict[str, Any], shape: tuple[int, ...]) -> None:
    """In evaluation and in training: a batch of one has a mix operation of two layers with norms on 1x1 maps."""
    ghosted = convert(seeded(NETS["resnet20"]), X, **G, **form).module
    x = torch.randn(shape)
    assert outputs(ghosted, x).shape == (shape[0], 10)
    assert ghosted.train()(x).isfinite().all()


@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "vgg"])
@pytest.mark.parametrize("form", [{}, {"entry": "projection", "mix": 2, "cheap_input": "full"}])
def test_gradients_reach_every_parameter_and_learning_moves_the_mix(name: str, form: dict[str, Any]) -> None:
    ghosted = convert(seeded(NETS[name]), X, **G, **form).module.train()
    optimiser = torch.optim.SGD(ghosted.parameters(), 0.05)
    for _ in range(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(ghosted(X), torch.tensor([0, 1])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ghosted.parameters())
        optimiser.step()
    for stage in stages(ghosted).values():
        final = stage.mix.fc if isinstance(stage.mix.fc, nn.Linear) else stage.mix.fc[-1]
        assert final.weight.abs().sum() > 0


@pytest.mark.parametrize("form", [{}, {"entry": "projection"}, {"keep": "strongest"}])
def test_the_result_compiles_whole_and_exports(form: dict[str, Any]) -> None:
    ghosted = convert(seeded(NETS["resnet20"]), X, **G, **form).module.eval()
    expected = outputs(ghosted)
    try:
        compiled = torch.compile(ghosted, backend="eager", fullgraph=True)
        with torch.no_grad():
            assert torch.allclose(compiled(X), expected, atol=1e-6)
    finally:
        torch._dynamo.reset()
    exported = torch.export.export(ghosted, (X,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(X), expected, atol=1e-6)


def test_on_meta_it_costs_what_it_costs_in_memory() -> None:
    real = convert(seeded(NETS["vgg"]), X, **G)
    meta = convert(NETS["vgg"]().to("meta"), X.to("meta"), **G)
    assert meta.plan == real.plan and meta.after == real.after


def test_half_precision_is_kept() -> None:
    ghosted = convert(seeded(gated_stage).to(torch.bfloat16), X.to(torch.bfloat16), **G).module
    assert {p.dtype for p in ghosted.parameters()} == {torch.bfloat16}


def test_the_table_tells_the_stages() -> None:
    ghosted = convert(seeded(NETS["resnet20"]), X, **G, set={"layer3": {"ratio": 0.25, "mix": 0}})
    text = str(ghosted.plan)
    assert "3 swaps" in text and "λ=0.5 1x1 mix1+Y1 end" in text and "λ=0.25 1x1 end" in text


def test_shuffles_and_stages_without_shortcut_work() -> None:
    net = nn.Sequential(conv_bn(3, 64), *(Shuffle(64) for _ in range(5)), head(64))
    ghosted = convert(net, X, GhostSettings(method="g-ghost"))
    assert isinstance(ghosted.plan.swaps[0], GGhostSwap) and not isinstance(ghosted.plan.swaps[0], CGhostSwap)
    assert ghosted.after.cost.macs < ghosted.before.cost.macs and ghosted.after.cost != Cost()
