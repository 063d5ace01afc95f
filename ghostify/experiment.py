"""Recipe → run folder: a whole experiment, with progress, in steps that an interruption does not lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from ghostify import measuring
from ghostify.analysis import (
    LEAST_IMAGES,
    SEEN,
    Analysis,
    Camera,
    Pictures,
    analyze,
    as_picture,
    first_image,
    with_converted,
)
from ghostify.batches import Batch, call, count, example_of, inputs_in, take
from ghostify.errors import DataError, ModelError, RecipeError, RewriteError
from ghostify.finetuning import Progress, check_checkpoint, finetune, remove_checkpoint
from ghostify.finetuning.losses import OwnLoss
from ghostify.fitting import rewrite_fitted
from ghostify.fitting.parts import rewrite_parts_fitted
from ghostify.inputs import Inputs, described, parse_inputs
from ghostify.measuring import Accuracy, Comparison, Metric, Score, evaluate
from ghostify.measuring.accuracy import class_scores, samples_in
from ghostify.measuring.borrowing import place_for
from ghostify.planning import Plan
from ghostify.recipe import DataSettings, ModelSettings, Recipe, TrainSettings
from ghostify.reporting import Report, compare
from ghostify.rewriting import Ghosted, TracedParts, agreed, agreed_in_parts, rewrite, rewrite_parts, survey
from ghostify.running import evaluating
from ghostify.saving import CHECKPOINTS, Blank, is_run, load, load_original, read_run, rehearse, require_own_run, save
from ghostify.sources import Data, build_model, load_data, load_sample, model_inputs, require_form, sample_inputs
from ghostify.tracing import Traced, call_arguments

_UNCOMPARED = "there is no --metric to compare epochs by"
_FEW = 4
"""Samples on which a metric is tried before the long work."""
_MEASURE_IT = "What it is good for can be measured by a function of yours: --metric package.module:function."
NAMED = 3
"""Damaged files that are named; the others are counted."""


class Watcher(Protocol):
    """Somebody who watches an experiment: told what happens next, and shown each training run."""

    def say(self, text: str) -> None:
        """One line on what happens next."""

    def training(self) -> Progress:
        """Who watches the next training run."""

    def counting(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Who is told how many of ``total`` images (or layers) are done."""


@dataclass
class Outcome:
    """What an experiment gave: the network, its report, and the folder it was saved in."""

    ghosted: Ghosted
    report: Report
    folder: Path


def propose(recipe: Recipe, given: Plan | None = None, told: Callable[[str], None] = lambda note: None) -> Plan:
    """The plan ``compress`` would carry out (``given``, checked, or one made by the recipe); nothing is written.

    ``told`` is called with each sentence a person should know of the network's weights.
    Raises ``PlanError`` when it does not fit or changes nothing.
    """
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    for note in subject.notes:
        told(note)
    return _planned(subject, recipe, given)[1]


def compress(recipe: Recipe, folder: Path, watcher: Watcher, given: Plan | None = None) -> Outcome:
    """Train if asked, rewrite, measure, save, fine-tune if asked, save; all into a reserved folder.

    An experiment that was stopped goes on when called again with the same recipe and folder: finished epochs are on
    the disk.  Raises any ``GhostifyError``.
    """
    job = _Job.of(recipe, folder, watcher)
    recorded, plan = job.planned(given)  # a plan that cannot be carried out is told before any training
    job.require_measurable()
    job.rehearse(plan)
    if job.recipe.pretrain and job.recipe.pretrain.epochs:
        watcher.say(f"Training the original network for {job.recipe.pretrain.epochs} epochs")
        job.train(job.subject.model, job.recipe.pretrain, "pretrain", teacher=None)
        recorded, plan = job.planned(given)  # of the weights as they are now

    for line in filter(None, (plan.table().title, plan.partly)):
        watcher.say(line)
    accuracy = job.accuracies(original=job.subject.model)  # first, so that nothing is lost if it cannot be measured
    ghosted = job.rewritten(recorded, plan, given)
    job.settle_rate(fitted=ghosted.fit is not None)
    watcher.say("Measuring the original and the ghosted network")
    latency = measuring.compare(
        job.subject.model, ghosted.module, *call_arguments(job.subject.example), device=job.place
    )
    accuracy |= job.accuracies(converted=ghosted.module)
    agreed_on = job.agreement(ghosted.module)
    kept = job.subject.model if recipe.pretrain and not job.subject.run else None
    outcome = job.save(ghosted, accuracy, "converted", latency, kept, agreed_on)

    if recipe.finetune and recipe.finetune.epochs:
        job.finetune(ghosted, job.subject.model)
        accuracy |= job.accuracies(finetuned=ghosted.module)
        outcome = job.save(ghosted, accuracy, "finetuned", latency, agreement=agreed_on)
    job.clear_checkpoints()
    return outcome


def train(recipe: Recipe, folder: Path, watcher: Watcher) -> Outcome:
    """Fine-tune a network as it is (a run folder, or any other model) into a reserved folder; goes on as above.

    A run folder's original network is the teacher when ``recipe.finetune.distill`` asks for one.
    """
    settings = recipe.finetune or TrainSettings()
    job = _Job.of(recipe.model_copy(update={"finetune": settings}), folder, watcher)
    teacher = _teacher(job.subject, recipe.model, settings)
    ghosted = job.as_it_is()
    job.settle_rate(fitted=ghosted.fit is not None)
    job.require_measurable()
    job.rehearse(ghosted.plan)
    accuracy = job.accuracies(**{"converted" if ghosted.plan.swaps else "original": ghosted.module})
    job.finetune(ghosted, teacher)
    accuracy |= job.accuracies(finetuned=ghosted.module)
    outcome = job.save(ghosted, accuracy, "finetuned", original=teacher)
    job.clear_checkpoints()
    return outcome


def measure_accuracy(recipe: Recipe, watcher: Watcher) -> tuple[Accuracy | Score, list[str]]:
    """Accuracy of a network on the test images (or the score of a metric), all as the recipe names them, and what to
    know of it.

    Raises ``DataError`` without images, ``ModelError`` for what is no classifier where no metric is named.
    """
    metric = _metric(recipe.data)
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    if subject.data is None or recipe.data is None:
        raise DataError("Evaluating needs images; give them, as in --data folder:PATH.")
    if metric is None and subject.unscored:
        raise ModelError(f"{subject.unscored} {_MEASURE_IT}")
    notes = [note for note in (*subject.notes, "" if metric else subject.on_classes) if note]
    for note in notes:
        watcher.say(note)
    place = pick_device(recipe.device)
    return _measured(subject.model, subject.data, recipe.data, metric, place, watcher, "Testing"), notes


@dataclass
class Looked:
    """What an analysis gave: the numbers, and pictures of one image."""

    analysis: Analysis
    pictures: Pictures


def look(recipe: Recipe, watcher: Watcher) -> Looked:
    """How redundant a network's feature maps are; of a run folder, those of the network it began with, if it can tell.

    Then the pictures have those of the converted network beside them.  Raises ``DataError`` without images, or with
    too few that can be read, and what ``analyze`` raises.
    """
    if recipe.data is None:
        raise DataError("An analysis needs images; give them, as in --data folder:PATH.")
    subject = prepare(recipe.model, None, recipe.seed, recipe.data)
    wanted = inputs_in(subject.example)
    sample = load_sample(recipe.data, wanted, recipe.analysis.images, LEAST_IMAGES)
    original = load_original(recipe.model.source) if subject.run else None
    watcher.say(f"Network {recipe.model.source}; {count(sample.images)} of {sample.description}")
    notes = [*subject.notes, *([_left_out(sample.skipped)] if sample.skipped else [])]
    if sample.synthetic:
        notes.append("The images are synthetic: maps of real ones may be more or less alike.")
    place, model = pick_device(recipe.device), original or subject.model
    camera = Camera(as_picture(first_image(sample.images)))
    with _counted(watcher, title="Comparing maps") as told:
        found = analyze(
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
    if original is None:
        return Looked(found, camera.pictures)
    return Looked(found, with_converted(camera.pictures, original, subject.model, take(sample.images, slice(SEEN))))


def _left_out(problems: Sequence[str]) -> str:
    count, more = len(problems), len(problems) - NAMED
    rest = f" and {more} more" if more > 0 else ""
    return f"{count} {'file was' if count == 1 else 'files were'} left out: {' '.join(problems[:NAMED])}{rest}"


def _is_trained(model: ModelSettings, subject: Subject) -> bool | None:
    """Whether a network is trained, as far as its source tells: a function of the user's may load weights itself."""
    if model.weights or subject.run:
        return True
    return False if model.source.partition(":")[0] in ("torchvision", "timm", "ghostify") else None


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, else the CPU.  Raises ``GhostifyError``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return place_for(nn.Identity(), name)


def _measured(
    module: nn.Module,
    data: Data,
    feeding: DataSettings,
    metric: Metric | None,
    place: torch.device,
    watcher: Watcher,
    title: str,
) -> Accuracy | Score:
    loader = data.test_loader(feeding.batch_size, feeding.workers)
    with watcher.counting(title, len(data.test)) as progress:
        if metric is not None:
            return metric.score(module, loader, device=place, progress=progress)
        return evaluate(module, loader, device=place, progress=progress)


def _loss(recipe: Recipe) -> OwnLoss | None:
    """The user's loss, for what is to be trained.  Raises ``RecipeError``."""
    if recipe.data is None or not recipe.data.loss:
        return None
    loss = OwnLoss.named(recipe.data.loss)
    if recipe.finetune:
        loss.require_outputs(recipe.finetune.distill)
    return loss


def _metric(feeding: DataSettings | None) -> Metric | None:
    return Metric.named(feeding.metric) if feeding and feeding.metric else None


# -- the subject -----------------------------------------------------------------------------------------------


@dataclass
class Subject:
    """A network as an experiment finds it: the module, one sample of what it takes, and the images, if any."""

    model: nn.Module
    example: Batch
    data: Data | None
    settings: ModelSettings
    """The source that rebuilds the network as it was before the swaps of ``run``."""
    run: Ghosted | None = None
    """The run the network was loaded from, if it was."""
    notes: tuple[str, ...] = ()
    """What a person should know of its weights, a sentence each."""

    @cached_property
    def outputs(self) -> int:
        """How many class scores the network gives.  Raises ``ModelError`` for one that is no classifier."""
        with evaluating(self.model), torch.no_grad():
            return class_scores(call(self.model, self.example)).shape[1]

    @cached_property
    def unscored(self) -> str:
        """Why there is no accuracy to be told of the network (a detector, say) on its data; empty for a classifier."""
        try:
            outputs = self.outputs
        except ModelError as problem:
            return str(problem)
        if outputs == 1:
            return "The network gives one number for each sample, not class scores of shape (N, classes)."
        if self.data is not None and not self.data.has_classes:
            return f"The labels of {self.data.name!r} are not class numbers."
        return ""

    @property
    def on_classes(self) -> str:
        """A sentence where the images may be of other classes than the network's outputs; else empty."""
        if self.data is None or not 0 < len(self.data.classes) < self.outputs:
            return ""
        names = self.data.classes
        return (
            f"The network has {self.outputs} outputs and the data {len(names)} classes, of which {names[0]!r} is "
            "counted as output 0: accuracy means something only if the network numbers its classes in the same way."
        )


def require_source(model: ModelSettings) -> None:
    """Refuse, before a run folder is made, what names no network.  Raises ``ModelError``."""
    if not is_run(model.source):
        require_form(model.source)


def prepare(
    model: ModelSettings, data: DataSettings | None = None, seed: int = 0, sample: DataSettings | None = None
) -> Subject:
    """The network, an example and the images that the settings name; those of ``sample`` only say their shape.

    Raises ``ModelError``, ``WeightsError``, ``DataError``, ``RunError``, and ``RecipeError`` when nothing says what
    the network takes.
    """
    torch.manual_seed(seed)
    if is_run(model.source):
        run = load(model.source)
        inputs, settings = _inputs_of(run, model), read_run(model.source).model or model
        return Subject(run.module, _example(inputs, seed), load_data(data, inputs) if data else None, settings, run)
    notes: list[str] = []
    module = build_model(model, told=notes.append)
    wanted = model_inputs(model, module)
    images = load_data(data, wanted) if data else None
    wanted = wanted or (images.inputs if images else None) or (sample_inputs(sample) if sample else None)
    if wanted is None:
        raise RecipeError(
            f"Nothing says the input shape of {model.source!r}; give it, as in --input 3,224,224, once for each input."
        )
    return Subject(module, _example(wanted, seed), images, model, notes=tuple(notes))


def _inputs_of(run: Ghosted, model: ModelSettings) -> Inputs:
    """What a run's network takes: as its scan tells, in the sizes that are set."""
    if model.input is not None:
        return parse_inputs(model.input)
    try:
        return run.before.specs
    except ValueError:
        shapes = list(run.before.inputs)
        raise RecipeError(
            f"The run's network takes inputs of {shapes} in something else than a tensor, a tuple or a dict of them; "
            "use it in Python."
        ) from None


def _example(inputs: Inputs, seed: int) -> Batch:
    try:
        return example_of(inputs, seed)
    except RuntimeError as problem:
        reason = str(problem).partition("\n")[0]
        raise RecipeError(f"An input of {described(inputs)} cannot be made: {reason}.") from None


def _teacher(subject: Subject, model: ModelSettings, settings: TrainSettings) -> nn.Module | None:
    if not settings.distill:
        return None
    teacher = load_original(model.source) if subject.run else None
    if teacher is None:
        raise RecipeError(
            f"distill = {settings.distill:g} needs the original network, and {model.source!r} does not tell where "
            "its weights are; set finetune.distill to 0."
        )
    return teacher


# -- the steps -------------------------------------------------------------------------------------------------


def _planned(subject: Subject, recipe: Recipe, given: Plan | None) -> tuple[Traced | TracedParts, Plan]:
    return agreed(subject.model, subject.example, given or recipe.ghost, pick_device(recipe.device))


def _trains(recipe: Recipe) -> bool:
    return any(part and part.epochs for part in (recipe.pretrain, recipe.finetune))


@dataclass
class _Job:
    """A recipe being carried out: what all its steps share."""

    recipe: Recipe
    folder: Path
    watcher: Watcher
    subject: Subject
    place: torch.device
    metric: Metric | None = None
    """What is measured in place of accuracy."""
    loss: OwnLoss | None = None
    """What training lowers in place of the cross entropy."""
    verdicts: list[str] = field(default_factory=list)
    """Which epoch of each training was kept, in sentences."""
    blank: Blank | None = None
    """What the run is read back into when it is saved."""

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, watcher: Watcher) -> _Job:
        for name in CHECKPOINTS:
            check_checkpoint(folder / name)
        place = pick_device(recipe.device)
        metric, loss = _metric(recipe.data), _loss(recipe)
        if recipe.pretrain:
            recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.resolved(fitted=False)})
        subject = prepare(recipe.model, recipe.data, recipe.seed)
        if _trains(recipe) and subject.data is None:
            raise DataError("Training needs images, and none are named; give them, as in --data folder:PATH.")
        images = subject.data.description if subject.data else "none"
        watcher.say(f"Network {recipe.model.source}; images: {images}")
        for note in subject.notes:
            watcher.say(note)
        return cls(recipe, folder, watcher, subject, place, metric, loss)

    def rehearse(self, plan: Plan) -> None:
        """Find out before the long work whether the run could be saved and would come back."""
        require_own_run(self.folder, self.recipe)
        subject = self.subject
        whole = self._with_earlier_swaps(plan)
        self.blank = rehearse(subject.settings, whole, subject.model, subject.example, self.folder, subject.run is None)

    def _with_earlier_swaps(self, plan: Plan) -> Plan:
        """What rebuilds the network from its first source: the swaps of the run it came from, and the new ones."""
        earlier = self.subject.run
        if earlier is None or plan is earlier.plan:
            return plan
        return plan.model_copy(update={"swaps": (*earlier.plan.swaps, *plan.swaps)})

    def planned(self, given: Plan | None) -> tuple[Traced | TracedParts, Plan]:
        return _planned(self.subject, self.recipe, given)

    def rewritten(self, recorded: Traced | TracedParts, plan: Plan, given: Plan | None) -> Ghosted:
        """The network rewritten; in parts after all, if only its fitted weights show that it resists as a whole."""
        try:
            return self._fitted(recorded, plan)
        except RewriteError:
            if isinstance(recorded, TracedParts) or not recorded.doubts:
                raise
            reason = recorded.doubts[0].removesuffix(".")
        wanted = given or self.recipe.ghost
        parts, plan = agreed_in_parts(self.subject.model, self.subject.example, wanted, reason, self.place)
        self.watcher.say(plan.partly)
        return self._fitted(parts, plan)

    def _fitted(self, recorded: Traced | TracedParts, plan: Plan) -> Ghosted:
        """The network rewritten, its weights fitted as the recipe asks: to training images, where there are any."""
        data, settings = self.subject.data, self.recipe.fit
        there = data is not None and data.train is not None
        how = settings.resolved(there)
        if how in ("data", "polish") and not there:
            raise DataError(
                f"fit {how} needs training images, and there are none; give them, as in --data folder:PATH, or choose "
                "fit weights."
            )
        if how == "none":
            return rewrite(recorded, plan) if isinstance(recorded, Traced) else rewrite_parts(recorded, plan).whole
        images = data.calibration(settings.images) if data is not None and how != "weights" else None
        what = "noise, for want of images"
        if data is not None and images is not None:
            what = f"{samples_in(images, ())} {data.noun}, without labels"
        self.watcher.say(f"Fitting the weights to {what}")
        if isinstance(recorded, TracedParts):
            watched = partial(_counted, self.watcher)
            return rewrite_parts_fitted(recorded, plan, images, settings, device=self.place, watched=watched).whole
        with _counted(self.watcher) as told:
            return rewrite_fitted(recorded, plan, images, settings, device=self.place, told=told)

    def agreement(self, module: nn.Module) -> float | None:
        """Share of test images that the network puts where the original does; None without images, or classes."""
        data, feeding = self.subject.data, self.recipe.data
        if data is None or feeding is None or self.metric or self.subject.unscored:
            return None
        loader = data.test_loader(feeding.batch_size, feeding.workers)
        return measuring.agreement(module, self.subject.model, loader, device=self.place)

    def require_measurable(self) -> None:
        """Try the metric on a few images before any long work is done, and refuse to train what nobody can judge."""
        if _trains(self.recipe) and self.subject.unscored and self.loss is None:
            raise ModelError(
                f"{self.subject.unscored} Only classifiers are trained here without a loss of your own; give one: "
                "--loss package.module:function."
            )
        if self.metric is not None and self.subject.data is not None:
            self.metric.rehearse(self.subject.model, self.subject.data.test_loader(_FEW))

    def as_it_is(self) -> Ghosted:
        """The subject with the swaps it came with and no others."""
        if self.subject.run:
            return self.subject.run
        seen = survey(self.subject.model, self.subject.example)
        unchanged = Plan(network=seen.network, inputs=seen.inputs, before=seen.cost, after=seen.cost)
        return Ghosted(self.subject.model, unchanged, seen, seen)

    def settle_rate(self, fitted: bool) -> None:
        """Put the learning rate of fine-tuning into the recipe where none was given, so that the run tells it."""
        if self.recipe.finetune:
            self.recipe = self.recipe.model_copy(update={"finetune": self.recipe.finetune.resolved(fitted)})

    def finetune(self, ghosted: Ghosted, teacher: nn.Module | None) -> None:
        settings = self.recipe.finetune
        assert settings, "asked for"
        how = f", taught by the original (weight {settings.distill:g})" if settings.distill else ""
        self.watcher.say(f"Fine-tuning for {settings.epochs} epochs at a rate of {settings.peak:g}{how}")
        self.train(ghosted.module, settings, "finetune", teacher)

    def train(self, module: nn.Module, settings: TrainSettings, checkpoint: str, teacher: nn.Module | None) -> None:
        """Train a network in place, and say, here and in the report, which epoch's weights it has now."""
        data, feeding = self.subject.data, self.recipe.data
        assert data and feeding, "checked when the job began"
        history = finetune(
            module,
            data,
            settings,
            teacher=teacher,
            seed=self.recipe.seed,
            device=self.place,
            batch_size=feeding.batch_size,
            workers=feeding.workers,
            checkpoint=self.folder / checkpoint,
            progress=self.watcher.training(),
            measure=self.metric,
            loss=self.loss,
        )
        module.to("cpu")
        name = {"pretrain": "Training the original", "finetune": "Fine-tuning"}[checkpoint]
        uncompared = _UNCOMPARED if data.held is not None else data.held_from
        if verdict := history.verdict(name, settings, data.chosen_by, uncompared):
            self.watcher.say(verdict)
            self.verdicts.append(verdict)

    def clear_checkpoints(self) -> None:
        """Remove what a finished run no longer needs to go on from."""
        for name in CHECKPOINTS:
            remove_checkpoint(self.folder / name)

    def accuracies(self, **modules: nn.Module) -> dict[str, Accuracy | Score]:
        """Accuracy of each module by its stage, or the metric's score; nothing without images, or classes."""
        data, feeding = self.subject.data, self.recipe.data
        if data is None or feeding is None or (self.subject.unscored and self.metric is None):
            return {}
        return {
            stage: _measured(
                module, data, feeding, self.metric, self.place, self.watcher, f"Testing the {stage} network"
            )
            for stage, module in modules.items()
        }

    def save(
        self,
        ghosted: Ghosted,
        accuracy: Mapping[str, Accuracy | Score],
        state: str,
        latency: Comparison | None = None,
        original: nn.Module | None = None,
        agreement: float | None = None,
    ) -> Outcome:
        report = compare(ghosted, latency, accuracy, self._notes(), agreement)
        whole = replace(ghosted, plan=self._with_earlier_swaps(ghosted.plan))
        save(
            whole,
            self.folder,
            model=self.subject.settings,
            recipe=self.recipe,
            report=report,
            original=original,
            state=state,
            environment={"seed": self.recipe.seed, "device": str(self.place)},
            overwrite=state == "converted",  # of this very run, before it was stopped: others were refused at once
            blank=self.blank,
        )
        return Outcome(ghosted, report, self.folder)

    def _notes(self) -> list[str]:
        notes = list(self.subject.notes)
        if self.subject.data is None:
            return notes
        if not (self.recipe.model.weights or self.recipe.pretrain or self.subject.run):
            notes.append("No --weights were given: unless the source sets its own, they are random.")
        if self.subject.data.synthetic:
            notes.append("The images are synthetic: accuracy on them says nothing about real ones.")
        notes += self.verdicts
        if self.metric is not None:
            return notes
        if self.subject.unscored:
            notes.append(f"Accuracy was not measured: {self.subject.unscored} {_MEASURE_IT}")
        elif self.subject.on_classes:
            notes.append(self.subject.on_classes)
        return notes


@contextmanager
def _counted(watcher: Watcher, part: str = "", title: str = "Fitting layers") -> Iterator[Callable[[int, int], None]]:
    """Somebody to be told how much is done of a total that is known once it begins."""
    with ExitStack() as stack:
        counters: list[Callable[[int], None]] = []
        of = f" of {part}" if part else ""

        def told(done: int, total: int) -> None:
            if not counters:
                counters.append(stack.enter_context(watcher.counting(f"{title}{of}", total)))
            counters[0](done)

        yield told
