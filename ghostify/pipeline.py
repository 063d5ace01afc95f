"""The chapters in order: ``convert`` for a module in hand, ``compress`` for a whole experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ghostify import measuring
from ghostify.errors import DataError, ModelError, RecipeError
from ghostify.finetuning import Progress, finetune
from ghostify.measuring import Accuracy, Comparison, evaluate
from ghostify.measuring.accuracy import place_for
from ghostify.planning import Plan, check, plan
from ghostify.recipe import DataSettings, GhostSettings, ModelSettings, Recipe, make_settings
from ghostify.reporting import Report, compare
from ghostify.rewriting import Ghosted, rewrite
from ghostify.saving import clear_checkpoints, is_run, load, load_original, read_run, save
from ghostify.scanning import scan
from ghostify.sources import Data, build_model, input_shape, load_data
from ghostify.tracing import Traced, trace


def convert(
    model: nn.Module, example: Any, ghost: GhostSettings | Mapping[str, Any] | None = None, **changes: Any
) -> Ghosted:
    """A rewritten copy of ``model``: its convolutions as C-Ghost modules with its weights carried over.

    ``example`` is one input (a tensor, a tuple of positional or a dict of keyword arguments); ``ghost`` and
    ``changes`` are ``GhostSettings``, as in ``convert(model, x, s=4)``.  The model itself is not touched.

    Raises ``TraceError`` when it cannot be recorded, ``PlanError`` when nothing would change.
    """
    given = dict(ghost) if isinstance(ghost, Mapping) else ghost
    settings = (
        make_settings(GhostSettings, None, {**given, **changes})
        if isinstance(given, dict)
        else make_settings(GhostSettings, given, changes)
    )
    traced = trace(model, example)
    return rewrite(traced, plan(scan(traced), settings))


class Watcher(Protocol):
    """Somebody who watches an experiment: told what happens next, and shown each training run."""

    def say(self, text: str) -> None:
        """One line on what happens next."""

    def training(self) -> Progress:
        """Who watches the next training run."""


@dataclass
class Subject:
    """A network as an experiment finds it: the module, one example input, and the images, if any."""

    model: nn.Module
    example: Tensor
    data: Data | None
    settings: ModelSettings
    """The source that rebuilds the network that ``model`` was before any swaps in ``swapped``."""
    swapped: Plan | None = None
    """The swaps made already, for a model that is a run folder."""

    @property
    def classes(self) -> int | None:
        return len(self.data.classes) if self.data else None


def prepare(model: ModelSettings, data: DataSettings | None = None, seed: int = 0) -> Subject:
    """The network, an example and the images that the settings name.

    Raises ``ModelError``, ``WeightsError``, ``DataError``, and ``RecipeError`` when nothing says the input's shape.
    """
    torch.manual_seed(seed)
    if is_run(model.source) or (":" not in model.source and "/" in model.source):
        return _prepare_run(model, data, seed)
    module = build_model(model)
    shape = input_shape(model, module)
    images = load_data(data, shape, None) if data else None
    shape = shape or (images.shape if images else None)
    if shape is None:
        raise RecipeError(f"Nothing says the input shape of {model.source!r}; give it, as in --input 3,224,224.")
    return Subject(module, _example(shape, seed), images, model)


def _prepare_run(model: ModelSettings, data: DataSettings | None, seed: int) -> Subject:
    ghosted = load(model.source)
    run = read_run(model.source)
    (shape,) = ghosted.before.inputs
    images = load_data(data, tuple(shape[1:]), None) if data else None  # type: ignore[arg-type]
    settings = run.model or model
    return Subject(ghosted.module, _example(shape[1:], seed), images, settings, ghosted.plan)


@dataclass
class Outcome:
    """What an experiment gave: the network, its report, and the folder it was saved in."""

    ghosted: Ghosted
    report: Report
    folder: Path


def propose(recipe: Recipe, given: Plan | None = None) -> tuple[Traced, Plan]:
    """The recorded run and the plan an experiment would carry out; nothing is written or trained."""
    return _planned(prepare(recipe.model, recipe.data, recipe.seed), recipe, given)


def compress(recipe: Recipe, folder: Path, watcher: Watcher, given: Plan | None = None) -> Outcome:
    """Carry out a whole experiment into a reserved folder: train if asked, rewrite, measure, save, fine-tune, save.

    An experiment that was stopped goes on when called again with the same recipe and folder: finished epochs are on
    the disk.  Raises any ``GhostifyError``.
    """
    place = pick_device(recipe.device)
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    _require_data(recipe, subject.data)
    watcher.say(f"Network {recipe.model.source}; images: {subject.data.description if subject.data else 'none'}")
    _planned(subject, recipe, given)  # a plan that cannot be carried out is told before any training
    _pretrain(subject, recipe, folder, place, watcher)

    traced, agreed = _planned(subject, recipe, given)
    watcher.say(agreed.table().title)
    ghosted = rewrite(traced, agreed)
    watcher.say("Measuring the original and the ghosted network")
    latency = _latency(subject, ghosted, place)
    accuracy = _accuracies(subject, ghosted, recipe, place)
    outcome = _saved(subject, ghosted, recipe, folder, latency, accuracy)

    if recipe.finetune and recipe.finetune.epochs and subject.data:
        _finetune(subject, ghosted, recipe, folder, place, watcher)
        accuracy["finetuned"] = _accuracy(ghosted.module, subject.data, recipe, place)
        outcome = _saved(subject, ghosted, recipe, folder, latency, accuracy, state="finetuned")
    clear_checkpoints(folder)
    return outcome


def train(recipe: Recipe, folder: Path, watcher: Watcher) -> Outcome:
    """Fine-tune a network as it is (a run folder, or any other model) into a reserved folder; resumes as above.

    A run folder's original network is the teacher when ``recipe.finetune.distill`` asks for one.
    """
    place = pick_device(recipe.device)
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    _require_data(recipe, subject.data)
    assert subject.data and recipe.finetune
    wanted = recipe.finetune.distill > 0
    teacher = load_original(recipe.model.source) if wanted and subject.swapped else None
    if wanted and teacher is None:
        raise RecipeError(
            f"distill = {recipe.finetune.distill:g} needs the original network, and {recipe.model.source!r} "
            "does not tell where its weights are; set finetune.distill to 0."
        )
    ghosted = _as_it_is(subject, recipe)
    now = "converted" if ghosted.plan.swaps else "original"
    accuracy = {now: _accuracy(subject.model, subject.data, recipe, place)}
    _train(ghosted.module, recipe, folder / "finetune", subject.data, place, watcher, teacher)
    accuracy["finetuned"] = _accuracy(ghosted.module, subject.data, recipe, place)
    outcome = _saved(subject, ghosted, recipe, folder, None, accuracy, state="finetuned", original=teacher)
    clear_checkpoints(folder)
    return outcome


def measure_accuracy(recipe: Recipe) -> Accuracy:
    """Accuracy of a network on the test images, both as the recipe names them."""
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    if subject.data is None:
        raise DataError("Evaluating needs images, and the recipe names none.")
    return _accuracy(subject.model, subject.data, recipe, pick_device(recipe.device))


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first GPU, else the CPU.  Raises ``GhostifyError``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return place_for(nn.Identity(), name)


# -- steps -----------------------------------------------------------------------------------------------------


def _planned(subject: Subject, recipe: Recipe, given: Plan | None) -> tuple[Traced, Plan]:
    traced = trace(subject.model, subject.example)
    seen = scan(traced)
    agreed = check(given, seen) if given else plan(seen, recipe.ghost)
    return traced, agreed.require_changes()


def _as_it_is(subject: Subject, recipe: Recipe) -> Ghosted:
    """The subject with the swaps it came with and no others."""
    seen = scan(subject.model, subject.example)
    done = subject.swapped or Plan(network=seen.network, inputs=seen.inputs, before=seen.cost, after=seen.cost)
    before = load(recipe.model.source).before if subject.swapped else seen
    return Ghosted(subject.model, done, before, seen)


def _pretrain(subject: Subject, recipe: Recipe, folder: Path, place: torch.device, watcher: Watcher) -> None:
    if recipe.pretrain and recipe.pretrain.epochs and subject.data:
        watcher.say(f"Training the original network for {recipe.pretrain.epochs} epochs")
        _fit(subject.model, recipe, recipe.pretrain, folder / "pretrain", subject.data, place, watcher, None)


def _finetune(
    subject: Subject, ghosted: Ghosted, recipe: Recipe, folder: Path, place: torch.device, watcher: Watcher
) -> None:
    assert subject.data
    _train(ghosted.module, recipe, folder / "finetune", subject.data, place, watcher, subject.model)


def _train(
    module: nn.Module,
    recipe: Recipe,
    checkpoint: Path,
    data: Data,
    place: torch.device,
    watcher: Watcher,
    teacher: nn.Module | None,
) -> None:
    assert recipe.finetune
    how = f", taught by the original (weight {recipe.finetune.distill:g})" if recipe.finetune.distill else ""
    watcher.say(f"Fine-tuning the ghosted network for {recipe.finetune.epochs} epochs{how}")
    _fit(module, recipe, recipe.finetune, checkpoint, data, place, watcher, teacher)


def _fit(
    module: nn.Module,
    recipe: Recipe,
    settings: Any,
    checkpoint: Path,
    data: Data,
    place: torch.device,
    watcher: Watcher,
    teacher: nn.Module | None,
) -> None:
    assert recipe.data
    finetune(
        module,
        data,
        settings,
        teacher=teacher,
        seed=recipe.seed,
        device=place,
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        checkpoint=checkpoint,
        progress=watcher.training(),
    )
    module.to("cpu")


def _accuracies(subject: Subject, ghosted: Ghosted, recipe: Recipe, place: torch.device) -> dict[str, Accuracy]:
    if subject.data is None:
        return {}
    return {
        "original": _accuracy(subject.model, subject.data, recipe, place),
        "converted": _accuracy(ghosted.module, subject.data, recipe, place),
    }


def _accuracy(module: nn.Module, data: Data, recipe: Recipe, place: torch.device) -> Accuracy:
    assert recipe.data
    return evaluate(module, data.test_loader(recipe.data.batch_size, recipe.data.workers), device=place)


def _latency(subject: Subject, ghosted: Ghosted, place: torch.device) -> Comparison:
    return measuring.compare(subject.model, ghosted.module, subject.example, device=place)


def _saved(
    subject: Subject,
    ghosted: Ghosted,
    recipe: Recipe,
    folder: Path,
    latency: Comparison | None,
    accuracy: Mapping[str, Accuracy],
    state: str = "converted",
    original: nn.Module | None = None,
) -> Outcome:
    report = compare(ghosted, latency, accuracy, _notes(subject, recipe))
    total = _with_earlier_swaps(ghosted, subject.swapped)
    trained_here = subject.model if recipe.pretrain and subject.swapped is None else original
    save(
        total,
        folder,
        model=subject.settings,
        recipe=recipe,
        report=report,
        original=trained_here,
        state=state,
        environment={"seed": recipe.seed, "device": recipe.device},
    )
    return Outcome(ghosted, report, folder)


def _with_earlier_swaps(ghosted: Ghosted, earlier: Plan | None) -> Ghosted:
    """What rebuilds the network from its first source: the swaps made before, and the new ones."""
    if earlier is None or earlier is ghosted.plan:
        return ghosted
    both = ghosted.plan.model_copy(update={"swaps": (*earlier.swaps, *ghosted.plan.swaps)})
    return Ghosted(ghosted.module, both, ghosted.before, ghosted.after)


def _notes(subject: Subject, recipe: Recipe) -> list[str]:
    notes: list[str] = []
    trained = recipe.model.weights or recipe.pretrain or subject.swapped
    if subject.data and not trained:
        notes.append("The original network's weights are random unless its source sets them: accuracy means nothing.")
    if subject.data and "synthetic" in subject.data.description:
        notes.append("The images are synthetic: accuracy on them says nothing about real ones.")
    return notes


def _require_data(recipe: Recipe, data: Data | None) -> None:
    trains = [part for part in (recipe.pretrain, recipe.finetune) if part and part.epochs]
    if trains and data is None:
        raise DataError("Training needs images, and the recipe names none; give them, as in --data folder:PATH.")


def _example(shape: tuple[int, ...], seed: int) -> Tensor:
    if len(shape) != 3 or min(shape) < 1:
        raise ModelError(f"An input shape is (C, H, W) with sizes of 1 and more, not {shape}.")
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
