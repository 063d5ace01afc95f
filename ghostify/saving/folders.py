"""Run folders before there is a run in them: made, gone on with, given up.

Only what this very call made is ever removed, file by file.  A folder that was there before, or that holds anything
else, stays.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from ghostify.errors import RunError
from ghostify.files import Made
from ghostify.planning import Plan
from ghostify.recipe import Recipe, read_yaml, validated
from ghostify.saving.runs import as_yaml, is_run, not_there, read_run, write_file, writing

CHECKPOINTS = ("pretrain", "finetune")
"""Folders in a run folder that hold what an interrupted training goes on from."""


@dataclass
class Claim:
    """A run folder in use by this call, and what of it this call made."""

    folder: Path
    made: Made = field(default_factory=Made)

    def give_up(self) -> None:
        """Remove what this call made and nobody changed since; the folder only if this call made it and it is empty.

        Where there is a run or a checkpoint to go on from, everything stays.
        """
        if not is_run(self.folder) and not any(_is_filled(self.folder / name) for name in CHECKPOINTS):
            self.made.undo()


def reserve(output: str | Path, made: Made | None = None) -> Path:
    """Make and return a new run folder: ``output``, or ``output-2``, ``output-3``, … where it is taken.

    What was made is noted in ``made``.  Raises ``RunError`` when it cannot be made, before any long work is done.
    """
    output, made = Path(output), made or Made()
    with writing(output):
        for number in range(1, 100_000):
            folder = output if number == 1 else output.with_name(f"{output.name}-{number}")
            with contextlib.suppress(FileExistsError):
                made.folder(folder)
                return folder
    raise RunError(f"No free name is left beside {str(output)!r}.")


def note_request(claim: Claim, recipe: Recipe, given: Plan | None = None) -> None:
    """Put down what a run was asked to do, so that it can go on after an interruption."""
    texts = {"recipe.yaml": as_yaml(recipe)}
    if given is not None:
        texts["plan-given.yaml"] = given.to_yaml()
    with writing(claim.folder):
        for name, text in texts.items():
            write_file(claim.folder / name, text.encode())
            claim.made.file(claim.folder / name)


def resumable(folder: Path) -> Recipe:
    """What an interrupted run was asked to do.  Raises ``RunError`` when there is nothing to go on with."""
    path = folder / "recipe.yaml"
    if not folder.is_dir():
        raise RunError(not_there(folder))
    if not path.is_file():
        raise RunError(f"{str(folder)!r} is no run folder to go on with: it has no recipe.yaml.")
    recipe = validated(Recipe, read_yaml(path, RunError, "Recipe"), f"Recipe {str(path)!r}", RunError)
    trains = recipe.finetune is not None and recipe.finetune.epochs > 0
    if is_run(folder) and read_run(folder).state == ("finetuned" if trains else "converted"):
        raise RunError(f"{str(folder)!r} is finished already; train it further with: ghostify finetune {folder}")
    return recipe


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
