"""``cifar10:PATH`` and ``cifar100:PATH``: the data sets in their own files (the Python version)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ghostify.errors import DataError
from ghostify.sources.data import Data
from ghostify.sources.images import ArrayImages
from ghostify.sources.kinds.asked import Asked
from ghostify.sources.named import reason_of


def cifar10(asked: Asked) -> Data:
    """60,000 images of 10 classes.  Raises ``DataError`` where the files are not there."""
    from torchvision.datasets import CIFAR10

    return _cifar(asked, CIFAR10, "CIFAR-10")


def cifar100(asked: Asked) -> Data:
    """60,000 images of 100 classes.  Raises ``DataError`` where the files are not there."""
    from torchvision.datasets import CIFAR100

    return _cifar(asked, CIFAR100, "CIFAR-100")


def _cifar(asked: Asked, dataset: Any, title: str) -> Data:
    root = asked.place.parent if asked.place.name == dataset.base_folder else asked.place
    shape = asked.shape_or((3, 32, 32))
    try:
        parts = [dataset(root, train=train, download=False) for train in (True, False)]
    except Exception as problem:  # missing, damaged, or not readable
        reason = "not there, or damaged" if isinstance(problem, RuntimeError) else reason_of(problem)
        place = root / dataset.base_folder
        raise DataError(f"The files of {title} (Python version) in {str(place)!r}: {reason}.") from None
    prepared = asked.preprocessing(shape)
    train, test = (
        ArrayImages(
            pixels=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            labels=torch.tensor(part.targets),
            shape=shape,
            scale=prepared.scale,
        )
        for part in parts
    )
    # a crop after padding by 4, as the papers train on CIFAR
    train = replace(train, jitter=asked.shift(4, flip=True))
    about = f"{title}, {len(train):,} images to train and {len(test):,} to test"
    return Data(train, test, tuple(parts[0].classes), shape, asked.name, about, preprocessing=prepared)
