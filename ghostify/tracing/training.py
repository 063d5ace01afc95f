"""Whether a network may do other things in training than it does in evaluation, as far as its code tells.

What a layer of torch's does in training stays within its node of the graph, so it is the code around layers that
matters: whether it, or a function that it names, speaks of ``training``, or has modules at hand that it did not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from ghostify.tracing.naming import is_leaf
from ghostify.tracing.traced import Traced

_WORD = "training"


def may_differ_in_training(traced: Traced) -> bool:
    """Whether a run in training may show anything that this one, in evaluation, did not."""
    return _has_idle(traced) or speaks_of_training(traced.module)


def _has_idle(traced: Traced) -> bool:
    """Whether it has parameters or buffers that the run did not use."""
    used: set[int] = set()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            leaf = traced.leaf(node)
            used.update(map(id, (*leaf.parameters(), *leaf.buffers())))
        elif node.op == "get_attr":
            used.add(id(traced.tensor(node)))
    held = (*traced.module.parameters(), *traced.module.buffers())
    # One number alone is a counter, as of a norm's batches, and tells of no code.
    return any(tensor.numel() > 1 and id(tensor) not in used for tensor in held)


def speaks_of_training(model: nn.Module) -> bool:
    """Whether the code of a network asks, or may ask, if it is being trained; its hooks are code of it, too."""
    if any(_changes_mode_itself(module) for module in model.modules()):
        return True
    waiting = [function for module in model.modules() if not is_leaf(module) for function in _own_functions(module)]
    seen: set[CodeType] = set()
    while waiting:
        function = waiting.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        words = set(_words(function.__code__))
        if _WORD in words:
            return True
        waiting += [other for other in _named_by(function, words) if not other.__module__.startswith("torch.")]
    return False


def _changes_mode_itself(module: nn.Module) -> bool:
    """Whether ``train()`` does more than set flags, such as split fused weights again."""
    kind = type(module)
    own = (kind.train, kind.eval) != (nn.Module.train, nn.Module.eval) or not {"train", "eval"}.isdisjoint(vars(module))
    return own and not is_leaf(module)


def _own_functions(module: nn.Module) -> Iterator[FunctionType]:
    """The methods of its class, as far as they are not those of every module, what was put on itself, and its hooks."""
    classes = type(module).__mro__
    for kind in classes[: classes.index(nn.Module)]:
        if not kind.__module__.startswith("torch.nn."):  # a Sequential runs its children, whatever the mode
            yield from _functions_in(vars(kind))
    yield from _functions_in(vars(module))
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        yield from _functions_in(hooks)


def _functions_in(values: Mapping[Any, Any]) -> Iterator[FunctionType]:
    for value in values.values():
        # Methods, properties and wrapped functions hold the function whose code is to be read.
        found = getattr(value, "__func__", value)
        found = found.fget if isinstance(found, property) else getattr(found, "__wrapped__", found)
        if isinstance(found, FunctionType):
            yield found
        if isinstance(found, MethodType) and isinstance(found.__func__, FunctionType):
            yield found.__func__


def _words(code: CodeType) -> Iterator[str]:
    """The names that a function uses, and its texts, with those of the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _words(constant)


def _named_by(function: FunctionType, words: set[str]) -> Iterator[FunctionType]:
    """The functions that it names: global ones, those of a Python module it names, and those it encloses."""
    known = function.__globals__
    yield from _functions_in({word: known[word] for word in words if word in known})
    for home in (known[word] for word in words if isinstance(known.get(word), ModuleType)):
        yield from _functions_in({word: vars(home)[word] for word in words if word in vars(home)})
    cells = (cell for cell in function.__closure__ or ())
    yield from _functions_in(dict(enumerate(cell.cell_contents for cell in cells if _is_filled(cell))))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
