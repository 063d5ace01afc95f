"""Images by name: ``digits``, ``folder:PATH``, ``cifar10:PATH``, ``webdataset:PATTERN``, ``fake``, and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ghostify.errors import DataError, did_you_mean
from ghostify.inputs import Inputs, described, parse_inputs
from ghostify.recipe import DataSettings
from ghostify.sources.data import HELD_OUT, PICK, Data, noun_of
from ghostify.sources.functions import read_function
from ghostify.sources.held_out import held_out
from ghostify.sources.kinds import PLACED, PLACELESS, Asked
from ghostify.sources.loaders import Feeding
from ghostify.sources.preprocessing import Preprocessing, Shape
from ghostify.sources.seeding import shuffled

KINDS = (*PLACELESS, *PLACED)
_FORMS = "digits, folder:PATH, cifar10:PATH, cifar100:PATH, webdataset:PATTERN, fake, or package.module:function"


def load_data(
    settings: DataSettings,
    shape: Inputs | tuple[int, ...] | None = None,
    classes: int | None = None,
    own: Preprocessing | None = None,
) -> Data:
    """The images that ``settings`` names, as a network wants them.

    ``shape`` is what the network takes: the shape of a sample, as in (C, H, W), or all its inputs; None lets the data
    decide.  ``classes`` is the number of the network's outputs, which must be enough.  ``own`` is what its trained
    weights want of images.  Raises DataError when images cannot be found or read.
    """
    load = _kind(settings.source)
    inputs = None if shape is None else parse_inputs(shape)
    if load is None:
        data = _function(settings, inputs, classes)
    else:
        data = load(Asked(settings, image_shape(inputs, settings.source), classes, own))
    if classes is not None and classes < len(data.classes):
        raise DataError(f"Data {data.name!r} has {len(data.classes)} classes, but the network only {classes} outputs.")
    data = replace(data, feeding=Feeding(settings.damaged == "skip", settings.prefetch))
    return _limited(_with_held_out(data, settings.hold_out), settings.limit)


def _kind(source: str) -> Callable[[Asked], Data] | None:
    """What loads a source; None for a user's function.  Raises ``DataError`` where it is not written as it must be."""
    kind, colon, place = source.partition(":")
    if kind in PLACED:
        if not place:
            raise DataError(f"Data source {source!r} does not say where the images are; write {kind}:PATH.")
        return PLACED[kind]
    if kind in PLACELESS and not colon:
        return PLACELESS[kind]
    if kind in PLACELESS or not (kind and place):
        raise DataError(f"There is no data source {source!r}; write {_FORMS}.{_near(source)}")
    return None


def _function(settings: DataSettings, inputs: Inputs | None, classes: int | None) -> Data:
    """What a user's function gives, which is fed as it is."""
    name = settings.source
    made = read_function(name, inputs, classes, KINDS)
    training = f"{len(made.train):,} to train" if made.train is not None else "none to train"
    description = f"{noun_of(made.test.inputs)} of {name}, {training} and {len(made.test):,} to test"
    found = made.test.shape
    return Data(made.train, made.test, made.classes, found, name, description, made.val, "of val" if made.val else "")


def image_shape(inputs: Inputs | None, name: str) -> Shape | None:
    """The (C, H, W) a network takes; None where it is not known.  Raises DataError where it takes anything else."""
    if inputs is None:
        return None
    if len(inputs) > 1 or len(inputs[0].shape) != 3 or inputs[0].dtype != "float32":
        raise DataError(
            f"Data {name!r} has images (C, H, W), but the network takes {described(inputs)}; give samples of that by a "
            "function of your own: --data package.module:function."
        )
    return inputs[0].shape[0], inputs[0].shape[1], inputs[0].shape[2]


def _near(source: str) -> str:
    if Path(source).expanduser().is_dir():
        return f" Did you mean {f'folder:{source}'!r}?"
    return did_you_mean(source.partition(":")[0], KINDS)


def _with_held_out(data: Data, share: float | None) -> Data:
    """The data with images to choose an epoch by, held out of those to train where no others do that."""
    if data.train is None or (share is None and data.held is not None):
        return data
    if share == 0:
        return replace(data, held=None, held_from="hold_out is 0")
    train, count = data.train, len(data.train)
    chosen = held_out(count, train.known_labels, share)
    if not chosen:
        return replace(data, held=None, held_from=f"{count:,} training images are too few to hold any out")
    stays = torch.ones(count, dtype=torch.bool)
    stays[chosen] = False
    return replace(
        data,
        train=train.take(stays.nonzero().flatten().tolist()),
        held=train.take(chosen),
        held_from=HELD_OUT,
        description=f"{data.description}; {len(chosen):,} of those to train are held out",
    )


def _limited(data: Data, limit: int | None) -> Data:
    """At most ``limit`` of each kind.  After images were held out: so those are the same for every limit."""
    if limit is None:
        return data
    train, held, test = (
        part and part.take(shuffled(len(part), PICK)[:limit]) for part in (data.train, data.held, data.test)
    )
    assert test is not None
    description = f"{data.description}; at most {limit:,} of each used"
    return replace(data, train=train, held=held, test=test, description=description)
