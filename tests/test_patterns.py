"""What patterns of names mean, in every method; and settings that would be ignored."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from zoo import ZOO, Residual, conv_bn, head

from ghostify import Plan, Scan, convert, plan, scan
from ghostify.errors import GhostifyError, PlanError, RecipeError
from ghostify.names import matches
from ghostify.networks import resnet8, resnet20
from ghostify.planning import check
from ghostify.recipe import GhostSettings, make_recipe, make_settings, read_recipe
from ghostify.shipped import find_recipe, shipped_recipes

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
METHODS: dict[str, dict[str, Any]] = {
    "c-ghost": {"min_saving": 0},
    "g-ghost": {},
    "both": {"min_saving": 0},
    "width": {"width": 0.5, "round_to": 2},
    "thin": {"width": 0.5, "round_to": 2},
}


@cache
def scanned(method: str) -> Scan:
    """resnet20, for plans by that method."""
    return scan(resnet20(), X, whole=True, stream="kept" if method == "thin" else "scaled")


@pytest.mark.parametrize(
    ("name", "pattern", "meant"),
    [
        ("layer4.0.conv1", "layer4", True),
        ("layer4.0.conv1", "layer4.0", True),
        ("layer40.conv1", "layer4", False),
        ("layer4.0.conv1", "layer[34]", True),
        ("layer4.0.conv1", "*.conv1", True),
        ("layer4.0.conv1.inner", "*.conv1", True),
        ("layer4.0.conv1", "layer4.", False),
        ("layer4.0:conv2d", "layer4.0", True),
        ("(root):conv2d", "*", True),
        ("anything", "", True),
        ("rows[0].conv", "rows[0]", True),
    ],
)
def test_a_name_means_all_that_lies_in_it(name: str, pattern: str, meant: bool) -> None:
    assert matches(name, pattern) is meant


@pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)
def test_an_exclusion_takes_away_the_swaps_within_and_no_others(net: Any) -> None:
    """Of convolutions; every child of the network is excluded once, by its name."""
    model = net.build()
    seen = scan(model, net.example())
    whole = plan(seen, min_saving=0, also=["stem", "classifier"]).swaps
    for child, _ in model.named_children():
        left = plan(seen, min_saving=0, also=["stem", "classifier"], exclude=[child]).swaps
        aliases = {swap.target: seen.site(swap.target).names for swap in whole}  # type: ignore[union-attr]
        within = {name for name, names in aliases.items() if any(n.split(".")[0] == child for n in names)}
        assert left == tuple(swap for swap in whole if swap.target not in within)


LEAVES_NOTHING = {("g-ghost", "*.bn1"), ("thin", "*.bn1")}
"""A norm of every block is excluded, so no stage and no inside of a block may change."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("excluded", ["layer3", "layer2.1", "layer2.1.conv2", "layer[12].2", "*.bn1", "layer3.0"])
def test_what_is_excluded_keeps_every_weight_under_any_method(method: str, excluded: str) -> None:
    model = resnet20()
    if (method, excluded) in LEAVES_NOTHING:
        with pytest.raises(PlanError, match=r"changes nothing|no width that may change"):
            convert(model, X, method=method, exclude=[excluded], **METHODS[method])
        return
    ghosted = convert(model, X, method=method, exclude=[excluded], **METHODS[method])
    after = ghosted.module.state_dict()
    kept = {name: tensor for name, tensor in model.state_dict().items() if matches(name, excluded)}
    assert kept
    assert [name for name, tensor in kept.items() if name not in after or not torch.equal(after[name], tensor)] == []
    assert ghosted.plan.exclude and all(ghosted.plan.excludes(name) for name in kept)


def test_a_stage_that_holds_an_excluded_layer_is_left_alone_with_that_reason() -> None:
    net = nn.Sequential(
        conv_bn(3, 16), nn.Sequential(*(Residual(conv_bn(16, 16), 16, 16, 1) for _ in range(4))), head(16)
    )
    seen = scan(net, torch.zeros(1, 3, 8, 8))
    for pattern in ("1.2", "1.2*", "*.2.*"):
        assert "excluded" in next(
            s.reason for s in plan(seen, method="g-ghost", exclude=[pattern]).skips if s.target == "1"
        )
    assert plan(seen, method="g-ghost", exclude=["1.0"]).swaps, "the first block stays as it is"


class Twice(nn.Module):
    """Its body has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), conv_bn(16, 16))
        self.features = self.body

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def test_a_pattern_may_use_any_name_of_a_module() -> None:
    seen = scan(Twice(), X)
    for name in ("body.1", "features.1"):
        assert [swap.target for swap in plan(seen, min_saving=0, exclude=[name]).swaps] == ["body.2.0"]
        assert {swap.s for swap in plan(seen, min_saving=0, include=[name], set={name: {"s": 4}}).swaps} == {4}


def test_stages_are_meant_by_their_names_and_by_all_that_is_in_them() -> None:
    seen = scan(resnet20(), X)
    for pattern in ("layer3", "layer3.*", "layer[3]"):
        assert [swap.target for swap in plan(seen, method="g-ghost", include=[pattern]).swaps] == ["layer3"]
        by_name = plan(seen, method="g-ghost", set={pattern: {"ratio": 0.25}}).swaps
        assert [swap.ratio for swap in by_name] == [0.5, 0.5, 0.25]  # type: ignore[union-attr]


@pytest.mark.parametrize("given", ["layer5", "layer3.", "model.layer3", "Layer3", "layer3/0"])
@pytest.mark.parametrize("method", METHODS)
def test_the_nearest_name_is_never_the_one_given(given: str, method: str) -> None:
    with pytest.raises(PlanError, match="matches no layer or stage") as refused:
        plan(scanned(method), method=method, exclude=[given])
    assert f"Did you mean {given!r}" not in str(refused.value) and "Did you mean 'layer" in str(refused.value)


def test_a_module_without_convolutions_may_be_excluded() -> None:
    assert plan(scan(resnet20(), X), exclude=["bn1"]).swaps == plan(scan(resnet20(), X)).swaps


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"set": {"conv1": {"s": 4}}}, "set 'conv1': s = 4 changes nothing.*the stem is kept by default"),
        ({"set": {"layer1": {"s": 4}}, "exclude": ["layer1"]}, r"s = 4 changes nothing.*excluded by 'layer1'"),
        ({"set": {"bn1": {"s": 4}}}, "because no convolution of its own is in it"),
        ({"method": "both", "set": {"layer3.1": {"s": 4}}}, "changes nothing"),
        ({"method": "g-ghost", "set": {"layer3.1": {"ratio": 0.3}}}, "because no stage of its own is in it"),
    ],
)
def test_what_is_set_by_name_and_reaches_no_swap_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan(scan(resnet20(), X), **changes)


# -- settings that would be ignored ----------------------------------------------------------------------------

OF_CONVS = {"s": 4, "d": 5, "pointwise": "none", "parts": "norm-act", "also": ["stem"], "min_saving": 4}
OF_STAGES = {
    "ratio": 0.5,
    "preset": "cifar",
    "cheap": "3x3",
    "cheap_input": "full",
    "entry": "slice",
    "mix": 2,
    "end": False,
}
OF_NARROWER = {"width": 0.5}
OF_ROUNDED = {"round_to": 4, "rounding": "down", "keep": "first", "group_width": 0.5}
TAKEN = {
    "c-ghost": OF_CONVS | {"round_to": 4},  # of intrinsic maps
    "g-ghost": OF_STAGES | OF_ROUNDED,
    "both": OF_CONVS | OF_STAGES | OF_ROUNDED,
    "width": OF_NARROWER | OF_ROUNDED,
    "thin": OF_NARROWER | OF_ROUNDED,
}
EVERY = OF_CONVS | OF_STAGES | OF_NARROWER | OF_ROUNDED


@pytest.mark.parametrize("method", TAKEN)
@pytest.mark.parametrize("name", EVERY)
def test_each_setting_is_taken_by_its_methods_and_refused_by_the_others(method: str, name: str) -> None:
    seen = scanned(method)
    ways = [
        lambda: plan(seen, method=method, **{name: EVERY[name]}),
        lambda: plan(seen, GhostSettings(method=method, **{name: EVERY[name]})),
        lambda: make_recipe({"model": {"source": "x:y"}, "ghost": {"method": method, name: EVERY[name]}}),
        lambda: make_recipe({"model": {"source": "x:y"}}, {"ghost.method": method, f"ghost.{name}": EVERY[name]}),
    ]
    for way in ways:
        if name in TAKEN[method]:
            way()
        else:
            with pytest.raises(RecipeError, match=rf"{name} = .* has no effect with method {method}; choose method "):
                way()


def test_the_message_says_which_method_takes_it() -> None:
    with pytest.raises(RecipeError) as refused:
        convert(resnet18(), X, width=0.5)
    assert str(refused.value) == "width = 0.5 has no effect with method c-ghost; choose method width, thin or mixed."


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"fit.how": "data", "fit.seconds": 5, "data.source": "digits"}, "fit.seconds = 5 has no effect with how data"),
        ({"fit.how": "none", "fit.images": 64}, "fit.images = 64 has no effect with how none"),
        ({"fit.images": 64}, "fit.images = 64 has no effect without images"),
        ({"finetune.lr": 0.1}, "finetune.lr = 0.1 has no effect without finetune.epochs"),
        ({"finetune.distill": 0.7}, "has no effect without finetune.epochs"),
        ({"finetune.epochs": 0, "finetune.distill": 0.7}, "finetune.distill = 0.7 has no effect with epochs 0"),
        ({"finetune.epochs": 1, "finetune.temperature": 2}, "temperature = 2 has no effect with distill 0"),
        ({"ghost.method": "g-ghost", "ghost.mix": 0, "ghost.mix_y1": True}, "mix_y1 = true has no effect with mix 0"),
        ({"data.batch_size": 4}, "data.source"),
    ],
)
def test_settings_without_what_they_belong_to_are_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_recipe({"model": {"source": "x:y"}}, overrides)


def test_a_recipe_of_one_method_is_carried_out_by_another() -> None:
    """What is given later decides; what it leaves without an effect falls away."""
    values = {"model": {"source": "x:y"}, "ghost": {"s": 4, "set": {"layer1": {"s": 2}}}, "finetune": {"lr": 0.1}}
    wide = make_recipe(values, {"ghost.method": "width", "ghost.width": 0.5, "finetune.epochs": 0})
    assert wide.ghost == GhostSettings(method="width", width=0.5) and wide.finetune is not None
    assert wide.finetune.model_fields_set == {"epochs"}
    with pytest.raises(RecipeError, match="s = 3 has no effect with method width"):
        make_recipe(values, {"ghost.method": "width", "ghost.s": 3})
    assert plan(scan(resnet20(), X), GhostSettings(s=4), method="g-ghost").swaps


def test_every_recipe_that_comes_with_it_and_its_dump_pass() -> None:
    for name in shipped_recipes():
        recipe = read_recipe(find_recipe(name))
        assert make_recipe(recipe.model_dump(mode="json")) == recipe


# -- widths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["width", "thin"])
@pytest.mark.parametrize("round_to", [4, 8])
@pytest.mark.parametrize("width", [0.1, 0.3, 0.6])
def test_widths_are_multiples_of_round_to_at_least_one(method: str, round_to: int, width: float) -> None:
    model = resnet8()
    narrow = dict(convert(model, X, method=method, width=width, round_to=round_to).module.named_modules())
    convs = {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    widths = [(part.out_channels, narrow[name].out_channels) for name, part in convs.items()]
    assert any(was != now for was, now in widths)
    assert all(now == was or (now % round_to == 0 and now >= round_to) for was, now in widths)


# -- plans edited by hand --------------------------------------------------------------------------------------


def test_a_plan_that_swaps_what_it_excludes_is_refused() -> None:
    seen = scan(resnet20(), X)
    for given in (plan(seen), plan(seen, method="g-ghost")):
        edited = Plan.model_validate({**given.model_dump(mode="json"), "exclude": ["layer2"]})
        with pytest.raises(GhostifyError, match="its exclude keeps 'layer2"):
            check(edited, seen)


def test_a_layer_named_twice_in_a_plan_is_told_with_both_places() -> None:
    seen = scan(resnet20(), X)
    values = plan(seen).model_dump(mode="json")
    values["swaps"].append(values["swaps"][1])
    with pytest.raises(PlanError, match=rf"twice: swaps\.1 and swaps\.{len(values['swaps']) - 1} \(counted from 0\)"):
        check(Plan.model_validate(values), seen)


@pytest.mark.parametrize("method", ["c-ghost", "g-ghost", "both", "auto", "width", "thin"])
def test_to_leave_out_nothing_is_fine_with_every_method(method: str) -> None:
    make_settings(GhostSettings, None, {"method": method, "min_saving": 0})
