"""A recipe from a file, from plain values, and with others laid over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ghostify.effects import given, overruled, require_effect
from ghostify.errors import RecipeError
from ghostify.recipe.budget import BudgetSettings
from ghostify.recipe.experiment import FitSettings
from ghostify.recipe.ghost import GhostSettings, SiteSettings
from ghostify.recipe.whole import Recipe
from ghostify.settings import models_in, read_yaml, validated

DECIDED = ("s", "ratio", "width")
"""What a budget decides for each layer, block or stage."""


def meaning(key: str) -> tuple[str, Any]:
    """What a setting (``ghost.s``) means, as a sentence, and its default."""
    model: type[BaseModel] = Recipe
    *groups, name = key.split(".")
    for group in groups:
        model = next(models_in(model.model_fields[group].annotation))
    setting = model.model_fields[name]
    about = setting.description or name.replace("_", " ")
    default = None if setting.is_required() else setting.default
    return f"{about[0].upper()}{about[1:]}.", default


def read_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with ``overrides`` (dotted key → value) laid over it."""
    values = read_yaml(path, RecipeError, "Recipe")
    if not isinstance(values, dict):
        raise RecipeError(f"Recipe {str(path)!r} must hold settings as 'key: value'.")
    return make_recipe(values, overrides, where=f"Recipe {str(path)!r}")


def make_recipe(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, where: str = "Recipe") -> Recipe:
    """A recipe from plain values, with ``overrides`` (dotted key → value) laid over them.

    What the overrides leave without an effect in ``values`` falls away: a recipe of one method can be carried out by
    another.  Raises ``RecipeError``, also for a setting that has no effect with the others.
    """
    merged, overrides = _copied(values), overrides or {}
    if {"budget.target", "budget.keep"} & overrides.keys() and isinstance(merged.get("ghost"), dict):
        merged["ghost"] = {key: value for key, value in merged["ghost"].items() if key not in DECIDED}
    for group in _groups():
        if isinstance(merged.get(group), dict):
            changes = {key.removeprefix(f"{group}."): value for key, value in overrides.items()}
            merged[group] = overruled(_groups()[group], merged[group], changes)
    for key, value in overrides.items():
        _override(merged, key, value, where)
    recipe = validated(Recipe, merged, where)
    _require_effect_of_all(recipe, where)
    _require_epochs(recipe, overrides, where)
    return recipe


def _require_effect_of_all(recipe: Recipe, where: str) -> None:
    try:
        for name in _groups():
            group = getattr(recipe, name)
            if group is not None:
                require_effect(group, f"{name}.")
        recipe.budget.require_clock()
        require_undecided(recipe.ghost, recipe.budget, "ghost.")
        require_images(recipe.fit, recipe.data is not None, "data.source, as in --data folder:PATH")
    except RecipeError as problem:
        raise RecipeError(f"{where}: {problem}") from None


def _require_epochs(recipe: Recipe, overrides: Mapping[str, Any], where: str) -> None:
    """Refuse to train for a setting of fine-tuning alone: nobody said that it is to take place."""
    key = next((key for key in overrides if key.startswith("finetune.")), None)
    if key and recipe.finetune and "epochs" not in recipe.finetune.model_fields_set:
        raise RecipeError(f"{where}: {key} = {overrides[key]} has no effect without finetune.epochs, as in --epochs 1.")


def require_undecided(ghost: GhostSettings, budget: BudgetSettings, group: str = "") -> None:
    """Raise ``RecipeError`` for what is set for all layers and a budget decides for each."""
    idle = next((name for name in given(ghost) if name in DECIDED), None)
    if budget.asked and idle:
        asked = ", ".join(map(str, budget.target)) or f"keep {budget.keep}"
        value = f"{getattr(ghost, idle):g}"
        raise RecipeError(
            f"{group}{idle} = {value} has no effect with a budget ({asked}), which decides it layer by layer; leave it "
            f"out, or set it by name, as in --set 'layer4.*.{idle}={value}'."
        )


def require_images(fit: FitSettings, images: bool, wanted: str) -> None:
    """Raise ``RecipeError`` for settings of a fit that does not take place, for want of images."""
    idle = next((name for name in given(fit) if name != "how"), None)
    if fit.resolved(images) == "none" and idle:
        raise RecipeError(
            f"fit.{idle} = {getattr(fit, idle)} has no effect without images; give {wanted}, or choose how weights."
        )


def _groups() -> dict[str, type[BaseModel]]:
    """The groups of settings in a recipe."""
    found = {name: list(models_in(field.annotation)) for name, field in Recipe.model_fields.items()}
    return {name: models[0] for name, models in found.items() if models}


def _override(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set ``key``: a setting of the recipe by its path, or ``LAYERS.s`` for the layers a glob matches."""
    head, _, last = key.rpartition(".")
    if _is_setting(Recipe, key.split(".")) or not _is_of_layers(key):
        _put(values, key, value, where)
        return
    _put(values, "ghost.set", values.get("ghost", {}).get("set", {}), where)
    values["ghost"]["set"].setdefault(head, {})[last] = value


def group_of(key: str) -> str:
    """The group of the recipe that a key of ``make_recipe`` changes: of ``LAYERS.s`` ghost, of no setting none."""
    if _is_setting(Recipe, key.split(".")):
        return key.partition(".")[0]
    return "ghost" if _is_of_layers(key) else ""


def _is_of_layers(key: str) -> bool:
    head, _, last = key.rpartition(".")
    return bool(head) and last in SiteSettings.model_fields


def _is_setting(model: type[BaseModel], path: list[str]) -> bool:
    info = model.model_fields.get(path[0])
    if info is None or len(path) == 1:
        return info is not None
    return any(_is_setting(part, path[1:]) for part in models_in(info.annotation)) or "dict" in str(info.annotation)


def _put(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: {key!r} does not name a setting: {parent!r} holds a plain value.")
        values = inner
    values[last] = value


def _copied(values: Any) -> Any:
    return {key: _copied(value) for key, value in values.items()} if isinstance(values, Mapping) else values
