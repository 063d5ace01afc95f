"""Run folders before there is a run in them: made, gone on with, given up.

Only what this very call made is ever removed, file by file.  A folder that was there before, or that holds anything
else, stays.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ghostify.errors import RunError
from ghostify.files import Made
from ghostify.planning import Plan
from ghostify.recipe import Recipe
from ghostify.saving.installing import write_file, writing
from ghostify.saving.runs import RECIPE, as_yaml, found_from_here, is_run, not_there, read_run, recipe_begun_with

REQUEST = "request.json"
PLAN_GIVEN = "plan-given.yaml"
HARMS = "harms.json"
"""What harm was measured, for whoever goes on with an interrupted run."""
CLOCK = "clock.json"
"""What was decided by the clock, likewise: measured again, it might be decided otherwise."""
CHECKPOINTS = ("pretrain", "finetune")
"""Folders in a run folder that hold what an interrupted training goes on from."""
PLANS = "plans"
"""The folder of the plans of a sweep, which goes on from those that are there."""


@dataclass
class Claim:
    """A run folder in use by this call, and what of it this call made."""

    folder: Path
    made: Made = field(default_factory=Made)

    def give_up(self) -> None:
        """Remove what this call made and nobody changed since; the folder only if this call made it and it is empty.

        Where there is a run or a checkpoint to go on from, everything stays.
        """
        if is_run(self.folder) or any(_is_filled(self.folder / name) for name in (*CHECKPOINTS, PLANS)):
            return
        for name in (HARMS, CLOCK):  # the run's own, of which nothing came
            (self.folder / name).unlink(missing_ok=True)
        if self.made.holds(self.folder):
            for name in CHECKPOINTS:
                with contextlib.suppress(OSError):
                    (self.folder / name).rmdir()
        self.made.undo()


def reserve(output: str | Path, made: Made | None = None) -> Path:
    """Make and return a new run folder: ``output``, or ``output-2``, ``output-3``, … where it is taken.

    What was made is noted in ``made``.  Raises ``RunError`` when it cannot be made, before any long work is done.
    """
    output, made = Path(output), made or Made()
    if output.name in ("", ".."):  # ".", "" and "/" have no name, so no number can be put behind it
        raise RunError(f"Folder {str(output)!r} is there already; give the name of a new one, as in runs/mine.")
    with writing(output):
        for number in range(1, 100_000):
            folder = output if number == 1 else output.with_name(f"{output.name}-{number}")
            with contextlib.suppress(FileExistsError):
                made.folder(folder)
                return folder
    raise RunError(f"No free name is left beside {str(output)!r}.")


class Request(BaseModel):
    """Who began a run, and where: what ``request.json`` says."""

    model_config = ConfigDict(frozen=True)

    verb: str
    directory: str
    """The folder that relative paths and ``package.module:function`` are found from."""


def note_request(claim: Claim, recipe: Recipe, verb: str, given: Plan | None = None) -> None:
    """Put down what a run was asked to do, so that it can go on after an interruption."""
    request = Request(verb=verb, directory=str(Path.cwd()))
    texts = {REQUEST: request.model_dump_json(indent=2), RECIPE: as_yaml(recipe)}
    if given is not None:
        texts[PLAN_GIVEN] = given.to_yaml()
    with writing(claim.folder):
        for name, text in texts.items():
            write_file(claim.folder / name, text.encode())
            claim.made.file(claim.folder / name)


def resumable(folder: Path, verb: str) -> Recipe:
    """What an interrupted run was asked to do.

    Raises ``RunError`` when there is nothing to go on with, or not by this verb, or not from this directory.
    """
    path = folder / RECIPE
    if not folder.is_dir():
        raise RunError(not_there(folder))
    if not path.is_file():
        raise RunError(f"{str(folder)!r} is no run folder to go on with: it has no recipe.yaml.")
    recipe = recipe_begun_with(path, f"Recipe {str(path)!r}")
    trains = recipe.finetune is not None and recipe.finetune.epochs > 0
    if is_run(folder) and read_run(folder).state == ("finetuned" if trains else "converted"):
        raise RunError(
            f"{str(folder)!r} is finished already; train it further with: ghostify finetune {shlex.quote(str(folder))}"
        )
    request = _request_in(folder)
    begun_by = request.verb if request else _verb_of(folder)
    if begun_by not in (verb, None):
        raise RunError(
            f"{str(folder)!r} was begun by ghostify {begun_by}; go on with: "
            f"ghostify {begun_by} --resume {shlex.quote(str(folder))}"
        )
    if request:
        _require_same_directory(folder, request, recipe)
    return recipe


def _request_in(folder: Path) -> Request | None:
    try:
        return Request.model_validate_json((folder / REQUEST).read_bytes())
    except (OSError, ValidationError):
        return None


def _verb_of(folder: Path) -> str | None:
    """Which verb began a run whose request is not there (earlier versions left none); None where nothing tells."""
    signs = (folder / PLAN_GIVEN, folder / "pretrain", folder / "weights-converted.safetensors")
    return "compress" if any(sign.exists() for sign in signs) else None


def _require_same_directory(folder: Path, request: Request, recipe: Recipe) -> None:
    there = Path(request.directory)
    if there == Path.cwd() or not there.is_dir():
        return
    data = recipe.data.source if recipe.data else ""
    from_there = [recipe.model.source] if found_from_here(recipe.model) else []
    from_there += [data] if _is_relative(data) else []
    if from_there:
        raise RunError(
            f"{str(folder)!r} was begun in {str(there)!r}, from where {from_there[0]!r} is found; go on from there: "
            f"cd {shlex.quote(str(there))}; ghostify {request.verb} --resume {shlex.quote(str(folder.resolve()))}"
        )


def _is_relative(source: str) -> bool:
    """Whether a source of images is found from the directory that one is in: a path, or code."""
    kind, colon, rest = source.partition(":")
    return bool(colon) and not (kind in ("folder", "cifar10") and Path(rest).expanduser().is_absolute())


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
