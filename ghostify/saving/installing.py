"""The files of a run, written so that a folder holds the run before or the run after, whenever a process dies.

New files are written under hidden names (``.NAME.partial``) and read back.  Only then do they take their names, and
``run.json``, which lists them, comes last.  What they displace stays beside them (``.NAME.before``) until that is done,
so that the old ``run.json`` finds its files even when the process was killed in between.  A file that is no run's is
never displaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError

from ghostify.errors import RunError
from ghostify.files import flush, replacing, sha256

RUN = "run.json"
NAMES = ("plan.yaml", "scan.json", "environment.json", "report.json", "fit.json", "span.safetensors", "README.md")
"""What every run writes, apart from its recipe and its weights."""


class Installation:
    """New files of a run, on their way into its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}
        """By name, the sha256 of each new file."""
        self._owned = owned(folder)
        self._done: list[str] = []

    def add(self, name: str, write: Callable[[Path], object]) -> Path:
        """Write a file under a hidden name; where it lies until ``commit``.  Raises ``RunError`` for a foreign file."""
        new = _beside(self.folder / name, "partial")
        self.files[name] = ""
        write(new)
        flush(new)
        self.files[name] = sha256(new)
        require_owned(self.folder, name, self._owned, self.files[name])
        return new

    def commit(self, run: str) -> None:
        """Give the new files their names, and then ``run.json`` its text."""
        pending = _beside(self.folder / RUN, "partial")
        pending.write_text(run, encoding="utf-8")
        flush(pending)
        for name in self.files:
            path = self.folder / name
            if path.exists():
                _set_aside(path)
            self._done.append(name)
            _beside(path, "partial").replace(path)
        pending.replace(self.folder / RUN)
        with contextlib.suppress(OSError):  # the run is there; what is left over is swept the next time
            flush(self.folder)
            self._remove_replaced()
            self._sweep({*self.files, *self._owned, RUN})

    def _remove_replaced(self) -> None:
        """Remove what the run before listed and this one does not, as it was written."""
        now = _files_in(self.folder / RUN)
        for name, digest in self._owned.items():
            path = self.folder / name
            if name not in now and path.is_file() and sha256(path) == digest:
                path.unlink()

    def undo(self) -> None:
        """Put back what was displaced, and remove what was written."""
        for name in self._done:
            path, old = self.folder / name, _beside(self.folder / name, "before")
            with contextlib.suppress(OSError):
                old.replace(path) if old.exists() else path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._sweep({*self.files, RUN})

    def _sweep(self, names: set[str]) -> None:
        for name in names:
            for ending in ("partial", "before"):
                _beside(self.folder / name, ending).unlink(missing_ok=True)


def owned(folder: Path) -> dict[str, str]:
    """By name, the sha256 of the files that belong to a run in the folder, or to one that was being put there."""
    begun = _files_in(_beside(folder / RUN, "partial"))
    return {name: digest for name, digest in begun.items() if listed(folder, name, digest)} | _files_in(folder / RUN)


def _files_in(path: Path) -> dict[str, str]:
    """The files that a ``run.json`` lists, of those that may be a run's: none in another folder."""
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
        files = json.loads(path.read_bytes())["files"]
        return {name: digest for name, digest in files.items() if Path(name).name == name}
    return {}


def require_owned(folder: Path, name: str, known: Mapping[str, str], new: str = "") -> None:
    """Refuse to displace a file that no run lists, unless it says the same."""
    path = folder / name
    if path.exists() and name not in known and not (path.is_file() and sha256(path) == new):
        raise RunError(
            f"{str(path)!r} is there already and is no file of a run, so it is not overwritten; move it away, or "
            "choose another folder."
        )


def listed(folder: Path, name: str, digest: str) -> Path | None:
    """Where the file of that content lies: under its name, or set aside by a process that died; None where nowhere."""
    for path in (folder / name, _beside(folder / name, "before")):
        if path.is_file() and sha256(path) == digest:
            return path
    return None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Whatever the disk says becomes one line."""
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise RunError(f"Run folder {str(folder)!r} cannot be written: {reason}.") from problem
    except SafetensorError as problem:
        raise RunError(f"Run folder {str(folder)!r} cannot be written: {problem}.") from problem


def write_file(path: Path, content: bytes) -> None:
    """Write a file under its name in one step, unless it says so already."""
    if path.is_file() and path.read_bytes() == content:
        return
    with replacing(path) as new:
        new.write_bytes(content)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _set_aside(path: Path) -> None:
    """Give a file a second name."""
    aside = _beside(path, "before")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:  # a file system without links
        shutil.copy2(path, aside)
