"""The budget of an experiment: begun with the images there are, and what harm was measured kept in its folder."""

from __future__ import annotations

from pathlib import Path

from ghostify.budget.choosing import Choosing
from ghostify.budget.preparing import prepared, settings_under
from ghostify.files import replacing
from ghostify.harm import read_harms
from ghostify.measuring.borrowing import pick_device
from ghostify.planned import fits, place_of
from ghostify.recipe import Recipe
from ghostify.saving import HARMS
from ghostify.subject import Subject
from ghostify.tracing import record
from ghostify.watching import Watcher, counted

CHECKED = 512
"""Training images, of those that nothing is fitted to, on which it is judged what a budget's network keeps."""


def settled(recipe: Recipe) -> Recipe:
    """The recipe with what a budget may choose among put down: once it is a file, nobody knows what was asked for.

    Raises ``PlanError`` for a method that leaves nothing to choose.
    """
    return recipe.model_copy(update={"ghost": settings_under(recipe.ghost)})


def begun(
    subject: Subject, recipe: Recipe, watcher: Watcher, folder: Path | None = None, *, seen: bool = True
) -> Choosing:
    """The budget of a recipe, ready to be met.

    What harm was measured is kept in ``folder``, and read there where a run goes on.  ``seen``: images are looked at.
    """
    data = subject.data if seen and subject.has_training_images else None
    path = folder / HARMS if folder and data else None
    choosing = prepared(
        record(subject.model, subject.example),
        recipe.ghost,
        recipe.budget,
        place_of(recipe.budget, recipe.device),
        images=data.calibration(recipe.fit.images) if data else None,
        held=data.calibration(CHECKED, beyond=recipe.fit.images) if data else None,
        harms=read_harms(path) if path and path.is_file() else None,
        fitted=fits(subject, recipe),
        device=pick_device(recipe.device),
        watched=lambda title: counted(watcher, title=title),
    )
    if path and choosing.measured:
        with replacing(path) as new:
            new.write_text(choosing.measured.model_dump_json(indent=1), encoding="utf-8")
    return choosing
