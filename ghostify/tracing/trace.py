"""``trace``: module + example → Traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ghostify.arguments import example_input, network, takes
from ghostify.running import quiet
from ghostify.tracing.copies import private_copy
from ghostify.tracing.naming import qualified_names
from ghostify.tracing.recorder import WritesParameter, record
from ghostify.tracing.replay import require_reproduced
from ghostify.tracing.requirements import require_own_forwards, require_runnable
from ghostify.tracing.traced import Traced
from ghostify.tracing.values import call_arguments


@takes(module=network, example=example_input)
def trace(module: nn.Module, example: Any, *, verify: bool = True) -> Traced:
    """Record one run of a copy of ``module`` on ``example``, in eval mode, and ``verify`` it by replay.

    ``example`` is a tensor, a tuple of positional arguments, or a dict of keyword arguments; it may live on the meta
    device, where only shapes are verified.  Raises ``TraceError`` when the module does not run on the example, returns
    no tensor, or is not reproduced by its recording.
    """
    args, kwargs = call_arguments(example)
    require_runnable(module, (args, kwargs))
    require_own_forwards(module)
    kept = private_copy(module, share_parameters=True)  # never run, so that no run leaves its traces in it
    given = {part: name for name, part in module.named_modules()}
    try:
        return _traced(kept, private_copy(module, share_parameters=True), given, args, kwargs, verify)
    except WritesParameter:
        return _traced(kept, private_copy(module, share_parameters=False), given, args, kwargs, verify, may_write=True)


def _traced(
    kept: nn.Module,
    private: nn.Module,
    given: Mapping[nn.Module, str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    verify: bool,
    may_write: bool = False,
) -> Traced:
    with quiet(private):
        recorder = record(private, given, args, kwargs, may_write=may_write)
        if verify:
            require_reproduced(recorder, args, kwargs)
    names = qualified_names(kept)
    return Traced(kept, recorder.graph, args, kwargs, names, recorder.constants, recorder.doubts, recorder.involved)
