"""What a function of the Python API is given, checked at its door: one line says what is wanted and what makes it.

``@takes(model=network)`` names a check for an argument; a check returns the value to work with, or raises.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from ghostify.errors import DataError, GhostifyError, TraceError

_P = ParamSpec("_P")
_R = TypeVar("_R")
Check = Callable[[Any], Any]


def takes(**checks: Check) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """The function, with each argument that was given passed through its check first.

    A call that leaves out an argument, or has one too many, is a ``GhostifyError``, too.
    """

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as problem:
                raise GhostifyError(f"{function.__name__}: {problem}. {_how_to_call(function)}") from None
            for name, check in checks.items():
                if name in bound.arguments:
                    bound.arguments[name] = check(bound.arguments[name])
            return function(*bound.args, **bound.kwargs)

        return checked

    return wrap


def _how_to_call(function: Callable[..., Any]) -> str:
    """``It is called as plan(scan, settings=…).``"""
    parameters = inspect.signature(function).parameters.values()
    words = [
        one.name if one.default is one.empty else f"{one.name}=…"
        for one in parameters
        if one.kind is not one.VAR_KEYWORD
    ]
    return f"It is called as {function.__name__}({', '.join(words)})."


def network(value: Any) -> nn.Module:
    """A network, or that of a rewritten or recorded one.  Raises ``TraceError``."""
    if isinstance(value, nn.Module):
        return value
    inner = getattr(value, "module", None)  # of a Ghosted, of Parts, of a Traced
    if isinstance(inner, nn.Module) and not isinstance(value, type):
        return inner
    raise TraceError(f"The model is {given(value)}, not a torch.nn.Module. {_how_to_build(value)}")


def or_none(check: Check) -> Check:
    """The check, of what may be left out."""
    return lambda value: None if value is None else check(value)


def _how_to_build(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"Make one of it: {value.__name__}(…)."
    if isinstance(value, FunctionType):
        return f"Give what it returns: {value.__name__}(…)."
    if isinstance(value, Mapping):
        return "Weights alone are no network: build the network, and let it load them with load_state_dict."
    if isinstance(value, (str, Path)):
        return "Only the command line takes names; in Python, build the network, as in torchvision.models.resnet50()."
    return "Give the network itself, as in torchvision.models.resnet50()."


def example_input(value: Any) -> Any:
    """One input: a tensor, a tuple of positional or a dict of keyword arguments.  Raises ``TraceError``."""
    sizes = isinstance(value, (tuple, list)) and bool(value) and all(isinstance(size, int) for size in value)
    if isinstance(value, (Tensor, tuple, Mapping)) and not sizes:
        return value
    shape = ", ".join(map(str, value)) if sizes else "1, 3, 224, 224"
    raise TraceError(
        f"The example is {given(value)}; give one input of the network, as in torch.randn({shape}), or a tuple or dict "
        "of all its arguments."
    )


def as_path(like: str, error: type[GhostifyError]) -> Check:
    """A check that a value is a path, or the text of one; ``like`` is one.  ``error`` is raised."""

    def check(value: Any) -> Path:
        if isinstance(value, (str, Path)) and str(value):
            return Path(value)
        raise error(f"A path is wanted, as in {like!r}, and {given(value)} was given.")

    return check


def batches(value: Any) -> Any:
    """A loader, or any other row of batches.  Raises ``DataError``."""
    if hasattr(value, "__iter__") and not isinstance(value, (Dataset, Tensor, str, Mapping)):
        return value
    raise DataError(
        f"Batches of images are wanted, and {given(value)} was given; DataLoader(data, batch_size=128) makes them."
    )


def instance(kind: type, *, maker: str, error: type[GhostifyError]) -> Check:
    """A check that a value is of a ``kind``; ``maker`` is the call that gives one.  ``error`` is raised."""

    def check(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise error(f"A {kind.__name__} is wanted, and {given(value)} was given; {maker} makes one.")

    return check


def given(value: Any) -> str:
    """A value as its giver would call it, in a few words: ``a DataLoader``, ``a tensor of 1x3x8x8``, ``'weights'``."""
    if value is None or isinstance(value, (str, Path, int, float)):
        return _short(repr(str(value) if isinstance(value, Path) else value))
    if isinstance(value, Tensor):
        return f"a tensor of {'x'.join(map(str, value.shape)) or 'one number'}"
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}"
    if isinstance(value, ModuleType):
        return f"the Python module {value.__name__}"
    if isinstance(value, Mapping) and value and all(isinstance(item, Tensor) for item in value.values()):
        return "a dict of tensors (a state dict)"
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, int) for item in value):
        return _short(repr(value))
    return a(type(value).__name__)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def a(noun: str) -> str:
    """The noun behind its article."""
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"
