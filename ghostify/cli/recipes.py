"""The verbs of ``ghostify recipes``: what comes with the tool, and what is valid."""

from __future__ import annotations

from pathlib import Path

import typer

from ghostify.cli import options, show
from ghostify.errors import RecipeError
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
def check_recipe(name: options.RecipeName, as_json: options.Json = False) -> None:
    """Check a recipe's keys and values."""
    path = find_recipe(name)
    _validated_recipe(path)
    if as_json:
        show.json({"recipe": str(path), "valid": True})
    else:
        show.line(f"{path} is a valid recipe.")


def _validated_recipe(path: Path) -> Recipe:
    return make_recipe(read_yaml(path, RecipeError, "Recipe"), where=f"Recipe {str(path)!r}")


def _title(path: Path) -> str:
    """The first comment line of a recipe after the one with its command."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    return next((line for line in lines[1:] if line), "")
