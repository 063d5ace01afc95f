"""Images to look at, without labels: a sample of what a source has, from which damaged files are left out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ghostify.batches import Batch, join
from ghostify.errors import DataError
from ghostify.inputs import Inputs, parse_inputs
from ghostify.recipe import DataSettings
from ghostify.sources.data import Data, image_files, image_shape, imagenet, load_data, natural_shape
from ghostify.sources.images import FileImages, Images, Shape, shuffled

_PICK = 20_200_315


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


def load_sample(settings: DataSettings, wanted: Inputs | tuple[int, ...] | None, n: int, least: int) -> Sample:
    """``n`` images of a source, the same every time; all of them where there are fewer.

    Training images, or test images where there are none.  A folder may hold images in any folders below it, with or
    without classes.  Raises ``DataError`` where fewer than ``least`` can be read.
    """
    kind, _, rest = settings.source.partition(":")
    folder = kind == "folder" and bool(rest)
    made = None if folder else load_data(settings, wanted)
    images, description = _of_folder(Path(rest).expanduser(), wanted) if made is None else _of(made)
    read: list[Batch] = []
    skipped: list[str] = []
    for index in shuffled(len(images), _PICK):
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
    kind, _, rest = settings.source.partition(":")
    folder = kind == "folder" and bool(rest)
    return (_of_folder(Path(rest).expanduser(), None) if folder else _of(load_data(settings)))[0].inputs


def _of(data: Data) -> tuple[Images, str]:
    return data.train if data.train is not None else data.test, data.description


def _one(images: Images, index: int, source: str) -> Batch:
    inputs = images.batch([index])[0]
    if isinstance(inputs, list):
        raise DataError(f"Data {source!r} gives lists of inputs, and an analysis looks at batches of tensors.")
    return inputs


def _of_folder(root: Path, wanted: Inputs | tuple[int, ...] | None) -> tuple[Images, str]:
    if not root.is_dir():
        load_data(DataSettings(source=f"folder:{root}"), wanted)  # which says what is wrong
    home = root / "train" if (root / "train").is_dir() else root
    files = image_files(home)
    found = image_shape(None if wanted is None else parse_inputs(wanted), f"folder:{root}") or _first_shape(files)
    labels = torch.zeros(len(files), dtype=torch.long)
    images = FileImages(files=tuple(files), labels=labels, shape=found, scale=imagenet(found))
    return images, f"{len(files):,} images below {str(home)!r}"


def _first_shape(files: Sequence[str]) -> Shape:
    """The shape a network would get of the first file that can be read."""
    for file in files:
        with suppress(DataError):
            return natural_shape(file)
    raise DataError(f"None of {len(files):,} images can be read, {files[0]!r} the first; look at the folder.")
