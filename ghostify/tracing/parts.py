"""``recordable``: the parts that can be recorded of a model that cannot be as a whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ghostify.errors import TraceError
from ghostify.running import as_called, quiet, seed, uncompiled
from ghostify.tracing.copies import private_copy
from ghostify.tracing.naming import qualified_names
from ghostify.tracing.requirements import require_runnable
from ghostify.tracing.trace import trace
from ghostify.tracing.values import call_arguments, cloned
from ghostify.tracing.wording import cannot_run


def recordable(model: nn.Module, example: Any) -> dict[str, Any]:
    """The largest parts of ``model`` with convolutions in them that are recorded without a doubt, and their examples.

    By qualified name (``""`` is the model itself), each with the input it had in one run of the model on ``example``,
    in the form ``trace`` takes.  It is for models that cannot be rewritten as a whole, such as detectors that go on
    with as many boxes as they find: rewrite ``model.get_submodule(name)``, then ``model.set_submodule(name, ...)``.
    Of a part that is called more than once the first call counts, and a convolution whose parent cannot be recorded
    is in no part.  Raises ``TraceError`` when the model does not run on the example.
    """
    given = _given_to_parts(model, example)
    found: dict[str, Any] = {}
    _find_recordable("", model, given, found, set())
    return found


def _given_to_parts(model: nn.Module, example: Any) -> dict[str, Any]:
    """What every module below ``model`` was first called with in one run, by qualified name."""
    args, kwargs = call_arguments(example)
    require_runnable(model, (args, kwargs))
    private = private_copy(model, share_parameters=False)
    given: dict[str, Any] = {}
    for module, names in qualified_names(private).items():
        if _has_convolution(module):
            # Before hooks of the user's: a part that is run by itself runs these again.
            module.register_forward_pre_hook(_noting(given, names[0]), prepend=True, with_kwargs=True)
    with quiet(private), uncompiled(), as_called():
        seed()
        try:
            private(*cloned(args), **cloned(kwargs))
        except Exception as problem:
            raise cannot_run(private, "", (args, kwargs), problem) from problem
    return given


def _noting(given: dict[str, Any], name: str) -> Callable[..., None]:
    """A hook that keeps what a module is first called with."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name not in given:
            given[name] = one_example(module, *cloned((args, kwargs)))

    return note


def one_example(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call's arguments as ``trace`` takes them; mixed ones by name."""
    if not kwargs:
        return args
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if args else kwargs


def _find_recordable(
    name: str, module: nn.Module, given: Mapping[str, Any], found: dict[str, Any], seen: set[nn.Module]
) -> None:
    """Add ``module`` to what was ``found``, or else what can be recorded below it."""
    if module in seen or not _has_convolution(module):
        return
    seen.add(module)
    if name in given and _vouched_for(module, given[name]):
        found[name] = given[name]
        return
    for part, child in module.named_children():
        _find_recordable(f"{name}.{part}".lstrip("."), child, given, found, seen)


def _vouched_for(module: nn.Module, example: Any) -> bool:
    try:
        return not trace(module, example).doubts
    except TraceError:
        return False


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(part, _ConvNd) for part in module.modules())
