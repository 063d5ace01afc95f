"""The papers' networks and what the shipped recipes make of them: on the meta device, because costs need no weights."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ghostify import Ghosted, Recipe, Traced, plan, rewrite, trace
from ghostify.planning import scan_for
from ghostify.recipe import ModelSettings, read_recipe
from ghostify.shipped import find_recipe
from ghostify.sources import build_model

DRAWN = ("normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "uniform_")
"""What draws weights at random, which takes most of the time of building a network."""


@cache
def recipe_of(name: str) -> Recipe:
    return read_recipe(find_recipe(f"papers/{name}"))


def head_of(name: str) -> str:
    """What a recipe says of itself before its first key."""
    return find_recipe(f"papers/{name}").read_text(encoding="utf-8").partition("\nname:")[0]


@cache
def network(source: str) -> nn.Module:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.MonkeyPatch.context() as patch:
        for name in DRAWN:
            patch.setattr(nn.init, name, lambda tensor, *args, **settings: tensor)
        return build_model(ModelSettings(source=source)).to("meta")


def example(source: str) -> Tensor:
    side = 32 if source.startswith("ghostify:") else 224
    return torch.zeros(1, 3, side, side, device="meta")


@cache
def traced(source: str) -> Traced:
    return trace(network(source), example(source))


@cache
def ghosted(name: str) -> Ghosted:
    recipe = recipe_of(name)
    recorded = traced(recipe.model.source)
    assert recipe.model.input == tuple(recorded.args[0].shape[1:])
    return rewrite(recorded, plan(scan_for(recorded, recipe.ghost), recipe.ghost))
