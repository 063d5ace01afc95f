"""The plan of an experiment: given by hand, or proposed by the rules and kept from losing on the clock."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ghostify.clock import Clock, Judge, Measured, Place, measured, paying, require_faster
from ghostify.effects import overruled
from ghostify.errors import PlanError
from ghostify.files import replacing
from ghostify.measuring.borrowing import pick_device
from ghostify.planning import Plan, advised
from ghostify.recipe import BudgetSettings, GhostSettings, Method, Recipe, make_settings
from ghostify.rewriting import agreed
from ghostify.runtimes import runtime
from ghostify.saving import CLOCK
from ghostify.subject import Subject
from ghostify.tracing import Recording
from ghostify.watching import Watcher, counted


class Planned(NamedTuple):
    """A network recorded, whole or in parts, with the plan for it."""

    recording: Recording
    plan: Plan
    clock: Measured | None = None
    """What the plan gives on the clock, where that decided."""


class Decided(BaseModel):
    """What the clock decided, as an interrupted run keeps it."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    clock: Measured


def planned(
    subject: Subject, recipe: Recipe, given: Plan | None, watcher: Watcher, folder: Path | None = None
) -> Planned:
    """The plan for a network: ``given``, checked, or made by the recipe, and then without what is slower.

    What the clock decided is kept in ``folder``, and read there where a run goes on.  Raises ``PlanError`` where
    nothing would change, because nothing is faster above all.
    """
    if given is not None or not recipe.budget.measure:
        return _agreed(subject, recipe, given or recipe.ghost)
    if before := _decided_in(folder):
        return _agreed(subject, recipe, before.plan)._replace(clock=before.clock)
    found = _first_that_pays(subject, recipe, watcher)
    if folder and found.clock:
        with replacing(folder / CLOCK) as new:
            new.write_text(Decided(plan=found.plan, clock=found.clock).model_dump_json(indent=1), encoding="utf-8")
    return found


def _agreed(subject: Subject, recipe: Recipe, wanted: GhostSettings | Plan) -> Planned:
    place, fitted = pick_device(recipe.device), fits(subject, recipe)
    return Planned(*agreed(subject.model, subject.example, wanted, place, fitted=fitted))


def _decided_in(folder: Path | None) -> Decided | None:
    """What the clock decided when a run was begun; None where nothing readable tells."""
    try:
        return Decided.model_validate_json((folder / CLOCK).read_bytes()) if folder else None
    except (OSError, ValidationError):
        return None


def fits(subject: Subject, recipe: Recipe) -> bool:
    """Whether weights are to be fitted to what takes a layer's place."""
    return recipe.fit.resolved(subject.has_training_images) != "none"


def _first_that_pays(subject: Subject, recipe: Recipe, watcher: Watcher) -> Planned:
    """The plan of the method asked for; of ``auto``, of the first that is faster, in the order the papers advise."""
    *others, last = _methods(recipe.ghost, pick_device(recipe.device))
    for settings in others:
        try:
            return _paying(subject, recipe, settings, watcher)
        except PlanError as problem:
            watcher.say(f"Method {settings.method} is no choice. {problem}")
    return _paying(subject, recipe, last, watcher)


def _paying(subject: Subject, recipe: Recipe, settings: GhostSettings, watcher: Watcher) -> Planned:
    device, fitted = pick_device(recipe.device), fits(subject, recipe)
    recording, proposed = agreed(subject.model, subject.example, settings, device, fitted=fitted)
    clock = Clock(place_of(recipe.budget, recipe.device))
    watched = partial(counted, watcher, title=f"Measuring layers on {clock.place}")
    judge = Judge(recording, clock, watched, watcher.say)
    plan, swaps = paying(judge, settings, proposed, device=device, fitted=fitted)
    found = require_faster(measured(judge, plan, swaps), plan.network)
    watcher.say(f"{plan.network} in its inference form on {clock.place}: {found.whole}")
    return Planned(recording, plan, found)


def place_of(budget: BudgetSettings, device: str) -> Place:
    """Where time is measured: on the device of the recipe, or the CPU where the runtime knows no other."""
    chosen = runtime(budget.runtime)
    here = "cpu" if device == "auto" and chosen.devices == ("cpu",) else str(pick_device(device))
    chosen.require_device(torch.device(here))
    return Place(runtime=budget.runtime, device=here, threads=budget.threads, batch=budget.batch)


def _methods(settings: GhostSettings, device: torch.device) -> list[GhostSettings]:
    if settings.method != "auto":
        return [settings]
    return [_by_method(settings, method) for method in advised(device)]


def _by_method(settings: GhostSettings, method: Method) -> GhostSettings:
    """The settings under another method, without those that have no effect with it."""
    changes = {"method": method}
    kept = overruled(GhostSettings, settings.model_dump(exclude_unset=True), changes)
    return make_settings(GhostSettings, kept | changes, {})
