"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghostify.errors import RunError

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""Windows knows no such locks; two processes in one folder are not noticed there."""

_held: set[int] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder.  Raises ``RunError`` where one is in it, and ``OSError``.

    The folder itself is locked, so that no file tells of it, and the system lets go when the process dies, however it
    does.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    _held.add(handle)
    try:
        _lock(handle, folder)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"Run folder {str(folder)!r} is in use by another process; wait until that is done, or stop it first."
        ) from None
    except OSError:  # some network file systems have no locks; the run can do without
        return


def _let_go() -> None:
    """A process that this one forks (to load images) shares its locks, and would hold them on when this one dies."""
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)
