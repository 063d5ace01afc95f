"""``trace``: module + example → Traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ghostify.arguments import example_input, network, takes
from ghostify.running import quiet, undisturbed
from ghostify.tracing.copies import private_copy
from ghostify.tracing.naming import qualified_names
from ghostify.tracing.recorder import Recorder, WritesParameter, record
from ghostify.tracing.replay import require_reproduced
from ghostify.tracing.requirements import require_own_forwards, require_runnable
from ghostify.tracing.traced import Traced
from ghostify.tracing.values import call_arguments


@takes(module=network, example=example_input)
@undisturbed()
def trace(module: nn.Module, example: Any, *, verify: bool = True) -> Traced:
    """Record one run of a copy of ``module`` on ``example``, in eval mode, and ``verify`` it by replay.

    ``example`` is a tensor, a tuple of positional arguments, or a dict of keyword arguments; it may live on the meta
    device, where only shapes are verified.  Raises ``TraceError`` when the module does not run on the example, returns
    no tensor, or is not reproduced by its recording.
    """
    return recorded_run(module, example, verify=verify, training=False)


def recorded_run(module: nn.Module, example: Any, *, verify: bool, training: bool) -> Traced:
    """One run, in train mode on request; otherwise as ``trace``."""
    args, kwargs = call_arguments(example)
    require_runnable(module, (args, kwargs))
    require_own_forwards(module)
    kept = private_copy(module, share_parameters=True)  # never run, so that no run leaves its traces in it
    given = {part: name for name, part in module.named_modules()}

    def traced(may_write: bool) -> Traced:
        private = private_copy(module, share_parameters=not may_write)
        recorder = _recorded(private, given, (args, kwargs), verify, training, may_write)
        names = qualified_names(kept)
        return Traced(
            module=kept,
            graph=recorder.graph,
            args=args,
            kwargs=kwargs,
            names=names,
            constants=recorder.constants,
            doubts=recorder.doubts,
            involved=recorder.involved,
            training=training,
        )

    try:
        return traced(may_write=False)
    except WritesParameter:
        return traced(may_write=True)


def _recorded(
    private: nn.Module,
    given: Mapping[nn.Module, str],
    example: tuple[tuple[Any, ...], dict[str, Any]],
    verify: bool,
    training: bool,
    may_write: bool,
) -> Recorder:
    with quiet(private):
        private.train(training)
        recorder = record(private, given, *example, may_write=may_write)
        if verify:
            require_reproduced(recorder, *example)
    return recorder
