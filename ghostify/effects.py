"""Settings that have an effect only with others: each says so beside its declaration, and is refused without them.

A setting that is silently ignored lets a person believe in it.  Only what was given counts, never a default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ghostify.errors import RecipeError


@dataclass(frozen=True)
class With:
    """Metadata of a setting: it has an effect only with another one of its group at certain values."""

    setting: str
    values: tuple[Any, ...] = ()
    """Those it has an effect with; none for all but ``without``."""
    without: tuple[Any, ...] = ()
    choose: str = ""
    """What to choose instead, where that is not one of ``values``."""
    harmless: tuple[Any, ...] = ()
    """Values of the setting itself that ask for nothing, so that nobody misses their effect."""
    of: Callable[[Any], Any] | None = None
    """Of which values of the setting itself this is asked, where it is not of all."""

    def met_by(self, value: Any) -> bool:
        """Whether the other setting lets this one have an effect."""
        return value in self.values if self.values else value not in self.without

    @property
    def advice(self) -> str:
        """What to choose."""
        if self.choose:
            return self.choose
        *others, last = self.values
        listed = f"{', '.join(others)} or {last}" if others else str(last)
        return f"{self.setting} {listed}"


LATER = "later"
"""Metadata of a setting that files of an earlier format do not have."""


def require_effect(settings: BaseModel, group: str = "") -> None:
    """Raise ``RecipeError`` for the first setting given that has no effect with the others; ``group`` is its prefix."""
    for name in given(settings):
        value = getattr(settings, name)
        for need in needs(type(settings), name, value):
            other = getattr(settings, need.setting)
            if value not in need.harmless and not need.met_by(other):
                raise RecipeError(
                    f"{group}{name} = {_shown(value)} has no effect with {need.setting} {_shown(other)}; "
                    f"choose {need.advice}."
                )


def overruled(model: type[BaseModel], values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier ``values`` of a group without those that have no effect any more, because of later ``changes``.

    A recipe of one method that is carried out by another loses the settings of the first.
    """
    stays = {name: value for name, value in values.items() if _stays(model, name, value, changes)}
    if isinstance(stays.get("set"), Mapping):
        by_pattern = {pattern: _of_pattern(model, own, changes) for pattern, own in stays["set"].items()}
        stays["set"] = {pattern: own for pattern, own in by_pattern.items() if own}
    return stays


def needs(model: type[BaseModel], name: str, value: Any) -> list[With]:
    """What a setting of such a value has an effect with."""
    field = model.model_fields.get(name)
    all_of_it = [one for one in field.metadata if isinstance(one, With)] if field else []
    return [one for one in all_of_it if one.of is None or one.of(value)]


def given(settings: BaseModel) -> Iterator[str]:
    """The settings that were given and say something, in the order of their declaration.

    Where all that have a default are, as in the file of a run, a program filled these in, and nobody asked for them.
    Those without one do not count, nor do ``LATER`` ones: the version that wrote a file may not have known them yet.
    """
    fields = type(settings).model_fields
    known = {name for name, field in fields.items() if _says(field.default) and LATER not in field.metadata}
    filled_in = settings.model_fields_set >= known
    for name, field in fields.items():
        value = getattr(settings, name)
        said = name in settings.model_fields_set and _says(value)
        if said and not (filled_in and value == field.default):
            yield name


def _says(value: Any) -> bool:
    """Whether a value asks for anything."""
    return value not in (None, (), {})


def require_effect_by_name(settings: BaseModel, pattern: str, own: BaseModel) -> None:
    """The same for what is set for the layers of a pattern, over what is set for all."""
    for name in given(own):
        for need in needs(type(settings), name, getattr(own, name)):
            named = getattr(own, need.setting, None)
            other = getattr(settings, need.setting) if named is None else named
            if not need.met_by(other):
                raise RecipeError(
                    f"set {pattern!r}: {name} = {_shown(getattr(own, name))} has no effect with {need.setting} "
                    f"{_shown(other)}; choose {need.advice}."
                )


def _stays(model: type[BaseModel], name: str, value: Any, changes: Mapping[str, Any]) -> bool:
    changed = (need for need in needs(model, name, value) if need.setting in changes)
    return all(need.met_by(changes[need.setting]) for need in changed)


def _of_pattern(model: type[BaseModel], own: Any, changes: Mapping[str, Any]) -> Any:
    if not isinstance(own, Mapping):
        return own  # no settings: to be told when it is validated
    return {name: value for name, value in own.items() if _stays(model, name, value, changes)}


def _shown(value: Any) -> str:
    """A value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, (tuple, dict)) else str(value)
