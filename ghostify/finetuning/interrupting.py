"""Signals that end training, as Ctrl-C and a scheduler send them: the step is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ghostify.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Interruption:
    """The number of the signal that asked training to end; 0 while none did."""

    signal: int = 0
    _at_once: bool = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal inside ends the work at once, as ``Stopped``: there is no step to be finished."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def note(self, number: int, frame: object) -> None:
        """Take a signal in."""
        if self.signal or self._at_once:
            raise Stopped(number)
        self.signal = number


@contextmanager
def noted_signals() -> Iterator[Interruption]:
    """Signals inside are noted, and do not end anything; the second one does, at once (as ``Stopped``).

    Only the main thread of a process is told of signals; in others nothing is noted.
    """
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    before = {number: signal.signal(number, noted.note) for number in _SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
