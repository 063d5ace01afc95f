"""``Clock``: the time of each piece at a place, known from the disk or measured now.

All that is to be measured takes turns, in one process and on pinned threads.  So each piece finds its weights as cold,
or as warm, as they are in a network that runs from its first layer to its last; a piece that runs again and again would
have them in the nearest cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ghostify.clock.building import Frame, network_of
from ghostify.clock.cache import Cache
from ghostify.clock.piece import Piece, Time
from ghostify.clock.place import Place
from ghostify.clock.turns import difference
from ghostify.measuring import timed
from ghostify.runtimes import Session, runtime

SECONDS = 0.1
"""Time for each network that is timed, its warm-up aside: some hundreds of turns of most pieces."""
MOST_BYTES = 256e6
"""Weights and maps that are held at once: the pieces of a group are built, take turns, and are let go."""
COMPANY = 24
"""Pieces that take turns at least, where as many are asked for: fewer would find their weights in the cache."""
FLUSHING_BYTES = 64e6
"""Weights and maps that leave nothing else in a cache: pieces of as many need no company."""

Told = Callable[[int, int], None]
"""Is told how many pieces are done, and of how many."""


def unheard(done: int, total: int) -> None:
    """Nobody is told."""


class Clock:
    """What pieces of networks cost at a place."""

    def __init__(self, place: Place, folder: Path | None = None) -> None:
        self.place = place
        self._runtime = runtime(place.runtime)
        self._cache = Cache(place, folder)
        self._known = self._cache.read()

    def times(self, pieces: Iterable[Piece], told: Told = unheard) -> dict[Piece, Time]:
        """The time of each piece; those that nobody has measured here are measured now.

        Raises ``ModelError`` where the runtime cannot run a piece.
        """
        wanted = list(dict.fromkeys(pieces))
        times = {piece: self._known[piece] for piece in wanted if piece in self._known}
        missing = [piece for piece in wanted if piece not in times]
        done = 0
        for group in grouped(missing):
            found = self._measured([*group, *company_of(group, times)])
            fresh = {piece: found[piece] for piece in group}
            self._cache.add({piece: time for piece, time in fresh.items() if time.steady})
            self._known |= fresh
            times |= fresh
            done += len(group)
            told(done, len(missing))
        return {piece: times[piece] for piece in wanted}

    def _measured(self, pieces: Sequence[Piece]) -> dict[Piece, Time]:
        frames = {piece: Frame.of(piece) for piece in pieces}
        names = {frame: f"frame {index}" for index, frame in enumerate(dict.fromkeys(frames.values()))}
        sessions = {name: self._session(frame) for frame, name in names.items()}
        numbered = {f"piece {index}": piece for index, piece in enumerate(pieces)}
        sessions |= {name: self._session(frames[piece], piece) for name, piece in numbered.items()}
        place = self.place
        timings = timed(
            sessions,
            seconds=SECONDS * len(sessions),
            threads=place.threads,
            device=place.device,
            runtime=place.runtime,
        )
        return {piece: _least(timings.ms[name], timings.ms[names[frames[piece]]]) for name, piece in numbered.items()}

    def _session(self, frame: Frame, piece: Piece | None = None) -> Session:
        device = torch.device(self.place.device)
        module = network_of(frame, piece).to(device)
        inputs = tuple(tensor.to(device) for tensor in frame.inputs)
        return self._runtime.session(module, inputs, threads=self.place.threads, device=device)


def grouped(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """The pieces in groups that fit into ``MOST_BYTES``, in their order: the forms of a layer take turns together."""
    group: list[Piece] = []
    held = 0.0
    for piece in pieces:
        size = _bytes_of(piece)
        if group and held + size > MOST_BYTES:
            yield group
            group, held = [], 0.0
        group.append(piece)
        held += size
    if group:
        yield group


def company_of(group: Sequence[Piece], known: Iterable[Piece]) -> list[Piece]:
    """Pieces whose time is known, to take turns with a group too small to push weights out of the cache."""
    company: list[Piece] = []
    held = sum(map(_bytes_of, group))
    for piece in known:
        # Of batches, each piece may be a group: with a full company each, it would be timed all over again for each.
        if len(group) + len(company) >= COMPANY or held >= FLUSHING_BYTES:
            break
        company.append(piece)
        held += _bytes_of(piece)
    return company


def _bytes_of(piece: Piece) -> float:
    """About the memory of a piece's weights and maps, in single precision."""
    channels = piece.reads[-1] if piece.kind == "linear" else piece.reads[1]
    weights = channels // piece.groups * piece.outputs * math.prod(piece.kernel)
    maps = math.prod(piece.reads) * (1 + piece.outputs / channels)
    return 4 * (weights + maps)


def _least(within: Sequence[float], alone: Sequence[float]) -> Time:
    """The time of a piece by the turns of its frame with and without it; noise may make a small one negative."""
    found = difference(within, alone)
    return found.model_copy(update={"ms": max(0.0, found.ms)})
