"""Run folders as the verbs use them: made before the work, given up when nothing came of it, gone on with later."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ghostify.errors import Stopped
from ghostify.processes import rank
from ghostify.recipe import Recipe

if TYPE_CHECKING:
    from ghostify.planning import Plan
    from ghostify.saving import Claim


class RunInterrupted(Exception):
    """A run ended by a signal (Ctrl-C, where none is told), and how to go on."""

    def __init__(self, said: str, number: int = signal.SIGINT) -> None:
        super().__init__(said)
        self.code = 128 + number


def follows(settings: Recipe) -> bool:
    """Whether this is not the first of several processes: then it has taken part in all there was to do together.

    Only the first makes, locks or writes a folder, and prints.
    """
    if not rank():
        return False
    from ghostify.cli.show import Watcher
    from ghostify.experiment import follow

    follow(settings, Watcher(quiet=True))
    return True


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A new folder for what a verb writes; when it fails, what this call made of it is removed again."""
    from ghostify.files import undone_on_failure
    from ghostify.saving import reserve

    with _stopped_alike(), undone_on_failure() as made:
        yield reserve(output, made)


@contextmanager
def run_folder(
    settings: Recipe, output: Path | None, resume: Path | None, given: Plan | None, verb: str
) -> Iterator[Path]:
    """A folder for the run, locked: a new one with what was asked for put down, or the one to go on with."""
    from ghostify.files import Made
    from ghostify.saving import Claim, locked, note_request, reserve

    made = Made()
    claim = None
    try:
        with _stopped_alike():
            claim = Claim(resume or reserve(output or Path("runs") / run_name(settings), made), made)
            with locked(claim.folder):
                if not resume:
                    note_request(claim, settings, verb, given)
                yield claim.folder
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        raise RunInterrupted(_how_to_go_on(claim, verb), number) from None
    except BaseException:
        if claim is not None:
            claim.give_up()
        raise


def _how_to_go_on(claim: Claim | None, verb: str) -> str:
    if claim is None or not (claim.folder / "recipe.yaml").is_file():
        if claim is not None:
            claim.give_up()  # stopped before it was put down what was asked for
        return "Interrupted."
    return f"Interrupted. Go on with: ghostify {verb} --resume {shlex.quote(str(claim.folder))}"


@contextmanager
def _stopped_alike() -> Iterator[None]:
    """SIGTERM, by which schedulers and shutdowns stop a process, ends a run as Ctrl-C does: one can go on from it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_name(settings: Recipe) -> str:
    """What a run folder is called when nobody says: after the recipe, or the network."""
    name = settings.name or Path(settings.model.source.rpartition(":")[2]).name
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name) or "run"


def resumable(folder: Path, verb: str) -> Recipe:
    """What an interrupted run was asked to do."""
    from ghostify import saving

    return saving.resumable(folder, verb)
