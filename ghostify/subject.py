"""A network as an experiment finds it: built or loaded, with a sample of what it takes and the images there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ghostify.batches import Batch, example_of
from ghostify.errors import ModelError, RecipeError
from ghostify.inputs import Inputs, described, parse_inputs
from ghostify.measuring.accuracy import class_scores
from ghostify.recipe import DataSettings, ModelSettings, TrainSettings
from ghostify.rewriting import Ghosted
from ghostify.running import Failed, attempt, evaluating
from ghostify.saving import is_run, load, read_run
from ghostify.sources import (
    Data,
    Preprocessing,
    build_model,
    load_data,
    model_inputs,
    own_preprocessing,
    require_form,
    sample_inputs,
)
from ghostify.tracing import call_arguments, cannot_run


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
    own: Preprocessing | None = None
    """What its trained weights want of images, where that is known."""

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images are prepared for it: those there are, else as its weights want it."""
        return self.data.preprocessing if self.data is not None else self.own

    @property
    def has_training_images(self) -> bool:
        """Whether there are images that weights could be fitted to."""
        return self.data is not None and self.data.train is not None

    @cached_property
    def outputs(self) -> int:
        """How many class scores the network gives.

        Raises ``ModelError`` for one that is no classifier, ``TraceError`` for one that does not run.
        """
        with evaluating(self.model), torch.no_grad():
            try:
                scores = attempt(self.model, *call_arguments(self.example))
            except Failed as failed:
                problem = failed.__cause__
                assert isinstance(problem, Exception)
                raise cannot_run(self.model, failed.where, self.example, problem) from problem
        return class_scores(scores).shape[1]

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

    def require_teacher(self, teacher: nn.Module, source: str) -> None:
        """Refuse, before any long work, a teacher whose scores are not of this network's classes.

        Raises ``RecipeError``; a network that gives no scores is compared while it trains.
        """
        if self.unscored:
            return
        with evaluating(teacher), torch.no_grad():
            try:
                scores = class_scores(attempt(teacher, *call_arguments(self.example)))
            except (Failed, ModelError) as problem:
                reason = str(problem.__cause__ or problem).partition("\n")[0]
                raise RecipeError(
                    f"Teacher {source!r} cannot teach, because on this network's input: {reason}"
                ) from None
        if scores.shape[1] != self.outputs:
            raise RecipeError(
                f"Teacher {source!r} gives {scores.shape[1]} class scores, and the network {self.outputs}; choose one "
                "of the same classes."
            )

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
        run, made = load(model.source), read_run(model.source)
        inputs = _inputs_of(run, model)
        images = load_data(data, inputs, own=made.preprocessing) if data else None
        return Subject(run.module, _example(inputs, seed), images, made.model or model, run, own=made.preprocessing)
    notes: list[str] = []
    module = build_model(model, told=notes.append)
    wanted, own = model_inputs(model, module), own_preprocessing(model, module)
    images = load_data(data, wanted, own=own) if data else None
    wanted = wanted or (images.inputs if images else None) or (sample_inputs(sample) if sample else None)
    if wanted is None:
        raise RecipeError(
            f"Nothing says the input shape of {model.source!r}; give it, as in --input 3,224,224, once for each input."
        )
    return Subject(module, _example(wanted, seed), images, model, notes=tuple(notes), own=own)


def named_teacher(settings: TrainSettings | None) -> nn.Module | None:
    """The network that the settings name to teach, with its weights; None where they name none.

    Raises ``RecipeError`` where its weights are random, and what building a network raises.
    """
    if settings is None or settings.teacher is None:
        return None
    source, weights = settings.teacher, settings.teacher_weights
    if is_run(source):
        return load(source).module
    offers = source.partition(":")[0] in ("torchvision", "timm")
    if source.startswith("ghostify:") and weights is None:
        raise RecipeError(
            f"Teacher {source!r} has random weights, by which nobody is taught; give its own, as in --set "
            "finetune.teacher_weights=FILE."
        )
    return build_model(ModelSettings(source=source, weights=weights or ("DEFAULT" if offers else None)))


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
