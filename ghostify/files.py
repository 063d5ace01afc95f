"""Files that are either the old one or the new one, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, own: bool = False) -> Iterator[Path]:
    """A new file beside ``path`` to write to; when all went well it is flushed and takes the name in one step.

    ``own`` where other processes may write the same file at the same time: then each has a new file of its own.
    Raises ``OSError``, and then leaves ``path`` as it was and nothing beside it.
    """
    ending = f"{os.getpid()}.partial" if own else "partial"
    new = path.with_name(f".{path.name}.{ending}")
    try:
        yield new
        flush(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the rename itself; some systems cannot open a folder
        flush(path.parent)


class Made:
    """Files and folders that this call made: all it may remove when it fails, and a folder only once it is empty.

    A file that somebody changed since is somebody's, and stays.
    """

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._files: dict[Path, tuple[int, ...]] = {}

    def folder(self, path: Path) -> None:
        """Make a folder and those above it that are missing.  Raises ``FileExistsError`` where it is there."""
        missing = [path]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for one in reversed(missing):
            with contextlib.nullcontext() if one == path else contextlib.suppress(FileExistsError):
                one.mkdir()
                self._folders.append(one)

    def holds(self, folder: Path) -> bool:
        """Whether this call made a folder."""
        return folder in self._folders

    def file(self, path: Path) -> None:
        """Note a file that was just written."""
        self._files[path] = _identity(path)

    def undo(self) -> None:
        """Remove the files that are as they were written, then the folders that are empty."""
        for path, identity in self._files.items():
            with contextlib.suppress(OSError):
                if _identity(path) == identity:
                    path.unlink()
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):  # not empty: something else lies there
                folder.rmdir()


@contextlib.contextmanager
def undone_on_failure() -> Iterator[Made]:
    """What is noted as made inside is removed again when something goes wrong there."""
    made = Made()
    try:
        yield made
    except BaseException:
        made.undo()
        raise


def flush(path: Path) -> None:
    """Have what was written to a file or folder on the disk.  Raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written to or replaced."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


_NEAR = 0.7
"""How alike names must be, of 1: below that, ``missing`` is near ``sig``."""


def near_path(path: Path, whole: bool = False) -> str:
    """`` Did you mean 'x'?`` for the file or folder beside a missing ``path`` whose name, endings aside, is nearest.

    It is told by its name or, of what is an argument by itself (``whole``), with its folder.  Empty where none is near,
    and for a ``path`` that is there: it is wrong for another reason.
    """
    if path.exists():
        return ""
    try:
        beside = [other for other in path.parent.iterdir() if other.name != path.name]
    except OSError:
        return ""
    near = get_close_matches(path.stem, [other.stem for other in beside], n=1, cutoff=_NEAR)
    found = next((other for other in beside if near and other.stem == near[0]), None)
    if found is None:
        return ""
    told = str(found) if whole else found.name
    return f" Did you mean {told!r}?"
