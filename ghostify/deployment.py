"""A run or a source → a file that its own runtime runs, beside the run, compared on the run's images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ghostify.errors import GhostifyError
from ghostify.exporting import EXPORTS, Exported, Origin, exported
from ghostify.exporting.quantizing import MOST
from ghostify.exporting.samples import Samples
from ghostify.exporting.wanted import Wanted
from ghostify.files import undone_on_failure
from ghostify.recipe import Recipe
from ghostify.saving import is_run, read_run
from ghostify.saving.runs import RECIPE, recipe_begun_with
from ghostify.sources import Data, load_data
from ghostify.sources.data import PICK
from ghostify.sources.seeding import shuffled
from ghostify.subject import Subject, prepare
from ghostify.tracing import tensors_of_call
from ghostify.watching import Watcher

SAMPLES = 256
"""Test images that accuracy is compared on."""


def export(
    recipe: Recipe, asked: Wanted, watcher: Watcher, file: Path | None = None, form: str = "inference"
) -> Exported:
    """Write the network that a recipe names to a file, and compare it on the test images of ``recipe.data``, of the
    run's own data where none are named, or on noise.

    Without ``file`` it goes to the folder ``exports`` of its run (or of where one is, of another source), under the
    run's name.  Raises any ``GhostifyError``.
    """
    source = recipe.model.source
    subject = prepare(recipe.model, recipe.data, recipe.seed)
    for note in subject.notes:
        watcher.say(note)
    data = subject.data or _data_of_run(source, subject, watcher)
    with undone_on_failure() as made:
        place = file or _default_file(source, asked)
        if file is None and not place.parent.is_dir():
            made.folder(place.parent)
        watcher.say(f"Writing {place} and comparing it with the network")
        return exported(
            subject.run or subject.model,
            place,
            asked,
            example=subject.example,
            samples=_samples(data) if data else None,
            calibration=data.calibration(MOST) if data and asked.precision == "int8" else None,
            form=form,
            origin=_origin(source),
        )


def _default_file(source: str, asked: Wanted) -> Path:
    """``RUN/exports/RUN.onnx``, or ``RUN-batch-fp16.onnx``: a name for each way to have it."""
    told = (asked.dynamic, asked.precision if asked.precision != "fp32" else "")
    run = Path(source)
    home, name = (run, run.resolve().name) if is_run(run) else (Path(), Path(source.rpartition(":")[2]).name)
    return home / EXPORTS / f"{'-'.join(filter(None, (name, *told)))}{asked.format.suffix}"


def _origin(source: str) -> Origin:
    if not is_run(source):
        return Origin(source=source)
    run = read_run(source)
    return Origin(source=source, weights=run.files[run.weights])


def _data_of_run(source: str, subject: Subject, watcher: Watcher) -> Data | None:
    """The images that a run was made with; None where there are none any more."""
    recipe = Path(source) / RECIPE
    if subject.run is None or not recipe.is_file():
        return None
    try:
        settings = recipe_begun_with(recipe, f"Recipe {str(recipe)!r}").data
        return load_data(settings, subject.run.before.specs) if settings else None
    except GhostifyError as problem:
        watcher.say(f"The file is compared on noise, because the run's images cannot be read: {problem}")
        return None


def _samples(data: Data) -> Samples:
    """Some test images, the same every time, with their classes."""
    chosen = shuffled(len(data.test), PICK)[:SAMPLES]
    images, labels = data.test.batch(chosen)
    classes = labels if data.has_classes and isinstance(labels, Tensor) else None
    source = f"{len(chosen)} {'made-up ' if data.synthetic else ''}test {data.noun} of {data.name}"
    return Samples(tuple(tensors_of_call(images)), source, not data.synthetic, classes)
