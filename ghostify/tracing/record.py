"""``record``: model + example → Recording, of the whole or, where it resists, of its parts."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ghostify.arguments import example_input, network, takes
from ghostify.errors import TraceError
from ghostify.running import as_called, undisturbed
from ghostify.tracing.parts import recordable
from ghostify.tracing.recording import NoParts, Recording
from ghostify.tracing.trace import trace
from ghostify.tracing.values import call_arguments, cloned, tensors_of_call
from ghostify.tracing.wording import GIVEN_NOTHING

_SHARING = "shares weights with modules outside of it, which rewriting it alone would cut off"


@takes(model=network, example=example_input)
@undisturbed()
def record(model: nn.Module, example: Any) -> Recording:
    """``model`` recorded on ``example`` as ``trace`` does, or, where it resists, the largest parts of it that can be.

    Detectors resist, for example, which go on with as many boxes as they find.  Raises what ``trace`` raises, where
    the model does not run or has no part that can be recorded.
    """
    try:
        return Recording.of(trace(model, example))
    except TraceError as problem:
        try:
            return record_parts(model, example, reason_of(problem)).require_parts()
        except (NoParts, TraceError):
            # Parts were only a way out: what is wrong with the whole is what a person asked about.
            raise problem from None


@undisturbed()
def record_parts(model: nn.Module, example: Any, reason: str = "") -> Recording:
    """The largest parts of a model that can be recorded; ``reason`` is why it is not as a whole.

    Raises ``TraceError`` when it does not run.
    """
    found = recordable(model, example)
    left = {name: _SHARING for name in found if _shares(model, model.get_submodule(name))}
    left |= {name: GIVEN_NOTHING for name, given in found.items() if any(0 in x.shape for x in tensors_of_call(given))}
    parts = {
        name: trace(model.get_submodule(name), given, verify=False) for name, given in found.items() if name not in left
    }
    return Recording(model, example, parts, reason, left, _course(model, example))


def reason_of(problem: Exception) -> str:
    """What is wrong, without its end and what to do about it."""
    return re.split(r"[.;] ", str(problem))[0].removesuffix(".")


def run_watched(module: nn.Module, example: Any, watch: Callable[[nn.Module], None]) -> None:
    """Run a module that nobody else has, in eval mode, and show ``watch`` every module that is called."""
    args, kwargs = cloned(call_arguments(example))
    # For all modules there are: a forward may hold on to one that is none of this module's.
    hook = register_module_forward_pre_hook(lambda part, args: watch(part))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()), as_called():
            module.eval()(*args, **kwargs)
    finally:
        hook.remove()


def _course(model: nn.Module, example: Any) -> list[str]:
    """The modules with parameters of their own, as they are called in a run."""
    private = copy.deepcopy(model)
    names = {part: name for name, part in private.named_modules() if any(True for _ in part.parameters(recurse=False))}
    called: list[nn.Module] = []
    run_watched(private, example, called.append)
    return [names[part] for part in called if part in names]


def _shares(model: nn.Module, part: nn.Module) -> bool:
    """Whether a part has a module or a parameter that others reach, too."""
    outside: set[nn.Module] = set()
    waiting = [] if model is part else [model]
    while waiting:
        module = waiting.pop()
        outside.add(module)
        # Never through the part: what is reached there alone is its own.
        waiting.extend(child for child in module.children() if child is not part and child not in outside)
    parameters = {id(parameter) for module in outside for parameter in module.parameters(recurse=False)}
    return any(module in outside for module in part.modules()) or any(id(p) in parameters for p in part.parameters())
