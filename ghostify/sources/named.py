"""What a person names in a recipe, found: ``package.module:function``, and problems told in one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from ghostify.errors import GhostifyError, did_you_mean


def find_function(source: str, kinds: Iterable[str], error: type[GhostifyError]) -> Callable[..., Any]:
    """The function behind ``package.module:function``; ``kinds`` and ``error`` as for ``find_object``."""
    function = find_object(source, kinds, error)
    if not callable(function):
        name = source.partition(":")[2]
        raise error(f"{source!r}: {name!r} is a {type(function).__name__}, not a function that can be called.")
    return function


def find_object(source: str, kinds: Iterable[str], error: type[GhostifyError]) -> Any:
    """What stands behind ``package.module:function``, found among installed packages and in the current folder.

    ``kinds`` are the prefixes a mistyped ``source`` may have meant.  Raises ``error`` when there is no such function.
    """
    place, _, name = source.partition(":")
    module = _import(place, source, kinds, error)
    function = getattr(module, name, None)
    if function is None:
        known = (other for other in vars(module) if callable(getattr(module, other)))
        raise error(f"{source!r}: module {place!r} has no function {name!r}.{did_you_mean(name, known)}")
    return function


def reason_of(problem: BaseException) -> str:
    """What an exception says, as one line without its full stop; its type where the message alone says too little."""
    text = " ".join(str(problem).split("\n\n")[0].split()).rstrip(".")
    clear = isinstance(problem, TypeError | ValueError | RuntimeError | ImportError) and " " in text
    return text if clear else f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def _import(place: str, source: str, kinds: Iterable[str], error: type[GhostifyError]) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise error(f"{source!r}: {place!r} is not the name of a Python module.{did_you_mean(place, kinds)}")
    _see_current_folder()
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as problem:
        if problem.name and (place + ".").startswith(problem.name + "."):
            hint = did_you_mean(place, kinds)
            raise error(f"{source!r}: there is no Python module {problem.name!r} here or installed.{hint}") from None
        raise error(f"{source!r}: importing {place!r} failed: {reason_of(problem)}.") from None
    except Exception as problem:  # a user's module may fail in any way
        raise error(f"{source!r}: importing {place!r} failed: {reason_of(problem)}.") from None


def _see_current_folder() -> None:
    """Puts the current folder on the import path, as ``python -m`` does, and leaves it there for late imports."""
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
