"""Recipe → a folder with a front: plans for several targets, and what a person would set by hand, all side by side.

    harm, and prices, once → each network: planned, fitted, tested, put down → all of them timed in turns

What is put down after each network is what an interruption leaves, and what ``--resume`` goes on from.  Networks are
timed together at the end, because ratios of times that were not taken in turns say little; plans are enough for that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ghostify.budget.choosing import Choosing
from ghostify.budget.trying import tried
from ghostify.budgeting import begun
from ghostify.clock.wholes import recorded, side_by_side
from ghostify.errors import DataError, GhostifyError, ModelError, PlanError, RecipeError, RunError
from ghostify.files import replacing
from ghostify.job import Job
from ghostify.judging import MEASURE_IT
from ghostify.measuring import Accuracy, Score
from ghostify.planned import place_of
from ghostify.planning import Plan, read_plan
from ghostify.recipe import BudgetSettings, GhostSettings, Recipe, SweepSettings
from ghostify.reporting.sweep import SWEEP, Family, Kept, Point, Sweep, read_sweep
from ghostify.reporting.sweep_files import PAGE, write_sweep
from ghostify.rewriting import Ghosted, rewrite
from ghostify.saving import PLANS
from ghostify.targets import Target
from ghostify.tracing import Recording, record
from ghostify.watching import Watcher

_KEPT = ("include", "exclude", "also")
"""What was asked of all networks, also of those that are set by hand."""


@dataclass(frozen=True)
class Wanted:
    """A network that is to be made: by a target, or by settings of a person's."""

    name: str
    family: Family
    target: Target | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def wanted(asked: SweepSettings) -> Iterator[Wanted]:
    """The planned networks, and their neighbours: what a person would set to have each share of the original.

    A ratio s leaves about 1/s of the multiply-adds, and so does the inner width of blocks; a width of every layer
    counts twice, for what is read and what is given.
    """
    for target in asked.asked:
        yield Wanted(str(target), "plan", target)
    if not asked.neighbours:
        return
    shares = [target.value for target in asked.asked]
    for s in sorted({max(2, round(1 / share)) for share in shares}):
        yield Wanted(f"s={s}", "c-ghost", settings={"method": "c-ghost", "s": s})
    for share in shares:
        yield Wanted(f"thin={share:g}", "thin", settings={"method": "thin", "width": share})
    for share in shares:
        width = round(math.sqrt(share), 2)
        yield Wanted(f"width={width:g}", "width", settings={"method": "width", "width": width})


def sweep(recipe: Recipe, folder: Path, watcher: Watcher) -> Sweep:
    """Make and measure all networks of a sweep, into a reserved folder; one that was stopped goes on.

    Raises ``DataError`` without images, ``RunError`` for a folder that is finished, ``PlanError`` where no network can
    be made.
    """
    if recipe.budget.asked:
        raise RecipeError("A sweep has targets of its own (sweep.targets); leave out budget.target and budget.keep.")
    known = _known(folder)
    if known is not None and known.complete:
        raise RunError(f"{str(folder)!r} is finished already; its page is {str(folder / PAGE)!r}.")
    # The first target stands for all of them, as to what is to be known before any is met.
    budget = recipe.budget.model_copy(update={"target": recipe.sweep.asked[:1]})
    budget.require_clock()
    job = Job.of(recipe.model_copy(update={"budget": budget}), folder, watcher)
    _require_measurable(job)
    return _Sweeping(job, known or _begun(job)).run()


def _known(folder: Path) -> Sweep | None:
    return read_sweep(folder) if (folder / SWEEP).is_file() else None


def _require_measurable(job: Job) -> None:
    if job.subject.data is None:
        raise DataError("A sweep needs images, to tell what networks keep; give them, as in --data folder:PATH.")
    if job.judge.unscored:
        raise ModelError(f"{job.judge.unscored} {MEASURE_IT}")
    job.require_measurable()


def _begun(job: Job) -> Sweep:
    """A sweep of which nothing but the original is known."""
    assert job.subject.data is not None, "checked before"
    original = job.as_it_is()
    return Sweep(
        network=original.plan.network,
        source=job.recipe.model.source,
        targets=job.recipe.sweep.targets,
        of=job.recipe.sweep.of,
        data=job.subject.data.description,
        before=original.plan.after,
        original=_kept(job, job.subject.model, original=True),
        notes=tuple(job.subject.notes),
    )


def _kept(job: Job, module: nn.Module, original: bool = False) -> Kept:
    """What a network is good for on the test images."""
    stage = "original" if original else "converted"
    measured = job.judge.scores({stage: module})[stage]
    return Kept(
        accuracy=measured if isinstance(measured, Accuracy) else None,
        score=measured if isinstance(measured, Score) else None,
        agreement=None if original else job.judge.agreement(module),
    )


class _Sweeping:
    """The networks of a sweep one after the other."""

    def __init__(self, job: Job, found: Sweep) -> None:
        self.job, self.found = job, found

    def run(self) -> Sweep:
        """Make what is missing, then time all."""
        missing = [one for one in wanted(self.job.recipe.sweep) if not self._is_done(one)]
        began = time.monotonic()
        for done, one in enumerate(missing):
            self.job.watcher.say(f"Network {done + 1} of {len(missing)}: {one.name}{_left(began, done, missing)}")
            self._note(one)
            if not done:
                began = time.monotonic()  # the first took the harms and prices that serve all, so it tells nothing
        if not self.found.points:
            raise PlanError(f"No network of this sweep could be made: {next(iter(self.found.failed.values()))}")
        self._time()
        self._put_down(complete=True)
        return self.found

    def _is_done(self, one: Wanted) -> bool:
        return one.name in self.found.failed or any(one.name == point.name for point in self.found.points)

    def _note(self, one: Wanted) -> None:
        """Make and measure a network, or note why it cannot be made."""
        try:
            point = self._made(one)
        except GhostifyError as problem:
            self.job.watcher.say(f"{one.name} was not made: {problem}")
            self._put_down(failed={**self.found.failed, one.name: str(problem)})
            return
        self._put_down(points=(*self.found.points, point))

    def _put_down(self, **changes: Any) -> None:
        self.found = self.found.model_copy(update=changes)
        if self.found.points:  # a folder of failures alone is nothing to go on from
            write_sweep(self.job.folder, self.found)

    # -- one network -------------------------------------------------------------------------------------------

    def _made(self, one: Wanted) -> Point:
        ghosted, harm = self._planned(one) if one.target else (self._neighbour(one), None)
        path = f"{PLANS}/{one.name.replace('=', '-')}.yaml"
        (self.job.folder / PLANS).mkdir(exist_ok=True)
        with replacing(self.job.folder / path) as new:
            new.write_text(ghosted.plan.to_yaml(), encoding="utf-8")
        return Point(
            name=one.name,
            family=one.family,
            cost=ghosted.plan.after,
            kept=_kept(self.job, ghosted.module),
            harm=harm,
            plan=path,
        )

    @cached_property
    def _choosing(self) -> Choosing:
        """What may be chosen, with prices and harms, which all targets share."""
        job = self.job
        return begun(job.subject, job.recipe, job.watcher, job.folder)

    def _planned(self, one: Wanted) -> tuple[Ghosted, float]:
        """The network of a target, and the harm expected of it."""
        assert one.target is not None
        budget = self._choosing.budget.model_copy(update={"target": (one.target,)})
        choosing = replace(self._choosing, budget=budget, come_true={}, savings=(), rounds=0, solution=None, timed=None)
        chosen = tried(choosing, choosing.plan(), self.job.made, self.job.watcher.say)
        # what is learned of how harms add up holds for the other targets, too
        self._choosing.harms, self._choosing.corrected = choosing.harms, choosing.corrected
        recording, plan = self.job.planned(chosen)
        return self.job.rewritten(recording, plan, plan), choosing.harm

    def _neighbour(self, one: Wanted) -> Ghosted:
        """The network of settings that a person would write, with nothing left out because of the clock."""
        asked = {name: getattr(self.job.recipe.ghost, name) for name in _KEPT}
        ghost = GhostSettings(**asked, **one.settings)
        recipe = self.job.recipe.model_copy(update={"ghost": ghost, "budget": BudgetSettings(measure=False)})
        job = replace(self.job, recipe=recipe)
        recording, plan = job.planned(None)
        return job.rewritten(recording, plan, None)

    # -- all of them -------------------------------------------------------------------------------------------

    def _time(self) -> None:
        """Time all networks in turns with the original, in the form that runs."""
        recipe, subject = self.job.recipe, self.job.subject
        if not recipe.budget.measure:
            return
        place = place_of(recipe.budget, recipe.device)
        self.job.watcher.say(f"Timing all networks in turns ({place})")
        original = record(subject.model, subject.example)
        networks = {"original": original}
        for point in self.found.points:
            networks[point.name] = self._rebuilt(read_plan(self.job.folder / point.plan), original)
        timings = side_by_side(networks, place)
        points = (
            point.model_copy(update={"latency": timings.compare("original", point.name)}) for point in self.found.points
        )
        self.found = self.found.model_copy(update={"points": tuple(points), "place": str(place)})

    def _rebuilt(self, plan: Plan, original: Recording) -> Recording:
        # Time does not depend on weights, so those that were fitted need not be kept.
        recording, plan = self.job.planned(plan)
        return recorded(rewrite(recording, plan), original)


def _left(began: float, done: int, missing: Sequence[Wanted]) -> str:
    """How long the others are likely to take, once one is done besides the first."""
    if done < 2:
        return ""
    left = (time.monotonic() - began) / (done - 1) * (len(missing) - done)
    return f" (about {left:.0f} s left)" if left < 100 else f" (about {left / 60:.0f} min left)"
