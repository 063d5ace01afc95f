"""Settings as they are read, checked and made: what is wrong with one is a line that names its key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ghostify.effects import overruled, require_effect
from ghostify.errors import GhostifyError, RecipeError, did_you_mean
from ghostify.files import near_path

_Model = TypeVar("_Model", bound=BaseModel)


class Settings(BaseModel):
    """A group of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    word: ClassVar[str] = ""
    """The setting that is meant where one word is given in place of all of them."""

    def __new__(cls, **values: Any) -> Self:
        """Say in one line what is wrong in ``FitSettings(how="dta")``; pydantic itself calls without values."""
        if values:
            validated(cls, values, cls.__name__)
        return super().__new__(cls)


_Settings = TypeVar("_Settings", bound=Settings)


def read_yaml(path: str | Path, error: type[GhostifyError], what: str) -> Any:
    """The document in a YAML (or JSON) file, read with a safe loader.  ``error`` is raised when it cannot be."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise error(f"{what} {str(path)!r} does not exist.{near_path(Path(path))}") from None
    except IsADirectoryError:
        raise error(f"{what} {str(path)!r} cannot be read, because it is a folder; name the file in it.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{what} {str(path)!r} cannot be read: {problem}.") from None
    except yaml.YAMLError as problem:
        where = f" at line {problem.problem_mark.line + 1}" if getattr(problem, "problem_mark", None) else ""  # type: ignore[attr-defined]
        twice = f": {problem.problem}" if isinstance(problem, _RepeatedKey) else ""
        raise error(f"{what} {str(path)!r} is not valid YAML{where}{twice}.") from None


class _RepeatedKey(yaml.MarkedYAMLError):
    """A mapping names a key twice."""


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, which would let the last of two equal keys win, refusing that."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise _RepeatedKey(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def validated(model: type[_Model], values: Any, where: str, error: type[GhostifyError] = RecipeError) -> _Model:
    """``values`` as a ``model``; the first problem found becomes one line of ``error``, naming the key."""
    if not isinstance(values, Mapping):
        raise error(f"{where} must hold settings as 'key: value', not {type(values).__name__}.")
    try:
        return model.model_validate(values)
    except ValidationError as problem:
        key, said = first_problem(model, problem)
        found = error(f"{where}: {said}")
        found.key = key
        raise found from None


def first_problem(model: type[BaseModel], problem: ValidationError) -> tuple[str, str]:
    """The key of the first thing wrong with a ``model``'s values, and a sentence that names it."""
    first = problem.errors()[0]
    key = ".".join(map(str, _without_tags(first["loc"]))) or "value"
    return key, _in_words(model, key, first)


def _in_words(model: type[BaseModel], key: str, problem: ErrorDetails) -> str:
    """What pydantic found, in words for somebody who has typed it."""
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "json_invalid":
        return f"it is no JSON: {context['error']}."
    if kind == "union_tag_invalid":
        named, known = (str(context[one]).replace("'", "").replace(":", "") for one in ("tag", "expected_tags"))
        return f"{key}.rule = {named!r}: it must be one of {known}.{did_you_mean(named, known.split(', '))}"
    if kind == "extra_forbidden":
        return f"unknown key {key!r}.{_near_key(model, key)}"
    if kind == "missing":
        return f"key {key!r} is missing{_what_it_is(model, key)}."
    hint = ""
    if kind == "literal_error":
        hint = did_you_mean(str(given), re.findall(r"'(.*?)'", context["expected"]))
    message = _PLAIN[kind].format(**context) if kind in _PLAIN else problem["msg"].removeprefix("Value error, ")
    return f"{key} = {given!r}: {message}{'' if message.endswith('?') else '.'}{hint}"


_PLAIN = {
    "literal_error": "it must be {expected}",
    "greater_than_equal": "it must be {ge:g} or more",
    "greater_than": "it must be more than {gt:g}",
    "less_than_equal": "it must be {le:g} or less",
    "less_than": "it must be less than {lt:g}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "it must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "it must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "it must be a list, as in [one, other]"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "it must hold settings as 'key: value'"),
    "string_type": "it must be text",
}
"""Kinds of pydantic's errors, in plain words."""


def _near_key(model: type[BaseModel], key: str) -> str:
    """The nearest key; those of all groups that have it where ``key`` is whole but for its group."""
    inside = [repr(full) for full in _full_keys(model) if full.rpartition(".")[2] == key]
    return (
        f" Did you mean {' or '.join(inside)}?" if inside else did_you_mean(key.rpartition(".")[2], known_keys(model))
    )


def _what_it_is(model: type[BaseModel], key: str) -> str:
    """`` (the images: digits, …)``: what a missing setting says, where its declaration does."""
    *groups, name = key.split(".")
    for group in groups:
        field = model.model_fields.get(group)
        model = next(models_in(field.annotation), BaseModel) if field else BaseModel
    field = model.model_fields.get(name)
    return f" ({field.description})" if field and field.description else ""


def _full_keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every key inside the groups of ``model``, as in ``finetune.epochs``."""
    for name, info in model.model_fields.items():
        for part in models_in(info.annotation):
            yield from (f"{before}{name}.{key}" for key in part.model_fields)


def tag(kind: str) -> str:
    """What pydantic is to call a kind of item: it puts that into the place of a problem, where no key has a colon."""
    return f":{kind}"


def _without_tags(loc: tuple[str | int, ...]) -> list[str | int]:
    """The place of a value as its author knows it."""
    return [part for part in loc if not str(part).startswith(":")]


def make_settings(
    model: type[_Settings], settings: _Settings | Mapping[str, Any] | str | None, changes: Mapping[str, Any]
) -> _Settings:
    """``settings`` (or the defaults) with ``changes`` laid over them, validated.

    What ``changes`` leave without an effect in ``settings``, as another method does, falls away.  Raises
    ``RecipeError``, also for a setting that has no effect with the others.
    They may be a dict, too, or the one word that such settings have (``"weights"`` of ``FitSettings``).
    """
    if isinstance(settings, model) and not changes:
        require_effect(settings)
        return settings
    if isinstance(settings, str) and model.word:
        settings = {model.word: settings}
    if isinstance(settings, model):
        settings = settings.model_dump(exclude_unset=True)
    if not (settings is None or isinstance(settings, Mapping)):
        given = repr(settings) if isinstance(settings, (str, int, float)) else f"a {type(settings).__name__}"
        raise RecipeError(f"Settings are {model.__name__}(…) or a dict of them, and {given} was given.")
    made = validated(model, {**overruled(model, settings or {}, changes), **changes}, "Settings")
    require_effect(made)
    return made


def known_keys(model: type[BaseModel]) -> Iterator[str]:
    """Every key name used anywhere inside ``model``."""
    for name, info in model.model_fields.items():
        yield name
        for part in models_in(info.annotation):
            yield from known_keys(part)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from models_in(part)
