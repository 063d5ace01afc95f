"""Somebody who watches an experiment, and is told what happens and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from ghostify.finetuning import Progress


class Watcher(Protocol):
    """Somebody who watches an experiment: told what happens next, and shown each training run."""

    def say(self, text: str) -> None:
        """One line on what happens next."""

    def training(self) -> Progress:
        """Who watches the next training run."""

    def counting(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Who is told how many of ``total`` images (or layers) are done."""


@contextmanager
def counted(watcher: Watcher, part: str = "", title: str = "Fitting layers") -> Iterator[Callable[[int, int], None]]:
    """Somebody to be told how much is done of a total that is known once it begins."""
    with ExitStack() as stack:
        counters: list[Callable[[int], None]] = []
        of = f" of {part}" if part else ""

        def told(done: int, total: int) -> None:
            if not counters:
                counters.append(stack.enter_context(watcher.counting(f"{title}{of}", total)))
            counters[0](done)

        yield told
