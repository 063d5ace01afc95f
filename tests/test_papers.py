"""The C-Ghost rows of the papers come out exactly, from the shipped recipes through scan, plan and rewrite.

Tables 4 to 7 of the IJCV paper.  What the paper calls FLOPs are MACs; it prints them in millions, rounded or cut off,
and its ResNet50 parameters (13.0M, 6.5M) and its ResNet56 at d = 3 (0.43M, 63M) follow from no rule that was tried.
The integers are those of the structures the recipes' heads describe, counted once by other means.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from paper_rows import ghosted, head_of, network, recipe_of, traced
from torch import nn

from ghostify import Recipe, read_plan, rewrite, scan
from ghostify.costs import Cost
from ghostify.ghosts import CGhost
from ghostify.shipped import shipped_recipes

BASELINES = {
    "ghostify:vgg16_cifar": Cost(params=14_987_722, macs=313_463_808, acts=276_480),
    "ghostify:resnet56": Cost(params=853_018, macs=125_485_696, acts=532_480),
    "torchvision:resnet50": Cost(params=25_557_032, macs=4_089_184_256, acts=11_113_984),
}

ROWS = [
    # table, recipe, swaps, parameters, MACs, activations, and what the paper prints where it follows
    ("4", "c-ghost-vgg16-s2-d1", 13, 7_634_602, 157_003_776, 276_480, "7.6M", "157M"),
    ("4, 5, 6", "c-ghost-vgg16-s2-d3", 13, 7_651_498, 158_109_696, 276_480, "7.7M", "158M"),
    ("4", "c-ghost-vgg16-s2-d5", 13, 7_685_290, 160_321_536, 276_480, "7.7M", "160M"),
    ("4", "c-ghost-vgg16-s2-d7", 13, 7_735_978, 163_639_296, 276_480, "7.7M", "163M"),
    ("5", "c-ghost-vgg16-s3-d3", 13, 5_219_464, 107_240_040, 281_532, "5.2M", "107M"),
    ("5", "c-ghost-vgg16-s4-d3", 13, 3_983_386, 80_432_640, 276_480, "4.0M", "80M"),
    ("5", "c-ghost-vgg16-s5-d3", 13, 3_270_649, 65_665_296, 280_500, "3.3M", "65M"),
    ("6", "c-ghost-resnet56-s2-d3", 55, 438_010, 65_139_328, 532_480, None, None),
    ("6", "c-ghost-resnet56-s2-d3-stem-kept", 54, 438_154, 65_286_784, 532_480, None, None),
    ("6", "c-ghost-resnet56-s2-d1", 55, 429_882, 63_009_408, 532_480, "0.43M", "63M"),
    ("6", "c-ghost-resnet56-s2-d1-stem-kept", 54, 430_090, 63_222_400, 532_480, "0.43M", "63M"),
    ("7", "c-ghost-resnet50-s2-d3", 52, 13_953_512, 2_151_023_360, 11_113_984, None, "2.2B"),
    ("7", "c-ghost-resnet50-s4-d3", 52, 8_151_752, 1_181_942_912, 11_113_984, None, "1.2B"),
    ("7", "c-ghost-resnet50-s2-d3-stem", 53, 13_949_096, 2_095_629_056, 11_113_984, None, None),
    ("7", "c-ghost-resnet50-s2-d3-classifier", 53, 12_934_012, 2_150_003_860, 11_114_984, None, None),
    ("7", "c-ghost-resnet50-s2-d3-stem-classifier", 54, 12_929_596, 2_094_609_556, 11_114_984, None, None),
]
IDS = [f"table {row[0]}: {row[1]}" for row in ROWS]


@pytest.mark.parametrize("source", BASELINES)
def test_the_originals_cost_what_the_papers_say(source: str) -> None:
    found = scan(traced(source))
    assert found.cost == BASELINES[source]
    assert found.unknown == {}


@pytest.mark.parametrize(("table", "name", "swaps", "params", "macs", "acts", "m", "f"), ROWS, ids=IDS)
def test_a_row_comes_out_exactly(
    table: str, name: str, swaps: int, params: int, macs: int, acts: int, m: str | None, f: str | None
) -> None:
    """Counted on the rewritten module, not only predicted."""
    result = ghosted(name)
    assert result.after.cost == result.plan.after == Cost(params=params, macs=macs, acts=acts)
    assert result.before.cost == BASELINES[recipe_of(name).model.source]
    assert len(result.plan.swaps) == swaps
    assert sum(isinstance(part, CGhost) for part in result.module.modules()) == swaps


@pytest.mark.parametrize(("table", "name", "swaps", "params", "macs", "acts", "m", "f"), ROWS, ids=IDS)
def test_a_row_is_what_equations_one_to_three_add_up_to(
    table: str, name: str, swaps: int, params: int, macs: int, acts: int, m: str | None, f: str | None
) -> None:
    """Worked out from the shapes of the original layers alone: m·c·k² + m·(s−1)·d² per position, m = ⌈n/s⌉."""
    recipe = recipe_of(name)
    cost = BASELINES[recipe.model.source]
    s, d = recipe.ghost.s, recipe.ghost.cheap.depthwise
    for target, layer in network(recipe.model.source).named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or not is_replaced(target, recipe):
            continue
        n, filter_size = layer.weight.shape[0], layer.weight[0].numel()
        width, positions = -(-n // s), maps(recipe.model.source)[target]
        weights, bias = width * (filter_size + (s - 1) * d * d), layer.bias is not None
        cost += Cost(
            params=weights - n * filter_size + bias * (s * width - n),
            macs=positions * (weights - n * filter_size),
            acts=positions * (s * width - (n if isinstance(layer, nn.Conv2d) else 0)),
        )
    assert cost == Cost(params=params, macs=macs, acts=acts)


def is_replaced(target: str, recipe: Recipe) -> bool:
    """What the heads of the recipes say in words."""
    first = {"ghostify:vgg16_cifar": "features.0", "ghostify:resnet56": "conv1", "torchvision:resnet50": "conv1"}
    if target == first[recipe.model.source]:
        return "stem" in recipe.ghost.also
    if target.startswith(("classifier", "linear", "fc")):
        return "classifier" in recipe.ghost.also
    return True


@cache
def maps(source: str) -> dict[str, int]:
    """Output positions of every layer, seen by hooks."""
    seen: dict[str, int] = {}
    model = network(source)
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out[0, 0].numel()}))
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    model(torch.zeros(2, 3, *(224, 224) if "resnet50" in source else (32, 32), device="meta"))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(("table", "name", "swaps", "params", "macs", "acts", "m", "f"), ROWS, ids=IDS)
def test_a_row_prints_as_the_paper_prints_it(
    table: str, name: str, swaps: int, params: int, macs: int, acts: int, m: str | None, f: str | None
) -> None:
    """Millions of MACs are cut off, billions and parameters rounded; None where the paper's figure does not follow."""
    digits = len(m.rstrip("M").partition(".")[2]) if m else 0
    assert m in (None, f"{params / 1e6:.{digits}f}M")
    assert f in (None, f"{macs // 10**6}M", f"{macs / 1e9:.1f}B")


@pytest.mark.parametrize(("name", "params", "macs", "acts"), [(row[1], *row[3:6]) for row in ROWS])
def test_the_head_of_a_recipe_tells_the_row(name: str, params: int, macs: int, acts: int) -> None:
    assert f"{params:,} parameters, {macs:,} MACs, {acts:,} activations" in head_of(name)


def test_every_shipped_c_ghost_recipe_is_a_row() -> None:
    shipped = {Path(name).name for name in shipped_recipes() if name.startswith("papers/c-ghost-")}
    assert shipped == {row[1] for row in ROWS}


def test_a_row_survives_as_a_plan_file(tmp_path: Path) -> None:
    """The papers' choices are data: the plan alone gives the same network."""
    name = "c-ghost-resnet50-s2-d3-stem-classifier"
    result, path = ghosted(name), tmp_path / "plan.yaml"
    path.write_text(result.plan.to_yaml(), encoding="utf-8")
    recipe = recipe_of(name)
    again = rewrite(traced(recipe.model.source), read_plan(path))
    assert again.after == result.after
