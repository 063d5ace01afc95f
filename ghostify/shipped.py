"""The recipes that come with the package, and files of one's own, by name."""

from __future__ import annotations

from pathlib import Path

from ghostify.errors import RecipeError, did_you_mean
from ghostify.files import near_path


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name (``papers/c-ghost-vgg16-s2-d3``)."""
    home = Path(__file__).parent / "recipes"
    if not home.is_dir():  # a source checkout, installed in place
        home = Path(__file__).parents[1] / "recipes"
    return {path.relative_to(home).with_suffix("").as_posix(): path for path in sorted(home.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by shipped name.  Raises ``RecipeError`` with the nearest name."""
    known = shipped_recipes()
    if Path(name).suffix in (".yaml", ".yml", ".json") or Path(name).is_file():
        return Path(name)
    if name not in known:
        near = did_you_mean(name, known) or near_path(Path(name))
        raise RecipeError(f"Recipe {name!r} is neither a file nor one of ours.{near}")
    return known[name]
