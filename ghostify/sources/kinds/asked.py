"""What a kind of source is asked for, and what several of them do alike."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ghostify.errors import DataError
from ghostify.recipe import DataSettings
from ghostify.sources.augmenting import AS_IT_IS, Jitter
from ghostify.sources.decoding import File, read_image
from ghostify.sources.images import FileImages
from ghostify.sources.preprocessing import LARGE, Preprocessing, Scale, Shape

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the names of images."""
_LARGE_SHAPE = (3, 224, 224)


@dataclass(frozen=True)
class Asked:
    """Images as a person and a network want them."""

    settings: DataSettings
    shape: Shape | None
    """What the network takes, (C, H, W); None lets the images decide."""
    classes: int | None
    """How many the network tells apart."""
    own: Preprocessing | None
    """What the network's trained weights want of images, where that is known."""

    @property
    def name(self) -> str:
        return self.settings.source

    @property
    def place(self) -> Path:
        """Where the images are."""
        return Path(self.settings.source.partition(":")[2]).expanduser()

    def shape_or(self, natural: Shape) -> Shape:
        """What images are brought to.  Raises ``DataError`` where the network takes no images."""
        shape = self.shape or natural
        if shape[0] not in (1, 3):
            raise DataError(f"Data {self.name!r} has images of 1 or 3 channels, but the network takes {shape[0]}.")
        return shape

    def preprocessing(self, shape: Shape, scale: Scale | None = None) -> Preprocessing:
        """How images become ``shape``: as the network's weights want it, else as is usual; and what a person set.

        ``scale`` is what such images are usually normalised by, where that is not ImageNet's.
        """
        own = self.own if self.settings.prepare == "model" else None
        found = own.at(shape) if own is not None else Preprocessing.usual(shape, scale)
        return found.overruled(self.settings)

    def shift(self, most: int, flip: bool) -> Jitter:
        """How small images are varied, where they are to be."""
        return Jitter(most, flip, self.settings.randaugment) if self.settings.augment else AS_IT_IS

    def files(self, files: Sequence[File], labels: Tensor, preprocessing: Preprocessing, shape: Shape) -> FileImages:
        """Images that are read as they are needed, as they are tested with."""
        # its transforms are loaded here, else each loader process of each epoch would do that for itself
        importlib.import_module("torchvision.transforms.v2")
        return FileImages(files=tuple(files), labels=labels, shape=shape, preprocessing=preprocessing)

    def varied(self, images: FileImages) -> FileImages:
        """The same to train on: small ones are shifted, of large ones a random part is cut out."""
        if max(images.shape[1:]) <= LARGE:
            return replace(images, jitter=self.shift(4, flip=True))
        return replace(images, jitter=self.shift(0, flip=True), crops=self.settings.augment)


def first_shape(files: Iterable[File], skips: bool) -> Shape:
    """What images are brought to where no network says so: by the first of them or, with ``skips``, the first that can
    be read.

    Raises ``DataError`` where there is none.
    """
    problems: list[str] = []
    for file in files:
        try:
            width, height = read_image(file).size
        except DataError as problem:
            if not skips:
                raise
            problems.append(str(problem))
            continue
        return (3, height, width) if max(width, height) <= LARGE else _LARGE_SHAPE
    raise DataError(f"None of {len(problems):,} images can be read: {problems[0]}")
