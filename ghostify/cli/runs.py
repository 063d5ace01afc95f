"""Run folders as the verbs use them: made before the work, given up when nothing came of it, gone on with later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ghostify.recipe import Recipe

if TYPE_CHECKING:
    from ghostify.planning import Plan


class RunInterrupted(Exception):
    """Ctrl-C in a run, and how to go on."""


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A new folder for what a verb writes; when it fails, what this call made of it is removed again."""
    from ghostify.files import undone_on_failure
    from ghostify.saving import reserve

    with undone_on_failure() as made:
        yield reserve(output, made)


@contextmanager
def run_folder(
    settings: Recipe, output: Path | None, resume: Path | None, given: Plan | None, verb: str
) -> Iterator[Path]:
    """A folder for the run: a new one, in which what was asked for is put down first, or the one to go on with."""
    from ghostify.files import Made
    from ghostify.saving import Claim, note_request, reserve

    made = Made()
    claim = Claim(resume or reserve(output or Path("runs") / run_name(settings), made), made)
    try:
        if not resume:
            note_request(claim, settings, given)
        yield claim.folder
    except KeyboardInterrupt:
        raise RunInterrupted(f"Interrupted. Go on with: ghostify {verb} --resume {claim.folder}") from None
    except BaseException:
        claim.give_up()
        raise


def run_name(settings: Recipe) -> str:
    """What a run folder is called when nobody says: after the recipe, or the network."""
    name = settings.name or Path(settings.model.source.rpartition(":")[2]).name
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name) or "run"


def resumable(folder: Path) -> Recipe:
    """What an interrupted run was asked to do."""
    from ghostify import saving

    return saving.resumable(folder)
