"""Running a module that may fail, and saying in one line where it did."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import fx, nn

_LONGEST = 300


class Failed(Exception):
    """A module did not run: the message is what went wrong and in which of its modules, in one line.

    ``where`` is that module's name, and the cause is what was raised.
    """

    where: str = ""


def attempt(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """What a module gives.  Raises ``Failed`` where it raises anything, naming the innermost module that did."""
    running: list[str] = []
    with ExitStack() as hooks:
        for name, part in module.named_modules():
            _watch(part, name, running, hooks)
        run = module.forward if isinstance(module, fx.GraphModule) else module  # whose call would print its trouble
        try:
            return run(*args, **(kwargs or {}))
        except Exception as problem:
            where = running[-1] if running else ""
            failed = Failed(f"{one_line(problem)}{f' in module {where!r}' if where else ''}")
            failed.where = where
            raise failed from problem


def one_line(problem: BaseException) -> str:
    """What an exception says, in one line that is not too long."""
    text = " ".join(str(problem).split())
    if isinstance(problem, KeyError) or not text:  # the text of a KeyError is the key alone
        text = f"{type(problem).__name__} {text}".strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _watch(part: nn.Module, name: str, running: list[str], hooks: ExitStack) -> None:
    """Keep the names of the modules that are running, the innermost last; one that fails stays."""
    before = part.register_forward_pre_hook(lambda *_: running.append(name))
    after = part.register_forward_hook(lambda *_: _take_off(name, running))
    hooks.callback(before.remove)
    hooks.callback(after.remove)


def _take_off(name: str, running: list[str]) -> None:
    """It and what failed in it, if it went on all the same."""
    while running and running.pop() != name:
        pass
