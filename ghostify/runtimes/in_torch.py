"""PyTorch itself: call by call as the code says it (eager), or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn

from ghostify.errors import RecipeError
from ghostify.runtimes.protocol import Runtime, Session
from ghostify.runtimes.threads import pinned_threads


class Eager(Runtime):
    """The module as it is called."""

    name = "eager"
    devices = ()

    def version(self) -> str:
        return torch.__version__

    def _session(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Session:
        return partial(module, *args, **kwargs)


class Compiled(Runtime):
    """The module as ``torch.compile`` makes it, for the shapes of the example."""

    name = "compile"
    devices = ()
    backend = "inductor"

    def version(self) -> str:
        return torch.__version__

    def _session(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Session:
        compiled = torch.compile(_with_own_code(module), dynamic=False, backend=self.backend)
        session = partial(compiled, *args, **kwargs)
        # The first call compiles: for the threads there are then, and for calls in inference mode.
        with pinned_threads(threads), torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                session()
            except Exception as problem:
                require_compiler(problem)
                raise
        return session


def _with_own_code(module: nn.Module) -> Callable[..., Any]:
    """A function that calls ``module``.

    Compiled code is kept with the code object that it was made of, a few variants to each; what comes later runs as
    eager without a word.  So the many modules of one class that a table of layers is measured on must not share one.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, None, run.__closure__)


def require_compiler(problem: Exception) -> None:
    """Raises ``RecipeError`` where it was a compiler that was missing."""
    text = str(problem)
    if "C++ compiler" in text or "working C compiler" in text or "C compiler" in text:
        raise RecipeError(
            "The runtime compile needs a C++ compiler, and none was found; install g++, or name one in the environment "
            "variable CXX."
        ) from problem
