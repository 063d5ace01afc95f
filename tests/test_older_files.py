"""Files as earlier versions wrote them: they are read, and make the network that they made.

Plans of format 1 and recipes of that time told the cheap operation of a C-Ghost module by two numbers, the size d of
depthwise filters and the rank of a pointwise convolution.  What follows was written by such a version, word for word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import ghostify
from ghostify import plan, read_plan, rewrite, scan, trace
from ghostify.costs import Cost
from ghostify.networks import resnet8
from ghostify.planning import FORMAT, check, scan_for
from ghostify.recipe import read_recipe
from ghostify.reporting import Report

PLAN = """\
format: 1
network: CifarResNet
inputs:
- [1, 3, 8, 8]
swaps:
- target: layer1.0.conv1
  geometry: 12→12 3x3
  before: {params: 1296, macs: 82944, acts: 768}
  after: {params: 702, macs: 44928, acts: 768}
  rule: c-ghost
  s: 2
  d: 3
  parts: linear
  pointwise: 0
  ordered: false
- target: layer1.0.conv2
  geometry: 12→12 3x3
  before: {params: 1296, macs: 82944, acts: 768}
  after: {params: 690, macs: 44160, acts: 1152}
  rule: c-ghost
  s: 2
  d: 1
  parts: linear
  pointwise: 6
  ordered: false
- target: layer2.0.conv1
  geometry: 12→24 3x3 /2
  before: {params: 2592, macs: 41472, acts: 384}
  after: {params: 1312, macs: 20992, acts: 672}
  rule: c-ghost
  s: 3
  d: 5
  parts: linear
  pointwise: 2
  ordered: false
- target: layer2.0.conv2
  geometry: 24→24 3x3
  before: {params: 5184, macs: 82944, acts: 384}
  after: {params: 2748, macs: 43200, acts: 384}
  rule: c-ghost
  s: 2
  d: 3
  parts: norm-act
  pointwise: 0
  ordered: false
- target: layer3.0.conv1
  geometry: 24→48 3x3 /2
  before: {params: 10368, macs: 41472, acts: 192}
  after: {params: 5976, macs: 23904, acts: 288}
  rule: c-ghost
  s: 2
  d: 3
  parts: linear
  pointwise: 24
  ordered: false
- target: layer3.0.conv2
  geometry: 48→48 3x3
  before: {params: 20736, macs: 82944, acts: 192}
  after: {params: 11160, macs: 44640, acts: 288}
  rule: c-ghost
  s: 2
  d: 3
  parts: linear
  pointwise: 24
  ordered: false
skips:
- {target: conv1, reason: 'reads the network''s input, and the stem is kept by default (also: [stem] takes it)'}
- {target: linear, reason: 'is a linear layer, not a convolution, and kept by default (also: [classifier] takes it)'}
before: {params: 42646, macs: 435936, acts: 3456}
after: {params: 23762, macs: 243040, acts: 4320}
exclude: []
"""
TENSORS = """\
layer1.0.conv1.primary.weight 6 12 3 3
layer1.0.conv1.cheap.0.weight 6 1 3 3
layer1.0.conv2.primary.weight 6 12 3 3
layer1.0.conv2.cheap.0.weight 6 1 1 1
layer1.0.conv2.pointwise.weight 6 6 1 1
layer2.0.conv1.primary.weight 8 12 3 3
layer2.0.conv1.cheap.0.weight 8 1 5 5
layer2.0.conv1.cheap.1.weight 8 1 5 5
layer2.0.conv1.pointwise.0.weight 2 8 1 1
layer2.0.conv1.pointwise.1.weight 16 2 1 1
layer2.0.conv2.primary.0.weight 12 24 3 3
layer2.0.conv2.cheap.0.0.weight 12 1 3 3
layer3.0.conv1.primary.weight 24 24 3 3
layer3.0.conv1.cheap.0.weight 24 1 3 3
layer3.0.conv1.pointwise.weight 24 24 1 1
layer3.0.conv2.primary.weight 24 48 3 3
layer3.0.conv2.cheap.0.weight 24 1 3 3
layer3.0.conv2.pointwise.weight 24 24 1 1
"""
"""The convolutions of that network, as its run folder holds them."""
RECIPE = """\
model:
  source: ghostify:resnet8
  args: {width: 12}
  input: [3, 8, 8]
ghost:
  cheap: null
  cheap_input: null
  entry: null
  mix: null
  mix_y1: null
  end: null
  group_width: null
  keep: null
  method: METHOD
  s: 2
  d: 3
  parts: linear
  pointwise: auto
  include: ['*']
  exclude: []
  also: []
  min_saving: 0.0
  ratio: 0.5
  preset: default
  width: 0.75
  round_to: 8
  rounding: nearest
  set:
    layer1.0.conv1: {cheap: null, mix: null, s: null, d: null, parts: null, pointwise: none, ratio: null}
    layer1.0.conv2: {cheap: null, mix: null, s: null, d: 1, parts: null, pointwise: full, ratio: null}
    layer2.0.conv1: {cheap: null, mix: null, s: 3, d: 5, parts: null, pointwise: 2, ratio: null}
    layer2.0.conv2: {cheap: null, mix: null, s: null, d: null, parts: norm-act, pointwise: null, ratio: null}
fit:
  {how: auto, images: 512, seconds: 60.0, compensate: true, rectified: true, kept: true, arrange: select, joint: true}
"""
"""A whole one, as a run folder keeps it: a program filled in what nobody had set."""
X = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def old_plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    return path


def recipe(folder: Path, text: str) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


def convolutions(module: nn.Module) -> dict[str, tuple[int, ...]]:
    found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return {name: shape for name, shape in found.items() if name.startswith("layer") and len(shape) == 4}


def test_a_plan_of_format_1_costs_what_it_says_and_makes_the_tensors_it_made(old_plan: Path) -> None:
    """Its prices were worked out by the version that wrote it; here they are worked out anew, and counted."""
    read, traced = read_plan(old_plan), trace(resnet8(width=12), X)
    agreed, written = check(read, scan(traced)), yaml.safe_load(PLAN)
    assert [swap.after for swap in agreed.swaps] == [Cost(**swap["after"]) for swap in written["swaps"]]
    assert agreed.after == Cost(**written["after"])
    ghosted = rewrite(traced, agreed)
    expected = {name: tuple(map(int, shape)) for name, *shape in map(str.split, TENSORS.splitlines())}
    assert convolutions(ghosted.module) == expected


def test_it_is_told_in_the_words_of_today(old_plan: Path, tmp_path: Path) -> None:
    read = check(read_plan(old_plan), scan(resnet8(width=12), X))
    assert [str(swap.cheap) for swap in read.swaps] == [
        "depthwise 3",
        "depthwise 1 + pointwise",
        "depthwise 5 + pointwise 2",
        "depthwise 3",
        "depthwise 3 + pointwise",
        "depthwise 3 + pointwise",
    ]
    again = tmp_path / "again.yaml"
    again.write_text(read.to_yaml(), encoding="utf-8")
    assert read.format == FORMAT > 1 and read_plan(again) == read
    assert "pointwise: " not in read.to_yaml() and "d: " not in read.to_yaml().replace("ordered: ", "")


def test_a_recipe_of_that_time_plans_the_same(old_plan: Path, tmp_path: Path) -> None:
    found = scan(resnet8(width=12), X)
    planned = plan(found, recipe(tmp_path, RECIPE.replace("METHOD", "c-ghost")).ghost)
    assert planned == check(read_plan(old_plan), found)


def test_so_does_one_of_another_method(tmp_path: Path) -> None:
    """Where a program had filled in d = 3 and pointwise auto, nobody had asked for them."""
    text = RECIPE.replace("METHOD", "g-ghost").partition("  set:")[0]
    settings = recipe(tmp_path, text + "  set: {}\n").ghost
    traced = trace(ghostify.networks.resnet20(width=12), X)
    proposal = plan(scan_for(traced, settings), settings)
    assert {swap.rule for swap in proposal.swaps} == {"g-ghost"}


@pytest.mark.parametrize(
    ("words", "forms"),
    [
        ("{s: 2, d: 3}", {"depthwise 3 + pointwise", "depthwise 3"}),
        ("{d: 5, pointwise: none}", {"depthwise 5"}),
        ("{pointwise: full}", {"depthwise 3 + pointwise"}),
        ("{d: 1, pointwise: full}", {"depthwise 1 + pointwise"}),
        ("{pointwise: 2}", {"depthwise 3 + pointwise 2"}),
        ("{pointwise: auto}", {"depthwise 3 + pointwise", "depthwise 3"}),
        ("{d: 5, set: {'layer*': {d: 3}, 'layer1.*': {pointwise: none}}}", {"depthwise 3 + pointwise", "depthwise 3"}
         | {"depthwise 5", "depthwise 5 + pointwise"}),
    ],
)  # fmt: skip
def test_a_few_words_of_a_recipe_mean_what_they_meant(tmp_path: Path, words: str, forms: set[str]) -> None:
    ghost = {**yaml.safe_load(words), "also": ["stem", "classifier"], "min_saving": 0}
    text = yaml.safe_dump({"model": {"source": "ghostify:resnet8"}, "ghost": ghost})
    proposal = plan(scan(resnet8(), X), recipe(tmp_path, text).ghost)
    assert {str(swap.cheap) for swap in proposal.swaps} == forms


def test_the_later_word_is_the_only_one_by_name() -> None:
    """A layer that patterns of both times mean."""
    found = scan(resnet8(), X)
    for patterns, cheap in (
        ({"layer1.*": {"cheap": "pointwise"}, "layer1.0.conv1": {"d": 5}}, "depthwise 5 + pointwise"),
        ({"layer1.*": {"d": 5}, "layer1.0.conv1": {"cheap": "pointwise"}}, "pointwise"),
    ):
        proposal = plan(found, set=patterns, include=["layer1.0.conv1"], min_saving=0)
        assert [str(swap.cheap) for swap in proposal.swaps] == [cheap]


def test_a_report_of_that_time_is_told() -> None:
    ratios = {"r_s": 1.8, "r_c": 1.8, "approx_r_s": 1.9, "approx_r_c": 1.9}
    cost = {"params": 1, "macs": 1, "acts": 1}
    layer = {"target": "a", "geometry": "12→12 3x3", "s": 2, "d": 1, "pointwise": 6, "form": "s=2 d=1 pw"}
    layer |= {"before": cost, "after": cost, "theory": ratios}
    report = Report(network="N", inputs=((1, 3, 8, 8),), layers=(layer,), before=cost, after=cost, theory=ratios)
    assert report.layers[0].cheap == "depthwise 1 + pointwise 6"
    assert "s=2 d=1 pw " in str(report.by_layer())
