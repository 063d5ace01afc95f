"""``trace``: module + example → Traced."""

from __future__ import annotations

from typing import Any

from torch import nn

from ghostify.arguments import example_input, network, takes
from ghostify.running import quiet, undisturbed
from ghostify.tracing.copies import private_copy
from ghostify.tracing.naming import qualified_names
from ghostify.tracing.recorder import WritesParameter, record
from ghostify.tracing.replay import require_reproduced
from ghostify.tracing.requirements import require_own_forwards, require_runnable
from ghostify.tracing.traced import Traced
from ghostify.tracing.values import Forms, call_arguments


@takes(module=network, example=example_input)
@undisturbed()
def trace(module: nn.Module, example: Any, *, verify: bool = True) -> Traced:
    """Record one run of a copy of ``module`` on ``example``, in eval mode, and ``verify`` it by replay.

    ``example`` is a tensor, a tuple of positional arguments, or a dict of keyword arguments; it may live on the meta
    device, where only shapes are verified.  Raises ``TraceError`` when the module does not run on the example, returns
    no tensor, or is not reproduced by its recording.
    """
    return recorded_run(module, example, verify=verify)


def recorded_run(module: nn.Module, example: Any, *, verify: bool = False, training: bool = False) -> Traced:
    """One run of a copy of ``module``, in train mode on request.  Raises as ``trace``."""
    require_runnable(module, call_arguments(example))
    require_own_forwards(module)
    kept = private_copy(module, share_parameters=True)  # never run, so that no run leaves its traces in it
    try:
        private = private_copy(module, share_parameters=True)
        return one_run(private, kept, module, example, verify=verify, training=training)
    except WritesParameter:
        # Once more with parameters of its own, which take as much memory again: few networks write to theirs.
        private = private_copy(module, share_parameters=False)
        return one_run(private, kept, module, example, verify=verify, training=training, may_write=True)


def one_run(
    private: nn.Module,
    kept: nn.Module,
    original: nn.Module,
    example: Any,
    *,
    verify: bool = False,
    training: bool = False,
    may_write: bool = False,
    known: Forms | None = None,
) -> Traced:
    """One run of ``private``, told as one of ``kept``; both are copies of the ``original``, of which no module may run.

    Raises ``WritesParameter`` where it would write to a parameter and may not.
    """
    given = {part: name for name, part in original.named_modules()}
    args, kwargs = call_arguments(example)
    with quiet(private):
        private.train(training)
        recorder = record(private, given, args, kwargs, may_write=may_write, known=known, remember=verify)
        if verify:
            require_reproduced(recorder, args, kwargs)
    return Traced(
        module=kept,
        graph=recorder.graph,
        args=args,
        kwargs=kwargs,
        names=qualified_names(kept),
        constants=recorder.constants,
        doubts=recorder.doubts,
        involved=recorder.involved,
        reads_sizes=recorder.reads_sizes,
        training=training,
        forms=recorder.forms,
    )
