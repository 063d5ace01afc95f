"""A recipe being carried out in its folder, step by step: what the verbs of an experiment are put together from."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghostify.batches import Batch
from ghostify.budget.choosing import Choosing
from ghostify.budget.meeting import settled
from ghostify.budget.trying import tried
from ghostify.budgeting import begun
from ghostify.clock import Measured
from ghostify.errors import DataError, GhostifyError, ModelError, RunError
from ghostify.finetuning import (
    TITLES,
    History,
    Recorder,
    check_checkpoint,
    finetune,
    remove_checkpoint,
    require_tensorboard,
)
from ghostify.finetuning.losses import OwnLoss
from ghostify.fitting import fitted
from ghostify.inference import Optimized
from ghostify.judging import MEASURE_IT, Judge, metric_of
from ghostify.measuring import Accuracy, Comparison, Score
from ghostify.measuring.accuracy import samples_in
from ghostify.measuring.borrowing import pick_device
from ghostify.measuring.span import Span
from ghostify.planned import fits, planned
from ghostify.planning import Plan
from ghostify.processes import Processes, accompanied, group
from ghostify.recipe import AUTO, BudgetSettings, Recipe, TrainSettings
from ghostify.reporting import Report, compare
from ghostify.rewriting import Ghosted, agreed, carried_out
from ghostify.saving import CHECKPOINTS, Blank, rehearse, require_own_run, save_rehearsed
from ghostify.scanning import scan
from ghostify.subject import Subject, named_teacher, prepare
from ghostify.tracing import Recording
from ghostify.watching import Watcher, counted

_UNCOMPARED = "there is no --metric to compare epochs by"
WAITING = 0.2
"""A larger share of the time of training spent waiting for images is told."""


@dataclass
class Outcome:
    """What an experiment gave: the network, its report, and the folder it was saved in."""

    ghosted: Ghosted
    report: Report
    folder: Path


def joined(recipe: Recipe) -> Processes:
    """The processes that carry out a recipe, joined to one group."""
    return group(cpu=recipe.device == "cpu" or not torch.cuda.is_available())


def _loss(recipe: Recipe) -> OwnLoss | None:
    """The user's loss, for what is to be trained.  Raises ``RecipeError``."""
    if recipe.data is None or not recipe.data.loss:
        return None
    loss = OwnLoss.named(recipe.data.loss)
    if recipe.finetune:
        loss.require_outputs(recipe.finetune.distill)
    return loss


def _trains(recipe: Recipe) -> bool:
    return any(part and part.epochs for part in (recipe.pretrain, recipe.finetune))


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, how, into which folder of checkpoints, and taught by whom."""

    network: nn.Module | Ghosted
    settings: TrainSettings
    checkpoint: str
    teacher: nn.Module | None
    beside: float | None = None
    """What the original network has on the images held out, where that is known."""

    def to_send(self) -> TrainingTask:
        """The same without what other processes have no use for, such as recorded runs."""
        if isinstance(self.network, Ghosted):
            return replace(self, network=replace(self.network, run=None, parts={}))
        return self


@dataclass(frozen=True)
class FittingTask:
    """Which network is rewritten by which plan, and fitted."""

    weights: Mapping[str, Any]
    """Of the network as it is in the first process."""
    plan: Plan
    proposed: bool


Task = TrainingTask | FittingTask
"""What processes do together."""


@dataclass
class Job:
    """A recipe being carried out: what all its steps share."""

    recipe: Recipe
    folder: Path
    watcher: Watcher
    subject: Subject
    place: torch.device
    judge: Judge
    loss: OwnLoss | None = None
    """What training lowers in place of the cross entropy."""
    teacher: nn.Module | None = None
    """Who teaches in place of the original."""
    verdicts: list[str] = field(default_factory=list)
    """Which epoch of each training was kept, in sentences."""
    blank: Blank | None = None
    """What the run is read back into when it is saved."""
    choosing: Choosing | None = None
    """The budget that is to be met, where there is one."""
    clock: Measured | None = None
    """What the plan gives on the clock, where that decided."""
    processes: Processes = field(default_factory=Processes)
    """Those that train together; the first does all else, and the others wait for it."""
    awaited: bool = True
    """Whether the others wait to be told what to do next."""

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, watcher: Watcher) -> Job:
        # before a device is picked, because each process has one of its own
        processes = joined(recipe)
        if processes.first:
            for name in CHECKPOINTS:
                check_checkpoint(folder / name)
        if recipe.tensorboard:
            require_tensorboard()
        place = pick_device(recipe.device)
        metric, loss = metric_of(recipe.data), _loss(recipe)
        if recipe.pretrain:
            recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.resolved(fitted=False)})
        subject = prepare(recipe.model, recipe.data, recipe.seed)
        if isinstance(subject.run, Optimized):
            raise RunError(
                f"{recipe.model.source!r} is in its inference form, which is not rewritten or trained; take the run "
                "that it was made from."
            )
        if _trains(recipe) and subject.data is None:
            raise DataError("Training needs images, and none are named; give them, as in --data folder:PATH.")
        images = subject.data.description if subject.data else "none"
        watcher.say(f"Network {recipe.model.source}; images: {images}")
        if subject.data is not None and subject.data.preprocessing is not None:
            watcher.say(f"Images are prepared: {subject.data.preprocessing}")
        for note in subject.notes:
            watcher.say(note)
        teacher = named_teacher(recipe.finetune)
        if teacher is not None and recipe.finetune and recipe.finetune.teacher:
            subject.require_teacher(teacher, recipe.finetune.teacher)
        judge = Judge(subject, recipe.data, place, watcher, metric)
        return cls(recipe, folder, watcher, subject, place, judge, loss, teacher, processes=processes)

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

    def chosen(self, trained: bool = True) -> Plan | None:
        """The plan that meets the budget; None where there is none, and the settings say what is swapped.

        Of a network that is still to be trained no harm is measured: a plan then tells only whether there is one.
        """
        if not self.recipe.budget.asked:
            return None
        if self.recipe.budget.keep and not trained:
            unasked = self.recipe.model_copy(update={"budget": BudgetSettings(measure=False)})
            return planned(self.subject, unasked, None, self.watcher).plan
        self.choosing = begun(self.subject, self.recipe, self.watcher, self.folder, seen=trained)
        return self.choosing.plan()

    def tried(self, plan: Plan) -> Plan:
        """The plan of a budget once it is known how harms add up; the same where there is none, or nothing to learn."""
        if self.choosing is None:
            return plan
        found = tried(self.choosing, plan, self.made, self.watcher.say)
        if found is not plan:
            self.rehearse(found)
        return found

    def made(self, plan: Plan) -> nn.Module:
        """The network of a plan, fitted, and nothing else done with it."""
        recording, plan = self.planned(plan)
        return self.rewritten(recording, plan, plan).module

    def settled(self, ghosted: Ghosted) -> Ghosted:
        """The network with what came of its budget; another one where what was to be kept was not."""
        if self.choosing is None:
            return ghosted

        def again(plan: Plan) -> Ghosted:
            self.rehearse(plan)
            recording, plan = self.planned(plan)
            return self.rewritten(recording, plan, plan)

        return settled(self.choosing, ghosted, again, self.watcher.say)

    def planned(self, given: Plan | None) -> tuple[Recording, Plan]:
        recording, plan, self.clock = planned(self.subject, self.recipe, given, self.watcher, self.folder)
        return recording, plan

    def rewritten(self, recording: Recording, plan: Plan, given: Plan | None) -> Ghosted:
        """The network rewritten; in parts after all, if only its fitted weights show that it resists as a whole."""
        return carried_out(
            recording,
            plan,
            partial(self._fitted, proposed=given is None),
            given or self.recipe.ghost,
            self.place,
            fitted=fits(self.subject, self.recipe),
            told=self.watcher.say,
        )

    def _fitted(self, recording: Recording, plan: Plan, proposed: bool) -> Ghosted:
        """The network rewritten, its weights fitted as the recipe asks: to training images, where there are any."""
        settings, there = self.recipe.fit, self.subject.has_training_images
        how = settings.resolved(there)
        if how in ("data", "polish") and not there:
            raise DataError(
                f"fit {how} needs training images, and there are none; give them, as in --data folder:PATH, or choose "
                "fit weights."
            )
        images = self._calibration()
        if how == "none":
            return fitted(recording, plan, None, settings)
        self.watcher.say(f"Fitting the weights to {self._told_of(images)}")
        self._tell(FittingTask(recording.model.state_dict(), plan, proposed))
        watched = partial(counted, self.watcher)
        try:
            with accompanied():
                made = fitted(recording, plan, images, settings, device=self.place, watched=watched, proposed=proposed)
        except GhostifyError:
            self.awaited = True  # the others failed alike, and wait for what is done about it
            raise
        self.awaited = True
        return made

    def _fitted_along(self, task: FittingTask) -> None:
        """Another process's part in a fit; the network that comes of it is the first one's."""
        model = self.subject.model
        model.load_state_dict(task.weights)
        recording, plan = agreed(model, self.subject.example, task.plan, self.place, fitted=True)
        with suppress(GhostifyError):  # which the first process has met, too, and tells
            fitted(recording, plan, self._calibration(), self.recipe.fit, device=self.place, proposed=task.proposed)

    def _calibration(self) -> Batch | None:
        """The images to fit to; None where noise stands for them."""
        data, settings = self.subject.data, self.recipe.fit
        how = settings.resolved(self.subject.has_training_images)
        return data.calibration(settings.images) if data is not None and how in ("data", "polish") else None

    def _told_of(self, images: Batch | None) -> str:
        data = self.subject.data
        if data is None or images is None:
            return "noise, because there are no images"
        return f"{samples_in(images, ())} {data.noun}, without labels"

    def require_measurable(self) -> None:
        """Try the metric on a few images before any long work is done, and refuse to train what nobody can judge."""
        if _trains(self.recipe) and self.subject.unscored and self.loss is None:
            raise ModelError(
                f"{self.subject.unscored} Only classifiers are trained here without a loss of your own; give one: "
                "--loss package.module:function."
            )
        self.judge.rehearse()

    def as_it_is(self) -> Ghosted:
        """The subject with the swaps it came with and no others."""
        if self.subject.run:
            return self.subject.run
        seen = scan(self.subject.model, self.subject.example)
        unchanged = Plan(network=seen.network, inputs=seen.inputs, before=seen.cost, after=seen.cost)
        return Ghosted(self.subject.model, unchanged, seen, seen)

    def settle_rate(self, fitted: bool) -> None:
        """Put the learning rate of fine-tuning into the recipe where none was given, so that the run tells it."""
        if self.recipe.finetune:
            self.recipe = self.recipe.model_copy(update={"finetune": self.recipe.finetune.resolved(fitted)})

    def finetune(self, ghosted: Ghosted, original: nn.Module | None) -> None:
        """Train what was converted, taught by the original, or by whom the recipe names."""
        settings = self.recipe.finetune
        assert settings, "asked for"
        who = settings.teacher or "the original"
        how = f", taught by {who} (weight {settings.distill:g})" if settings.distill else ""
        rate = "that a test finds" if settings.lr == AUTO else f"of {settings.peak:g}"
        self.watcher.say(f"Fine-tuning for {settings.epochs} epochs at a rate {rate}{how}")
        beside = None if original is None else self.judge.held_score(original, self.loss is not None)
        teacher = (self.teacher or original) if settings.distill else None
        self.train(ghosted, settings, "finetune", teacher, beside)

    def train(
        self,
        network: nn.Module | Ghosted,
        settings: TrainSettings,
        checkpoint: str,
        teacher: nn.Module | None,
        beside: float | None = None,
    ) -> None:
        """Train a network in place, and say, here and in the report, which epoch's weights it has now.

        ``beside`` is what the original network has on the images held out.
        """
        task = TrainingTask(network, settings, checkpoint, teacher, beside)
        self._tell(task.to_send())
        history = self.taken_part(task)
        self.awaited = True
        data = self.subject.data
        assert data, "checked when the job began"
        (network.module if isinstance(network, Ghosted) else network).to("cpu")
        name = TITLES[checkpoint]
        uncompared = _UNCOMPARED if data.held is not None else data.held_from
        if verdict := history.verdict(name, settings, data.chosen_by, uncompared):
            self.watcher.say(verdict)
            self.verdicts.append(verdict)

    def taken_part(self, task: TrainingTask) -> History:
        """One of the processes' part in a training."""
        data, feeding = self.subject.data, self.recipe.data
        assert data and feeding, "checked when the job began"
        return finetune(
            task.network,
            data,
            task.settings,
            teacher=task.teacher,
            seed=self.recipe.seed,
            device=self.place,
            batch_size=feeding.batch_size,
            workers=feeding.workers,
            checkpoint=self.folder / task.checkpoint,
            progress=Recorder(
                self.watcher.training(),
                self.folder,
                task.checkpoint,
                task.beside,
                self.recipe.tensorboard,
                self._slowed,
            ),
            measure=self.judge.metric,
            loss=self.loss,
            known=data.held_out_of_train and not self.recipe.pretrain,
        )

    def _tell(self, task: Task) -> None:
        """Let the other processes begin, too.  Raises ``RunError`` where a network cannot be sent to them."""
        try:
            self.processes.same(task if self.processes.world > 1 else None)
        except (pickle.PicklingError, AttributeError, TypeError) as problem:
            raise RunError(
                f"The network cannot be sent to other processes ({problem}); convert it in one process, and train what "
                "that saved in several: torchrun … -m ghostify finetune RUN."
            ) from None
        # from here on an error is theirs as well, or they are stopped by it
        self.awaited = False

    def follow(self) -> None:
        """Take part in what the first process tells the others to, until it dismisses them."""
        none: Task | None = None
        while task := self.processes.same(none):
            if isinstance(task, FittingTask):
                self._fitted_along(task)
            else:
                self.taken_part(task)

    def dismiss(self) -> None:
        """Let the other processes end, if they wait."""
        if self.awaited:
            self.processes.same(None)

    def clear_checkpoints(self) -> None:
        """Remove what a finished run no longer needs to go on from."""
        for name in CHECKPOINTS:
            remove_checkpoint(self.folder / name)

    def spanned(self, ghosted: Ghosted) -> Ghosted:
        """With the span of what its layers read, as they are now, of the images that it was fitted to."""
        data, fit = self.subject.data, ghosted.fit
        if data is None or fit is None or fit.how not in ("data", "polish") or ghosted.parts:
            return ghosted
        images = data.calibration(self.recipe.fit.images)
        names = [layer.target for layer in fit.layers]
        return replace(ghosted, span=Span.of(ghosted.module, names, images, self.place))

    def save(
        self,
        ghosted: Ghosted,
        accuracy: Mapping[str, Accuracy | Score],
        state: str,
        latency: Comparison | None = None,
        original: nn.Module | None = None,
        agreement: float | None = None,
    ) -> Outcome:
        classes = self.subject.data.classes if self.subject.data else ()
        report = compare(ghosted, latency, accuracy, self._notes(), agreement, self.clock, classes)
        report = report.model_copy(update={"outside": self.judge.outside})
        whole = replace(ghosted, plan=self._with_earlier_swaps(ghosted.plan))
        save_rehearsed(
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
            preprocessing=self.subject.preprocessing,
        )
        return Outcome(ghosted, report, self.folder)

    def _slowed(self) -> str:
        """What to do where training waits for its images, in a sentence; empty where it does not."""
        data, feeding = self.subject.data, self.recipe.data
        if data is None or feeding is None or data.feeding.waits.share < WAITING or not data.worth_processes:
            return ""
        return (
            f"Training waited for its {data.noun} {100 * data.feeding.waits.share:.0f} % of the time; more loader "
            f"processes may help: --set data.workers={feeding.workers + 4} (now {feeding.workers})."
        )

    def _damages(self) -> list[str]:
        """Which samples could not be read, in a sentence where there were any."""
        data = self.subject.data
        return [str(data.feeding.skipped)] if data is not None and data.feeding.skipped.problems else []

    def _notes(self) -> list[str]:
        notes = list(self.subject.notes)
        if self.subject.data is None:
            return notes
        if not (self.recipe.model.weights or self.recipe.pretrain or self.subject.run):
            notes.append("No --weights were given: unless the source sets its own, they are random.")
        if self.subject.data.synthetic:
            notes.append("The images are synthetic: accuracy on them says nothing about real ones.")
        notes += [*self.verdicts, *self._damages()]
        if self.judge.warning:
            notes.append(self.judge.warning)
        if self.judge.metric is not None:
            return notes
        if self.subject.unscored:
            notes.append(f"Accuracy was not measured: {self.subject.unscored} {MEASURE_IT}")
        elif self.subject.on_classes:
            notes.append(self.subject.on_classes)
        return notes
