"""What is timed, by name: a network's source, a run folder, or an exported file."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict
from torch import nn

from ghostify.batches import Batch
from ghostify.benching.contenders import Contender, Network
from ghostify.benching.exported import exported, is_exported
from ghostify.costs import Cost
from ghostify.errors import GhostifyError
from ghostify.inference import Optimized, optimize
from ghostify.inputs import parse_inputs
from ghostify.recipe import ModelSettings
from ghostify.rewriting import Ghosted
from ghostify.scanning import scan
from ghostify.subject import Subject, prepare

FORMS = ("inference", "training")
Told = Callable[[str], None]


class Source(BaseModel):
    """A network by name, and how it is timed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    form: str = "inference"
    """``inference`` or ``training``, as ``form`` of a run."""
    input: tuple[int, ...] | tuple[str, ...] | None = None
    """What it takes, where its source does not tell, as ``--input`` has it."""


def contender_of(source: Source, told: Told = lambda note: None) -> Contender:
    """The network of a source.  Its weights are random but for those of a run: no time depends on them.

    ``told`` is called with what a person should know.  Raises ``ModelError``, ``RecipeError``, ``RunError``.
    """
    if is_exported(source.name):
        return exported(source.name, parse_inputs(source.input) if source.input else ())
    subject = prepare(ModelSettings(source=source.name, input=source.input))
    if source.form == "inference":
        return _in_inference_form(source.name, subject, told)
    if isinstance(subject.run, Optimized):
        told(f"{source.name!r} holds an inference form only, so that is timed.")
    return of_module(source.name, subject.run or subject.model, subject.example)


def of_module(name: str, model: nn.Module | Ghosted, example: Batch) -> Network:
    """A network as it comes, with what it costs where that can be counted."""
    if isinstance(model, Optimized):
        return _network(name, model.module, example, "inference", model.inference)
    if isinstance(model, Ghosted):
        return _network(name, model.module, example, "training", model.after.cost)
    return _network(name, model, example, "training", _counted(model, example))


def _in_inference_form(name: str, subject: Subject, told: Told) -> Network:
    """The network in the form that runs fastest; as it comes where it cannot be brought into it."""
    present = subject.run or subject.model
    if isinstance(present, Optimized):
        return of_module(name, present, subject.example)
    try:
        return of_module(name, optimize(present, subject.example), subject.example)
    except GhostifyError as problem:
        told(f"{name!r} is timed as it is, because it has no inference form: {problem}")
        return of_module(name, present, subject.example)


def _network(name: str, module: nn.Module, example: Batch, form: str, cost: Cost | None) -> Network:
    return Network(name, module, example, form, cost.params if cost else None, cost.macs if cost else None)


def _counted(module: nn.Module, example: Batch) -> Cost | None:
    """What a network costs; None for one that cannot be recorded, which can be timed all the same."""
    try:
        return scan(module, example).cost
    except GhostifyError:
        return None
