"""``scan``: what was recorded → Scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ghostify.arguments import network, takes
from ghostify.recipe import Stream
from ghostify.running import undisturbed
from ghostify.scanning.parts import scan_parts
from ghostify.scanning.result import Scan
from ghostify.scanning.whole import scan_run
from ghostify.tracing import Recording, Traced, record


def _recorded_or_network(value: Any) -> Any:
    return value if isinstance(value, Traced | Recording) else network(value)


@takes(model=_recorded_or_network)
@undisturbed()
def scan(
    model: Traced | Recording | nn.Module,
    example: Any = None,
    *,
    stages: Sequence[Sequence[str]] = (),
    whole: bool = False,
    steady: Sequence[str] = (),
    stream: Stream = "scaled",
) -> Scan:
    """Scan what was recorded, or a module on an example (then recorded first, in parts where it resists as a whole).

    ``stages`` names stages by hand, each by the modules of its blocks; ``whole`` asks for the channels of the whole
    network (for rule width), of which what modules meant by ``steady`` read and give stays, and with a kept ``stream``
    what is added to each other.  Raises ``TraceError``, and ``PlanError`` for a named stage that is none and where the
    channels of a whole are asked for that was recorded in parts.
    """
    recording = record(model, example) if isinstance(model, nn.Module) else Recording.of(model)
    if recording.whole:
        return scan_run(recording.whole, stages=stages, whole=whole, steady=steady, stream=stream)
    return scan_parts(recording, stages, whole)
