"""Runtimes that run files: a network is exported to one first, and one that is there already is run as it is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from torch import nn

from ghostify.errors import GhostifyError
from ghostify.running import one_line
from ghostify.runtimes.exporting import export
from ghostify.runtimes.protocol import Runtime, Session

Feeds = Mapping[str, Any]
"""A NumPy array for the name of each input."""


@dataclass(frozen=True)
class Port:
    """An input of a file: its name, its shape (None for a size that is open) and NumPy's name of its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class FileRuntime(Runtime):
    """A runtime that reads files."""

    suffixes: ClassVar[tuple[str, ...]]
    """The files it reads."""

    @abstractmethod
    def _ports(self, file: Path) -> tuple[Port, ...]:
        """The inputs of a file."""

    @abstractmethod
    def _open(self, file: Path, feeds: Feeds, threads: int) -> Session:
        """A pass of a file on ``feeds``; inputs that it has dropped are not fed."""

    def _session(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Session:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            feeds = export(module, args, kwargs, file)
            return self._open(file, feeds, threads)

    def ports(self, file: Path) -> tuple[Port, ...]:
        """The inputs of a file.  Raises ``ModelError`` for one that the runtime cannot read."""
        try:
            return self._ports(file)
        except Exception as problem:  # of a reader in C++, any
            raise self.refusal(one_line(problem)) from problem

    def file_session(self, file: Path, feeds: Feeds, *, threads: int = 1) -> Session:
        """Set up one pass of a file on arrays for its inputs.  Raises ``ModelError`` where it does not run."""
        try:
            return self._open(file, feeds, threads)
        except GhostifyError:
            raise
        except Exception as problem:
            raise self.refusal(one_line(problem)) from problem
