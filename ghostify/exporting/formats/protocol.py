"""What a format is: a network and a file in, and the file's own runtime to run it with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ghostify.errors import ExportError, GhostifyError, RecipeError
from ghostify.exporting.portable import Portable
from ghostify.running import one_line

Runner = Callable[..., tuple[Tensor, ...]]
"""A file in its runtime: tensors in the order of the file's inputs → tensors in the order of its outputs."""


class Format(ABC):
    """A kind of file that a network is written to, and what runs it."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    """What its files end in; it may have two dots."""
    runs_on: ClassVar[str]
    """The runtime's name as its makers write it."""
    extra: ClassVar[str] = ""
    """The extra of ghostify that installs ``packages``."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What it imports beside torch."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    dynamics: ClassVar[tuple[str, ...]] = ("", "batch", "size")
    """Which sizes its files can leave open."""
    can_leave_unoptimized: ClassVar[bool] = False
    """Whether its runtime can be told to run the graph as it stands in the file."""

    script: ClassVar[str]
    """Python that runs ``{file}``, which lies beside it, on ``{arrays}`` (NumPy's, by name) or ``{tensors}``."""
    opsets: ClassVar[range | None] = None
    """Those that its files can be of, where they have one."""

    def opset(self, asked: int | None) -> int | None:
        """That of a file, where ``asked`` is what somebody wants."""
        return asked

    def notes(self, file: Path) -> tuple[str, ...]:
        """What a person should know of how its runtime runs a file, a sentence each."""
        return ()

    @abstractmethod
    def version(self) -> str:
        """That of the runtime, as its makers number it."""

    @abstractmethod
    def _write(self, network: Portable, file: Path) -> None:
        """As ``write``; whatever it raises is told in one line."""

    @abstractmethod
    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        """As ``open``; whatever it raises is told in one line."""

    def write(self, network: Portable, file: Path) -> None:
        """Write the network to ``file``, and what belongs to it beside it under the same name with other endings.

        Raises ``ExportError`` where the format, or what writes it, cannot hold the network.
        """
        try:
            self._write(network, file)
        except GhostifyError:
            raise
        except Exception as problem:  # exporters raise anything
            raise ExportError(f"The network cannot be written as {self.name}: {one_line(problem)}") from problem

    def open(self, file: Path, *, optimized: bool = True, threads: int = 1) -> Runner:
        """The file in its runtime; with ``optimized=False`` without the runtime's own optimisation of the graph, where
        ``can_leave_unoptimized``.

        Raises ``ExportError`` where the runtime does not read it.
        """
        try:
            return self._open(file, optimized, threads)
        except GhostifyError:
            raise
        except Exception as problem:  # of a reader in C++, any
            raise ExportError(f"{self.runs_on} cannot read {file.name!r}: {one_line(problem)}") from problem

    def require_packages(self) -> None:
        """Raises ``RecipeError`` when a package is not installed."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            needed = " and ".join(missing)
            raise RecipeError(f"The format {self.name} needs {needed}: pip install 'ghostify[{self.extra}]'.")
