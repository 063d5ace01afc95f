"""Recipe → run folder: a whole experiment, with progress, in steps that an interruption does not lose."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ghostify import inference, measuring
from ghostify.analysis import (
    LEAST_IMAGES,
    SEEN,
    Analysis,
    Camera,
    Pictures,
    as_picture,
    first_image,
    with_converted,
    with_plan,
)
from ghostify.analysis import (
    analyze as analyze_network,
)
from ghostify.batches import count, inputs_in, take
from ghostify.budget_result import Budgeted
from ghostify.budgeting import begun
from ghostify.errors import DataError, GhostifyError, ModelError, RecipeError, RunError
from ghostify.job import Job, Outcome, joined
from ghostify.judging import MEASURE_IT, Judge, metric_of
from ghostify.measuring import Accuracy, Score
from ghostify.measuring.borrowing import pick_device
from ghostify.planned import planned
from ghostify.planning import Plan
from ghostify.processes import alone
from ghostify.recipe import ModelSettings, Recipe, TrainSettings
from ghostify.reporting import compare
from ghostify.reporting.forms import inference_report
from ghostify.saving import load_original, read_report, read_run, save
from ghostify.sources import build_model, load_sample
from ghostify.subject import Subject, prepare
from ghostify.tracing import call_arguments
from ghostify.watching import Watcher, counted

NAMED = 3
"""Damaged files that are named; the others are counted."""


def propose(recipe: Recipe, watcher: Watcher, given: Plan | None = None) -> Plan:
    """The plan ``compress`` would carry out (``given``, checked, or one made by the recipe); nothing is written.

    Raises ``PlanError`` when it does not fit or changes nothing.
    """
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    for note in subject.notes:
        watcher.say(note)
    if given is None and recipe.budget.asked:
        choosing = begun(subject, recipe, watcher)
        given = choosing.plan()
        watcher.say(str(choosing.result()))
    return planned(subject, recipe, given, watcher).plan


def compress(recipe: Recipe, folder: Path, watcher: Watcher, given: Plan | None = None) -> Outcome:
    """Train if asked, rewrite, measure, save, fine-tune if asked, save; all into a reserved folder.

    An experiment that was stopped goes on when called again with the same recipe and folder: finished epochs are on
    the disk.  Raises any ``GhostifyError``.
    """
    with leading(Job.of(recipe, folder, watcher)) as job:
        return _compressed(job, given)


def _compressed(job: Job, asked: Plan | None) -> Outcome:
    recipe, watcher = job.recipe, job.watcher
    pretrained = bool(job.recipe.pretrain and job.recipe.pretrain.epochs)
    given = asked or job.chosen(trained=not pretrained)
    recorded, plan = job.planned(given)  # a plan that cannot be carried out is told before any training
    job.require_measurable()
    job.rehearse(plan)
    if job.recipe.pretrain and pretrained:
        watcher.say(f"Training the original network for {job.recipe.pretrain.epochs} epochs")
        job.train(job.subject.model, job.recipe.pretrain, "pretrain", teacher=None)
        given = asked or job.chosen()  # of the weights as they are now
        recorded, plan = job.planned(given)
        job.rehearse(plan)

    for line in filter(None, (plan.table().title, plan.partly)):
        watcher.say(line)
    # first, so that nothing is lost if it cannot be measured
    accuracy = job.judge.scores({"original": job.subject.model})
    if given and given is not asked:
        given = job.tried(given)
        recorded, plan = job.planned(given)
    ghosted = job.settled(job.rewritten(recorded, plan, given))
    job.settle_rate(fitted=ghosted.fit is not None)
    watcher.say("Measuring the original and the ghosted network")
    latency = measuring.compare(
        job.subject.model, ghosted.module, *call_arguments(job.subject.example), device=job.place
    )
    ghosted = job.spanned(ghosted)
    accuracy |= job.judge.scores({"converted": ghosted.module}, ghosted.span)
    agreed_on = job.judge.agreement(ghosted.module)
    kept = job.subject.model if recipe.pretrain and not job.subject.run else None
    outcome = job.save(ghosted, accuracy, "converted", latency, kept, agreed_on)

    if recipe.finetune and recipe.finetune.epochs:
        job.finetune(ghosted, job.subject.model)
        ghosted = job.spanned(ghosted)
        accuracy |= job.judge.scores({"finetuned": ghosted.module}, ghosted.span)
        outcome = job.save(ghosted, accuracy, "finetuned", latency, agreement=agreed_on)
    job.clear_checkpoints()
    return outcome


def train(recipe: Recipe, folder: Path, watcher: Watcher) -> Outcome:
    """Fine-tune a network as it is (a run folder, or any other model) into a reserved folder; goes on as above.

    A run folder's original network is the teacher when ``recipe.finetune.distill`` asks for one.
    """
    settings = recipe.finetune or TrainSettings()
    with leading(Job.of(recipe.model_copy(update={"finetune": settings}), folder, watcher)) as job:
        return _trained(job, settings)


def follow(recipe: Recipe, watcher: Watcher) -> None:
    """What every process but the first does of an experiment: its part in each fit and training; else it waits."""
    Job.of(recipe, Path(os.devnull), watcher).follow()


@contextmanager
def leading(job: Job) -> Iterator[Job]:
    """A job of the first process, which alone does all that is neither fit nor training; the others end with it."""
    try:
        with alone():
            yield job
    finally:
        job.dismiss()


def _trained(job: Job, settings: TrainSettings) -> Outcome:
    recipe = job.recipe
    teacher = _teacher(job.subject, recipe.model, settings)
    ghosted = job.as_it_is()
    job.settle_rate(fitted=ghosted.fit is not None)
    job.require_measurable()
    job.rehearse(ghosted.plan)
    accuracy = job.judge.scores({"converted" if ghosted.plan.swaps else "original": ghosted.module})
    job.finetune(ghosted, teacher or _original(job.subject, recipe.model))
    ghosted = job.spanned(ghosted)
    accuracy |= job.judge.scores({"finetuned": ghosted.module}, ghosted.span)
    outcome = job.save(ghosted, accuracy, "finetuned", original=teacher)
    job.clear_checkpoints()
    return outcome


def optimize(source: Path, folder: Path, watcher: Watcher) -> Outcome:
    """Bring the network of a run into its inference form, measure all three side by side, and save it in a reserved
    folder.

    The report is that of the run, because the outputs are the same, with the inference form beside it.  Raises
    ``RunError`` for a folder without a run, or with one that is in that form already, and what ``optimize`` raises.
    """
    run = read_run(source)
    if run.form == "inference":
        raise RunError(f"{str(source)!r} is in its inference form already; there is nothing more to do.")
    subject = prepare(ModelSettings(source=str(source)))
    assert subject.run is not None and run.model is not None, "prepare loads a run by its source"
    watcher.say(f"Optimizing the network of {source}")
    optimized = inference.optimize(subject.run, subject.example)
    watcher.say("Measuring the original and both forms side by side")
    # How fast a network is does not depend on its weights, and those of the original may be gone.
    original = build_model(run.model, pretrained=False)
    forms = {"original": original, "trained": subject.model, "inference": optimized.module}
    timings = measuring.measure(forms, *call_arguments(subject.example))
    known = read_report(source) if "report.json" in run.files else compare(optimized)
    report = known.model_copy(update={"inference": inference_report(optimized, timings)})
    environment = {"made_from": str(source)}
    save(
        optimized,
        folder,
        model=run.model,
        report=report,
        state=run.state,
        environment=environment,
        preprocessing=run.preprocessing,
    )
    return Outcome(optimized, report, folder)


def measure_accuracy(recipe: Recipe, watcher: Watcher) -> tuple[Accuracy | Score, list[str]]:
    """Accuracy of a network on the test images (or the score of a metric), all as the recipe names them, and what to
    know of it.

    Raises ``DataError`` without images, ``ModelError`` for what is no classifier where no metric is named.
    """
    metric = metric_of(recipe.data)  # before a network is loaded, which takes longer
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    judge = Judge(subject, recipe.data, pick_device(recipe.device), watcher, metric)
    if subject.data is None:
        raise DataError("Evaluating needs images; give them, as in --data folder:PATH.")
    if judge.unscored:
        raise ModelError(f"{judge.unscored} {MEASURE_IT}")
    notes = [note for note in (*subject.notes, "" if judge.metric else subject.on_classes) if note]
    for note in notes:
        watcher.say(note)
    score = judge.score(subject.model, "Testing", subject.run.span if subject.run else None)
    late = [str(subject.data.feeding.skipped), judge.warning]
    for note in filter(None, late):
        watcher.say(note)
        notes.append(note)
    return score, notes


@dataclass
class Analyzed:
    """What an analysis gave: the numbers, and pictures of one image."""

    analysis: Analysis
    pictures: Pictures


def analyze(recipe: Recipe, watcher: Watcher) -> Analyzed:
    """How redundant a network's feature maps are; of a run folder, those of the network it began with, if it can tell.

    Then the pictures have those of the converted network beside them.  Several processes find the same numbers
    together, and the first has the pictures.  Raises ``DataError`` without images, or with too few that can be read,
    and what ``analyze`` raises.
    """
    if recipe.data is None:
        raise DataError("An analysis needs images; give them, as in --data folder:PATH.")
    processes = joined(recipe)
    subject = prepare(recipe.model, None, recipe.seed, recipe.data)
    wanted = inputs_in(subject.example)
    sample = load_sample(recipe.data, wanted, recipe.analysis.images, LEAST_IMAGES, subject.own)
    original = load_original(recipe.model.source) if subject.run else None
    watcher.say(f"Network {recipe.model.source}; {count(sample.images)} of {sample.description}")
    notes = [*subject.notes, *([_left_out(sample.skipped)] if sample.skipped else [])]
    if sample.synthetic:
        notes.append("The images are synthetic: maps of real ones may be more or less alike.")
    place, model = pick_device(recipe.device), original or subject.model
    camera = Camera(as_picture(first_image(sample.images)))
    with counted(watcher, title="Comparing maps") as told:
        found = analyze_network(
            model.eval(),
            sample.images,
            recipe.analysis,
            trained=_is_trained(recipe.model, subject),
            source=recipe.model.source,
            data=sample.description,
            notes=notes,
            device=place,
            camera=camera,
            told=told,
        )
    if original is None or subject.run is None or not processes.first:
        return Analyzed(found, camera.pictures)
    found = with_plan(found, subject.run.plan, _budget_of(recipe.model.source))
    return Analyzed(found, with_converted(camera.pictures, original, subject.model, take(sample.images, slice(SEEN))))


def _budget_of(run: str) -> Budgeted | None:
    """What was asked of a run's plan, if anything was."""
    return read_report(run).budget if "report.json" in read_run(run).files else None


def _left_out(problems: Sequence[str]) -> str:
    count, more = len(problems), len(problems) - NAMED
    rest = f" and {more} more" if more > 0 else ""
    return f"{count} {'file was' if count == 1 else 'files were'} left out: {' '.join(problems[:NAMED])}{rest}"


def _is_trained(model: ModelSettings, subject: Subject) -> bool | None:
    """Whether a network is trained, as far as its source tells: a function of the user's may load weights itself."""
    if model.weights or subject.run:
        return True
    return False if model.source.partition(":")[0] in ("torchvision", "timm", "ghostify") else None


def _original(subject: Subject, model: ModelSettings) -> nn.Module | None:
    """The network a run began with, to be compared with; None where it cannot be had any more."""
    with suppress(GhostifyError):
        return load_original(model.source) if subject.run else None
    return None


def _teacher(subject: Subject, model: ModelSettings, settings: TrainSettings) -> nn.Module | None:
    if not settings.distill or settings.teacher:
        return None
    teacher = load_original(model.source) if subject.run else None
    if teacher is None:
        raise RecipeError(
            f"distill = {settings.distill:g} needs the original network, and {model.source!r} does not tell where "
            "its weights are; name a network that teaches in its place (--teacher), or set finetune.distill to 0."
        )
    return teacher
