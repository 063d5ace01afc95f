"""Times kept on the disk, so that a geometry is measured once on a machine.

One file for each place (hardware, runtime, versions, threads), which holds what it is for and the time of each piece.
A file that is damaged, or for another place, is as none: what is wanted is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ghostify.clock.piece import Piece, Time
from ghostify.clock.place import Place
from ghostify.files import replacing

FORMAT = 1
"""Raised where pieces are measured in another way, so that old times are not taken for new ones."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    piece: Piece
    time: Time


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int
    depends_on: dict[str, str]
    times: list[_Entry]


class Cache:
    """The times that are known at a place."""

    def __init__(self, place: Place, folder: Path | None = None) -> None:
        self.depends_on = place.depends_on
        name = hashlib.sha256(json.dumps(self.depends_on, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or default_folder()) / f"clock-{name}.json"

    def read(self) -> dict[Piece, Time]:
        """All times that are known."""
        try:
            found = _File.model_validate_json(self.path.read_bytes())
        except (OSError, ValidationError):
            return {}
        if (found.format, found.depends_on) != (FORMAT, self.depends_on):
            return {}
        return {entry.piece: entry.time for entry in found.times}

    def add(self, times: Mapping[Piece, Time]) -> None:
        """Keep more times; where the disk cannot be written to they are not kept, and nothing else is lost.

        Two processes at once write whole files in turn: of what both measured in the same moment, the later stays, and
        what the other had besides is measured again when it is wanted.
        """
        known = self.read() | dict(times)
        entries = [_Entry(piece=piece, time=time) for piece, time in known.items()]
        file = _File(format=FORMAT, depends_on=self.depends_on, times=entries)
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path, own=True) as new:
                new.write_text(file.model_dump_json(exclude_defaults=True), encoding="utf-8")


def default_folder() -> Path:
    """``$GHOSTIFY_CACHE``, else ``ghostify`` in the user's folder for caches."""
    if named := os.environ.get("GHOSTIFY_CACHE"):
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "ghostify"
