"""Images for tests: a tree of files, the data made of it, and what is looked at of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ghostify.errors import DataError
from ghostify.recipe import DataSettings
from ghostify.sources import Data, load_data

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def data(source: str, shape: Any = None, classes: int | None = None, **settings: Any) -> Data:
    return load_data(DataSettings(source=source, **settings), shape, classes)


def refusal(call: Callable[[], Any]) -> str:
    """The message of the DataError that ``call`` raises: always one line, always a sentence."""
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and text.endswith((".", "?"))
    return text


def epoch(loaded: Data, seed: int = 0, number: int = 0, workers: int = 0, **options: Any) -> list[Tensor]:
    """Images and labels of an epoch, one tensor per batch part."""
    return [part for batch in loaded.train_loader(8, seed, number, workers, **options) for part in batch or ()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def write_tree(root: Path, splits: dict[str, int], size: tuple[int, int], suffix: str = ".jpg") -> Path:
    """A tree of random images (width, height) in two classes, ``splits`` saying how many per class."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02}{suffix}")
    return root
