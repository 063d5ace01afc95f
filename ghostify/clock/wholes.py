"""Networks as a whole, in their inference form, timed in turns at a place."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ghostify.batches import count, join, move, take
from ghostify.clock.place import Place
from ghostify.inference import inference_form, recorded_for
from ghostify.measuring import Timings, timed
from ghostify.rewriting import Ghosted
from ghostify.runtimes import Session, runtime
from ghostify.tracing import Recording, call_arguments

TURNS = 30
SHORTEST, LONGEST = 2.0, 20.0
"""Seconds that the turns of all networks take together, however many there are then."""


def side_by_side(networks: Mapping[str, Recording], place: Place) -> Timings:
    """Recorded networks in their inference form, timed in turns; of one that was recorded in parts, these.

    Raises ``ModelError`` where the runtime cannot run one of them.
    """
    return in_turns({name: session_of(recording, place) for name, recording in networks.items()}, place)


def in_turns(sessions: Mapping[str, Session], place: Place) -> Timings:
    """Sessions of whole networks, which were made for a place, timed there in turns."""
    seconds = min(LONGEST, max(SHORTEST, TURNS * _one_turn(sessions)))
    return timed(sessions, seconds=seconds, threads=place.threads, device=place.device, runtime=place.runtime)


def recorded(ghosted: Ghosted, original: Recording) -> Recording:
    """A rewritten network recorded as its original was."""
    return recorded_for(ghosted.plan, ghosted.module, original.example)


def session_of(recording: Recording, place: Place) -> Session:
    """A pass of all parts of a recorded network in its inference form, one after the other."""
    form = inference_form(recording)
    parts = [_part(form.get_submodule(name), run.example, place) for name, run in recording.parts.items()]
    if len(parts) == 1:
        return parts[0]
    return lambda: [session() for session in parts]


def _part(module: nn.Module, example: Any, place: Place) -> Session:
    device = torch.device(place.device)
    args, kwargs = call_arguments(move(_of_batch(example, place.batch), device))
    return runtime(place.runtime).session(module.to(device), args, kwargs, threads=place.threads, device=device)


def _of_batch(example: Any, batch: int) -> Any:
    """The example with so many samples, where its tensors agree on how many it has."""
    if count(example) in (0, batch):
        return example
    return join([take(example, slice(0, 1))] * batch)


def _one_turn(sessions: Mapping[str, Session]) -> float:
    """Seconds of one pass of each, the first ones aside, which choose kernels."""
    with torch.inference_mode():
        turns = [_seconds(sessions) for _ in range(3)]
    return statistics.median(turns[1:])


def _seconds(sessions: Mapping[str, Session]) -> float:
    start = time.perf_counter()
    for session in sessions.values():
        session()
    return time.perf_counter() - start
