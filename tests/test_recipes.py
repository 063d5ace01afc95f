"""Recipes: those that ship are valid and say how to run them; a wrong one is refused in one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ghostify.cheap import Cheap
from ghostify.errors import RecipeError
from ghostify.recipe import Recipe, make_recipe, read_recipe
from ghostify.tryout import shrunk, try_out

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
TRAINED = [name for name in RECIPES if name.startswith(("training/", "short/"))]
PAPERS = [name for name in RECIPES if name.startswith("papers/")]
SMALLEST = {"model": {"source": "torchvision:resnet18"}}


def refusal(values: dict[str, Any], **overrides: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        make_recipe(values, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def read_refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_there_are_recipes_to_check():
    assert "digits" in RECIPES
    assert len(PAPERS) >= 10


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_is_valid_and_named_after_its_file(name):
    assert read_recipe(RECIPES[name]).name == RECIPES[name].stem


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_line_is_the_command_that_runs_it(name):
    first = RECIPES[name].read_text(encoding="utf-8").splitlines()[0]
    verb = "finetune" if "mobile" in name else "compress"  # those are ghost networks themselves
    assert first == f"# ghostify {verb} --recipe {name}"


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_recipe_needs_no_data(name):
    recipe = read_recipe(RECIPES[name])
    assert recipe.data is recipe.pretrain is recipe.finetune is None
    assert recipe.ghost.method == next(method for method in ("c-ghost", "g-ghost", "width") if method in name)


@pytest.mark.parametrize("name", [name for name in PAPERS if "c-ghost" in name])
def test_a_c_ghost_recipe_ghosts_what_the_paper_ghosts(name):
    recipe = read_recipe(RECIPES[name])
    assert recipe.ghost.min_saving == 0
    assert recipe.ghost.cheap == Cheap(recipe.ghost.cheap.depthwise)
    assert f"-s{recipe.ghost.s}-d{recipe.ghost.cheap.depthwise}" in name


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_that_trains_names_its_images_and_how(name):
    recipe = read_recipe(RECIPES[name])
    assert recipe.data is not None
    assert recipe.finetune is not None
    assert recipe.finetune.epochs > 0
    assert (recipe.model.weights is None) == name.startswith("training/")
    assert (recipe.finetune.lr is None) == name.startswith("short/"), "after a fit it is found"


def test_a_recipe_is_tried_out_by_real_steps_on_synthetic_images():
    recipe = read_recipe(RECIPES["digits"])
    assert try_out(recipe, steps=2, verb="compress") == 4, "two of the original, two of what was made of it"
    small = shrunk(recipe, steps=2)
    assert (small.ghost, small.seed) == (recipe.ghost, recipe.seed)
    rate = recipe.finetune.lr * small.data.batch_size / recipe.data.batch_size
    assert small.finetune == recipe.finetune.model_copy(update={"epochs": 1, "lr": rate})
    assert try_out(read_recipe(RECIPES["papers/c-ghost-resnet56-s2-d3"]), steps=2, verb="compress") == 0


@pytest.mark.slow  # large networks on a CPU
@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_that_trains_takes_its_steps(name):
    verb = "finetune" if "mobile" in name else "compress"
    assert try_out(read_recipe(RECIPES[name]), steps=2, verb=verb) == 2


def test_a_paper_recipe_can_be_trained_by_overrides():
    overrides = {
        "data.source": "cifar10:somewhere",
        "data.batch_size": 128,
        "finetune.epochs": 200,
        "finetune.lr": 0.1,
        "finetune.weight_decay": "1e-4",  # what a YAML reader makes of 1e-4: a string
    }
    recipe = read_recipe(RECIPES["papers/c-ghost-vgg16-s2-d3"], overrides)
    assert recipe.data is not None
    assert recipe.finetune is not None
    assert (recipe.data.source, recipe.data.batch_size) == ("cifar10:somewhere", 128)
    assert (recipe.finetune.epochs, recipe.finetune.lr, recipe.finetune.weight_decay) == (200, 0.1, 1e-4)


def test_a_recipe_survives_its_own_dump():
    for path in RECIPES.values():
        recipe = read_recipe(path)
        assert make_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("values", "key", "suggestion"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"ghost": {"min_savings": 1}}, "ghost.min_savings", "min_saving"),
        ({"finetune": {"epoch": 1}}, "finetune.epoch", "epochs"),
        ({"data": {"source": "digits", "batchsize": 8}}, "data.batchsize", "batch_size"),
        ({"ghost": {"set": {"layer4.*": {"part": "linear"}}}}, "ghost.set.layer4.*.part", "parts"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(values, key, suggestion):
    message = refusal({**SMALLEST, **values})
    assert f"unknown key {key!r}" in message
    assert f"Did you mean {suggestion!r}?" in message


@pytest.mark.parametrize("ghost", [{"d": 4}, {"set": {"layer1.*": {"d": 4}}}])
def test_an_even_d_is_refused_with_the_odd_neighbours(ghost):
    message = refusal({**SMALLEST, "ghost": ghost})
    assert "d = 4: it must be odd" in message
    assert "3 or 5" in message


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"ghost": {"s": 1}}, "ghost.s"),
        ({"ghost": {"d": 0}}, "ghost.d"),
        ({"ghost": {"also": ["head"]}}, "ghost.also"),
        ({"ghost": {"pointwise": 0}}, "ghost.pointwise"),
        ({"finetune": {"lr": 0}}, "finetune.lr"),
        ({"finetune": {"distill": 1.5}}, "finetune.distill"),
        ({"data": {"source": "digits", "batch_size": 0}}, "data.batch_size"),
        ({"seed": "once"}, "seed"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(values, key):
    assert key in refusal({**SMALLEST, **values})


def test_a_missing_key_is_named():
    assert "'model' is missing" in refusal({})
    assert "'data.source' is missing" in refusal({**SMALLEST, "data": {}})


def test_an_override_lies_over_the_file_and_leaves_it_alone():
    values = {**SMALLEST, "ghost": {"s": 2, "d": 3}, "finetune": None}
    recipe = make_recipe(values, {"ghost.s": 4, "finetune.epochs": 7, "model.args.num_classes": 10, "seed": 3})
    assert (recipe.ghost.s, recipe.ghost.d, recipe.seed) == (4, 3, 3)
    assert recipe.finetune is not None
    assert recipe.finetune.epochs == 7
    assert recipe.model.args == {"num_classes": 10}
    assert values == {**SMALLEST, "ghost": {"s": 2, "d": 3}, "finetune": None}


def test_an_override_is_checked_like_the_file():
    assert "Did you mean 's'?" not in refusal(SMALLEST, **{"ghost.ratio": 2})
    assert "Did you mean 'epochs'?" in refusal(SMALLEST, **{"finetune.epoch": 2})
    assert "holds a plain value" in refusal(SMALLEST, **{"model.source.name": "resnet18"})


def test_nothing_can_be_changed_in_a_recipe():
    recipe: Any = Recipe.model_validate(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"model: [1, 2\nghost: }", "not valid YAML"),
        (b"- model\n- ghost\n", "must hold settings"),
        (b"", "must hold settings"),
        (b"model: torchvision:resnet18\n", "model"),
        (b"\xff\xfe\x00model", "cannot be read"),
        (b"model: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
    ids=["broken", "list", "empty", "flat", "binary", "code"],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    assert says in read_refusal(path)


def test_a_missing_file_or_a_folder_is_refused_in_one_line(tmp_path):
    assert "does not exist" in read_refusal(tmp_path / "absent.yaml")
    assert "cannot be read" in read_refusal(tmp_path)
