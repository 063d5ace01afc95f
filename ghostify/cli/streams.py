"""stdout and stderr as they are found: of any encoding, closed, or into a pipe that nobody reads any more.

None of that is a reason to lose a run.  And while a verb works that was asked for JSON, stdout is kept for the answer.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

STDIN, STDOUT, STDERR = 0, 1, 2

_PLAIN = {"→": ">", "←": "<", "⇄": "=", "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "…": ".", "λ": "l", "²": "2"}
_PLAIN |= {"≥": ">", "≤": "<", "≈": "~", "±": "~", "│": "|", "─": "-", "━": "-", "•": "*", "’": "'", "‘": "'"}
"""One plain letter for one that an encoding lacks, so that columns stay below each other."""


class OutputLost(Exception):
    """stdout cannot be written to: its disk is full, or (``quiet``, as nobody would read it) its reader has gone."""

    def __init__(self, problem: OSError) -> None:
        self.quiet = isinstance(problem, BrokenPipeError)
        super().__init__(f"The output cannot be written: {problem.strerror}.")


def prepare() -> None:
    """Open what is closed, and let every text be written in every encoding."""
    _open_closed()
    codecs.register_error("ghostify", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a stream put in stdout's place by a caller may not have it
            stream.reconfigure(errors="ghostify")


def _open_closed() -> None:
    """Give closed streams the null device: else the next file opened, a checkpoint, would take their number."""
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _plainly(problem: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that the stream's encoding lacks."""
    assert isinstance(problem, UnicodeEncodeError)
    missing = problem.object[problem.start : problem.end]
    return "".join(_PLAIN.get(letter, "?") for letter in missing), problem.end


def silence(number: int) -> None:
    """Let nothing more be written there: what is in the buffer would fail again when the process ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


class Kept:
    """stdout, kept for an answer: what is printed meanwhile, by Python, by C or by a child process, goes to stderr."""

    def __init__(self) -> None:
        self._stdout: TextIO | None = None
        self._copy = -1

    def begin(self) -> None:
        if self._stdout is None:
            sys.stdout.flush()
            self._stdout, self._copy = sys.stdout, os.dup(STDOUT)
            self._divert()

    def end(self) -> None:
        """Give stdout back.  What prints when the process ends, even C's buffers, stays away from the answer."""
        if self._stdout is not None:
            self._restore()
            os.close(self._copy)
            self._stdout = None
            atexit.register(os.dup2, STDERR, STDOUT)  # the last that registers is the first that is called

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Print to the real stdout, whether it is kept or not.  Raises ``OutputLost``."""
        kept = self._stdout is not None
        if kept:
            self._restore()
        try:
            yield
            sys.stdout.flush()
        except OSError as problem:
            silence(STDOUT)
            raise OutputLost(problem) from None
        finally:
            if kept:
                self._divert()

    def _divert(self) -> None:
        os.dup2(STDERR, STDOUT)
        sys.stdout = sys.stderr

    def _restore(self) -> None:
        assert self._stdout is not None
        # whoever held on to the old object has left text in its buffer, which belongs where he sees the rest
        for stream in (self._stdout, sys.__stdout__):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.flush()
        os.dup2(self._copy, STDOUT)
        sys.stdout = self._stdout


stdout = Kept()
