"""Run folders as the verbs use them: made before the work, left empty-handed never, gone on with after Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ghostify.recipe import Recipe

if TYPE_CHECKING:
    from ghostify.planning import Plan


@contextmanager
def run_folder(
    settings: Recipe, output: Path | None, resume: Path | None, given: Plan | None, verb: str
) -> Iterator[Path]:
    """A folder for the run: what was asked for is put down first; an empty folder is not left behind."""
    from ghostify.saving import discard, note_request, reserve

    folder = resume or reserve(output or Path("runs") / run_name(settings))
    try:
        if not resume:
            note_request(folder, settings, given)
        yield folder
    except KeyboardInterrupt:
        discard(folder)
        how = f" Go on with: ghostify {verb} --resume {folder}" if folder.exists() else ""
        raise RunInterrupted(f"Interrupted.{how}") from None
    except BaseException:
        discard(folder)
        raise


class RunInterrupted(Exception):
    """Ctrl-C in a run, and how to go on."""


def run_name(settings: Recipe) -> str:
    name = settings.name or Path(settings.model.source.rpartition(":")[2]).name
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name) or "run"


def resumable(folder: Path) -> Recipe:
    from ghostify import saving

    return saving.resumable(folder)
