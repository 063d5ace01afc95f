"""The verbs of ``ghostify recipes``: what comes with the tool, and what is valid."""

from __future__ import annotations

from pathlib import Path

import typer

from ghostify.cli import options, show
from ghostify.errors import GhostifyError, RecipeError
from ghostify.recipe import Recipe, make_recipe, read_yaml
from ghostify.shipped import find_recipe, shipped_recipes

recipes_app = typer.Typer(help="The recipes that come with ghostify.", no_args_is_help=True)


@recipes_app.command("list")
def list_recipes(as_json: options.Json = False) -> None:
    """Name the recipes that come with ghostify."""
    titles = {name: _title(path) for name, path in shipped_recipes().items()}
    if as_json:
        show.json(titles)
        return
    from ghostify.tables import Table

    show.table(Table("", ["recipe", "what it does"], [[*row] for row in titles.items()], frozenset({"what it does"})))


@recipes_app.command("show")
def show_recipe(name: options.RecipeName, as_json: options.Json = False) -> None:
    """Print a recipe; as JSON, with every default filled in."""
    path = find_recipe(name)
    recipe = _validated_recipe(path)
    if as_json:
        show.json(recipe.model_dump(mode="json"))
    else:
        show.line(path.read_text(encoding="utf-8").removesuffix("\n"))


@recipes_app.command("check")
def check_recipe(
    name: options.RecipeIfAny = None, steps: options.TriedSteps = 3, as_json: options.Json = False
) -> None:
    """Check a recipe, or all that come with ghostify: its keys and values, then a few real steps on synthetic images.

    \b
    Example:
    ghostify recipes check training/cifar10-resnet56-c-ghost
    """
    paths = [find_recipe(name)] if name else list(shipped_recipes().values())
    recipes = {path: _validated_recipe(path) for path in paths}  # all of them, before the first is tried
    found = []
    for path, recipe in recipes.items():
        taken = _tried(path, recipe, steps) if steps else 0
        found.append({"recipe": str(path), "valid": True, "steps": taken})
        if not as_json:
            show.line(f"{path} is a valid recipe{_what_was_done(recipe, taken)}.")
    if as_json:
        show.json(found[0] if name else found)


def _tried(path: Path, recipe: Recipe, steps: int) -> int:
    """How many training steps were taken.  Raises ``RecipeError`` where it fails."""
    from ghostify.tryout import try_out

    try:
        return try_out(recipe, steps, _verb(path))
    except GhostifyError as problem:
        raise RecipeError(f"Recipe {str(path)!r} cannot be carried out: {problem}") from None


def _what_was_done(recipe: Recipe, steps: int) -> str:
    if steps:
        return f"; it took {steps} training steps on synthetic images"
    return "" if recipe.pretrain or recipe.finetune else ", and trains nothing"


def _verb(path: Path) -> str:
    """The verb of the command on the first line of a recipe; ``compress`` where there is none."""
    words = path.read_text(encoding="utf-8").partition("\n")[0].split()
    return words[2] if words[:2] == ["#", "ghostify"] and len(words) > 2 else "compress"


def _validated_recipe(path: Path) -> Recipe:
    return make_recipe(read_yaml(path, RecipeError, "Recipe"), where=f"Recipe {str(path)!r}")


def _title(path: Path) -> str:
    """The first comment line of a recipe after the one with its command."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    return next((line for line in lines[1:] if line), "")
