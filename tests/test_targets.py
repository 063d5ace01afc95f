"""Targets: what a network may cost and what it must keep, as a person writes it."""

from __future__ import annotations

from typing import get_args

import pytest
from command import Cli, refused
from hypothesis import given
from hypothesis import strategies as st

from ghostify.errors import RecipeError
from ghostify.recipe import BudgetSettings, RuntimeName, make_recipe
from ghostify.runtimes import RUNTIMES
from ghostify.targets import Floor, Quantity, Target

READ = {
    "latency=0.5x": (50.0, 100.0),
    "latency=12ms": (12.0, 100.0),
    "latency=0.1s": (100.0, 500.0),
    "latency=250us": (0.25, 1.0),
    "macs=0.25x": (1e6, 4e6),
    "MACs = 300M": (3e8, 4e9),
    "params=3M": (3e6, 25e6),
    "params=11000": (11e3, 25e6),
    "activations=0.7x": (7.0, 10.0),
    "size=20MB": (2e7, 1e8),
    "size=20mb": (2e7, 1e8),
}
"""By what is written, the bound where the original costs so much."""

WRONG = {
    "latncy=0.5x": "Did you mean 'latency'?",
    "latency=12sm": "'sm' is no unit of latency; give it one, as in latency=0.5x or latency=12ms.",
    "latency=12": "'12' names no unit",
    "size=20MG": "'MG' is no unit of size",
    "macs=2x": "write a share below 1, as in macs=0.5x",
    "macs=1x": "asks for no less than there is",
    "macs=0x": "must be more than 0",
    "macs": "tells no amount; write macs=0.5x or macs=300M",
    "macs=half": "tells no amount",
    "0.5x": "is nothing that can be asked for",
}
FLOORS = {"0.99": ("agreement", 0.99), "99%": ("agreement", 0.99), "accuracy=-1.0": ("accuracy", -1.0)}
WRONG_FLOORS = {
    "acuracy=-1": "Did you mean 'accuracy'?",
    "accuracy=1": "asks for more than the original",
    "99": "write one above 0 and up to 1",
    "most": "is no share to keep",
}


@pytest.mark.parametrize("text", READ)
def test_a_target_bounds_what_the_network_costs(text: str) -> None:
    bound, before = READ[text]
    assert Target.read(text).bound(before) == pytest.approx(bound)


@pytest.mark.parametrize("text", READ)
def test_a_target_is_read_again_from_what_it_is_written_as(text: str) -> None:
    once = Target.read(text)
    assert Target.read(str(once)) == once


@given(st.sampled_from(get_args(Quantity)), st.floats(0.01, 0.99))
def test_a_share_is_of_what_the_original_costs(quantity: Quantity, share: float) -> None:
    target = Target.read(f"{quantity}={share!r}x")
    assert target.relative and target.bound(200.0) == pytest.approx(200 * share)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_target_is_refused_with_what_is_near(text: str) -> None:
    with pytest.raises(RecipeError) as problem:
        Target.read(text)
    assert WRONG[text] in str(problem.value)


@pytest.mark.parametrize("text", FLOORS)
def test_what_is_to_be_kept_is_read(text: str) -> None:
    floor = Floor.read(text)
    assert (floor.kind, floor.value) == FLOORS[text]
    assert Floor.read(str(floor)) == floor


@pytest.mark.parametrize("text", WRONG_FLOORS)
def test_what_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(RecipeError) as problem:
        Floor.read(text)
    assert WRONG_FLOORS[text] in str(problem.value)


def test_one_word_is_a_target_and_a_recipe_holds_several() -> None:
    assert BudgetSettings(target="macs=0.5x").target == (Target.read("macs=0.5x"),)
    recipe = make_recipe(
        {"model": {"source": "any"}, "budget": {"target": ["macs=0.5x", "size=2MB"], "measure": False}}
    )
    assert [str(target) for target in recipe.budget.target] == ["macs=0.5x", "size=2MB"]
    written = recipe.model_dump(mode="json")
    assert written["budget"]["target"] == ["macs=0.5x", "size=2MB"]
    assert make_recipe(written) == recipe


def test_the_command_line_names_the_option_at_fault(cli: Cli) -> None:
    refused(cli("plan", "mine:tiny", "--target", "latncy=0.5x"), "--target", "Did you mean 'latency'?")
    refused(cli("plan", "mine:tiny", "--keep", "most"), "--keep", "write 0.99 or accuracy=-1.0")
    refused(cli("plan", "mine:tiny", "--runtime", "onnx"), "--runtime", "'onnxruntime'")


def test_settings_of_the_clock_have_no_effect_where_nothing_is_measured(cli: Cli) -> None:
    unmeasured = ("plan", "mine:tiny", "--no-measure")
    refused(cli(*unmeasured, "--target", "latency=0.5x"), "latency=0.5x asks for time", "as in --measure")
    refused(cli(*unmeasured, "--runtime", "openvino"), "no effect with measure false")


def test_a_recipe_that_asks_for_time_is_not_carried_out_without_a_clock() -> None:
    recipe = {"model": {"source": "any"}, "budget": {"target": "latency=0.5x"}}
    with pytest.raises(RecipeError, match="asks for time"):
        make_recipe(recipe, {"budget.measure": False})


def test_a_target_and_what_is_to_be_kept_are_not_asked_together(cli: Cli) -> None:
    asked = cli("plan", "mine:tiny", "--target", "macs=0.5x", "--keep", "0.99")
    refused(asked, "keep = 0.99 has no effect with target macs=0.5x; choose one of the two")


def test_what_a_budget_decides_is_not_set_for_all(cli: Cli) -> None:
    asked = ("plan", "mine:tiny", "--target", "macs=0.5x")
    refused(cli(*asked, "--s", "4"), "ghost.s = 4 has no effect with a budget (macs=0.5x)", "layer by layer")
    recipe = {"model": {"source": "any"}, "ghost": {"s": 3, "exclude": ["layer1"]}}
    made = make_recipe(recipe, {"budget.target": ["macs=0.5x"]})
    assert made.ghost.exclude == ("layer1",)
    assert "s" not in made.ghost.model_fields_set, "a recipe's falls away where a target is laid over it"
    with pytest.raises(RecipeError, match=r"s = 3 has no effect with a budget"):
        make_recipe({**recipe, "budget": {"target": "macs=0.5x"}})


def test_runtimes_are_those_that_can_be_asked_for() -> None:
    assert set(RUNTIMES) == set(get_args(RuntimeName))
