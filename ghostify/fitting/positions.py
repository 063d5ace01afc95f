"""At which positions of its output a part is fitted: as many as its unknowns want, and memory has room for."""

from __future__ import annotations

import math

from torch import nn

from ghostify.fitting.agenda.agenda import Agenda
from ghostify.fitting.interpreter import MEMORY, size_of
from ghostify.fitting.kinds import choice
from ghostify.fitting.networks import Networks
from ghostify.ghosts import CGhostLinear
from ghostify.leastsquares.sampling import Positions, Samples, positions_wanted

_PLENTY = 256
"""Positions for each unknown beyond which there is next to nothing to learn."""
_APART = 7919
"""By how much the seeds of two calls of one layer differ: positions of every call are others."""


def samples_of(agenda: Agenda, networks: Networks, index: int) -> Samples:
    """Positions of the maps that a part gives, by call; of a linear layer, rows."""
    part = agenda.parts[index]
    unknowns, filters = choice.size_of(part)
    room, wanted = _room(agenda, networks, index), positions_wanted(unknowns, filters)
    # More calls have more to tell, but not for more than twice the cost.
    own = math.ceil(wanted * min(2, len(part.calls)) / len(part.calls))
    calls = [_of_call(agenda, networks, index, call, room, own) for call in range(len(part.calls))]
    # Few unknowns want few positions, but of as many images: those of one image tell much the same.
    return Samples(calls, networks.converted.own).fewer(_PLENTY * unknowns)


def _of_call(agenda: Agenda, networks: Networks, index: int, call: int, room: int, wanted: int) -> Positions:
    part = agenda.parts[index]
    shape, channels = _layout(part.module, part.calls[call].twin.meta["shapes"][0])
    share = networks.batches / (networks.batches + networks.judged)
    return Positions(
        shape,
        wanted,
        networks.batches,
        seed=index + call * _APART,
        channels=channels,
        held=networks.held,
        most=room * share,
        judged=networks.judged,
    )


def _layout(module: nn.Module, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The shape of a module's output, and which of its dimensions is that of channels."""
    if isinstance(module, nn.Linear):
        return shape, -1
    if len(shape) == 2:  # vectors are maps of one pixel
        shape = (*shape, 1, 1)
        return shape, 1
    return shape, 3 if isinstance(module, CGhostLinear) and len(shape) == 4 else 1


def _room(agenda: Agenda, networks: Networks, index: int) -> int:
    """How many batches there is room for where a part is fitted."""
    first, second = networks.original, networks.converted
    at = max(first.index[twin] for twin in agenda.parts[index].twins)
    waiting = {node for part in agenda.together(index) for node in agenda.needed(part)}
    # What is counted as alive where the part stands is not counted again.
    waiting -= set(agenda.needed(index)) if len(agenda.parts[index].calls) == 1 else {first.nodes[at]}
    each = first.bytes_at(at) + second.bytes_at(agenda.stops[index]) + sum(map(size_of, waiting))
    return MEMORY // max(1, each)
