"""Images to look at, without labels: a sample of what a source has, from which damaged files are left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ghostify.batches import Batch, join
from ghostify.errors import DataError
from ghostify.inputs import Inputs, parse_inputs
from ghostify.recipe import DataSettings
from ghostify.sources.data import PICK, Data
from ghostify.sources.images import FileImages, Images
from ghostify.sources.kinds import Asked
from ghostify.sources.kinds.asked import first_shape
from ghostify.sources.kinds.folder import image_files
from ghostify.sources.load import image_shape, load_data
from ghostify.sources.preprocessing import Preprocessing
from ghostify.sources.seeding import shuffled


@dataclass(frozen=True)
class Sample:
    """Some images, normalised, (N, C, H, W), or a batch of whatever else a network is given; where they are from, and
    the files that could not be read.
    """

    images: Batch
    description: str
    skipped: tuple[str, ...] = ()
    synthetic: bool = False
    """Whether the images are made up."""


def load_sample(
    settings: DataSettings,
    wanted: Inputs | tuple[int, ...] | None,
    n: int,
    least: int,
    own: Preprocessing | None = None,
) -> Sample:
    """``n`` images of a source, the same every time; all of them where there are fewer.

    Training images, or test images where there are none.  A folder may hold images in any folders below it, with or
    without classes.  Raises ``DataError`` where fewer than ``least`` can be read.
    """
    made = None if _is_folder(settings) else load_data(settings, wanted, own=own)
    images, description = _of_folder(settings, wanted, own) if made is None else _of(made)
    read: list[Batch] = []
    skipped: list[str] = []
    for index in shuffled(len(images), PICK):
        if len(read) == n:
            break
        try:
            read.append(_one(images, index, settings.source))
        except DataError as problem:
            if not isinstance(images, FileImages):
                raise
            skipped.append(str(problem))
    if len(read) < least:
        bad = f" of {len(read) + len(skipped)}, because {len(skipped)} cannot be read: {skipped[0]}" if skipped else "."
        raise DataError(f"Data {settings.source!r} has {len(read)} images{bad} At least {least} are needed.")
    return Sample(join(read), description, tuple(skipped), made is not None and made.synthetic)


def sample_inputs(settings: DataSettings) -> Inputs:
    """What a source gives a network that takes anything.  Raises ``DataError``."""
    return (_of_folder(settings, None, None) if _is_folder(settings) else _of(load_data(settings)))[0].inputs


def _is_folder(settings: DataSettings) -> bool:
    kind, _, rest = settings.source.partition(":")
    return kind == "folder" and bool(rest)


def _of(data: Data) -> tuple[Images, str]:
    return data.train if data.train is not None else data.test, data.description


def _one(images: Images, index: int, source: str) -> Batch:
    inputs = images.batch([index])[0]
    if isinstance(inputs, list):
        raise DataError(f"Data {source!r} gives lists of inputs, and an analysis looks at batches of tensors.")
    return inputs


def _of_folder(
    settings: DataSettings, wanted: Inputs | tuple[int, ...] | None, own: Preprocessing | None
) -> tuple[Images, str]:
    asked = Asked(settings, image_shape(None if wanted is None else parse_inputs(wanted), settings.source), None, own)
    root = asked.place
    if not root.is_dir():
        load_data(settings, wanted)  # which says what is wrong
    home = root / "train" if (root / "train").is_dir() else root
    files = image_files(home)
    shape = asked.shape or first_shape(files, skips=True)
    labels = torch.zeros(len(files), dtype=torch.long)
    return asked.files(files, labels, asked.preprocessing(shape), shape), f"{len(files):,} images below {str(home)!r}"
