"""``folder:PATH``: images in folders by split and class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ghostify.errors import DataError
from ghostify.files import near_path
from ghostify.sources.data import Data
from ghostify.sources.images import FileImages
from ghostify.sources.kinds.asked import SUFFIXES, Asked, first_shape
from ghostify.sources.preprocessing import Preprocessing, Shape

Classes = Mapping[str, list[str]]
"""The files of each class."""
_TREE = "train/CLASS/*.jpg and val/CLASS/*.jpg (or test/CLASS/*.jpg)"


def folder(asked: Asked) -> Data:
    """The images of a folder.  Raises ``DataError`` where it does not hold them as it must."""
    splits = _splits(asked.place)
    test_name = list(splits)[-1]
    names = list(splits[test_name])
    _require_equal_classes(asked.place, splits)
    everything = (file for classes in splits.values() for members in classes.values() for file in members)
    shape = asked.shape_or(asked.shape or first_shape(everything, asked.settings.damaged == "skip"))
    prepared = asked.preprocessing(shape)
    test = _files(asked, splits[test_name], prepared, shape)
    train = asked.varied(_files(asked, splits["train"], prepared, shape)) if "train" in splits else None
    judges = train is not None and test_name == "test" and "val" in splits
    held = _files(asked, splits["val"], prepared, shape) if judges else None
    training = f"{len(train):,} to train" if train else "none to train"
    about = f"images of {len(names)} classes in {str(asked.place)!r}, {training} and {len(test):,} in {test_name}/"
    held_from = "of val" if held else ""
    return Data(train, test, tuple(names), shape, asked.name, about, held, held_from, preprocessing=prepared)


def _files(asked: Asked, classes: Classes, prepared: Preprocessing, shape: Shape) -> FileImages:
    files = [file for members in classes.values() for file in members]
    labels = torch.tensor([label for label, members in enumerate(classes.values()) for _ in members])
    return asked.files(files, labels, prepared, shape)


def _splits(root: Path) -> dict[str, Classes]:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"Data folder {str(root)!r} {what}; it must hold {_TREE}.{near_path(root)}")
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "val" in names and "test" in names and not _class_folders(root / "test"):
        names.remove("test")  # as that of ImageNet, whose labels are kept secret
    if names in ([], ["train"]):
        raise DataError(f"Data folder {str(root)!r} has no val/ and no test/; it must hold {_TREE}.")
    return {name: _classes(root / name) for name in names}


def _class_folders(split: Path) -> list[str]:
    return sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(split: Path) -> Classes:
    folders = _class_folders(split)
    if not folders:
        raise DataError(
            f"Data folder {str(split)!r} has no class folders; it must hold one folder of images per class."
        )
    return {name: image_files(split / name) for name in folders}


def image_files(folder: Path) -> list[str]:
    """All images below ``folder``, in the order of torchvision's ImageFolder."""
    places = sorted(os.walk(folder, followlinks=True))
    files = [os.path.join(place, name) for place, _, names in places for name in sorted(names) if _is_image(name)]
    if not files:
        raise DataError(f"Class folder {str(folder)!r} holds no images ({', '.join(SUFFIXES)}).")
    return files


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _require_equal_classes(root: Path, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ``DataError`` unless every split has the classes of the first."""
    first, *others = splits
    for name in others:
        odd = sorted(splits[first].keys() ^ splits[name].keys())
        if odd:
            here, there = (first, name) if odd[0] in splits[first] else (name, first)
            more = f" (and {len(odd) - 1} more such)" if len(odd) > 1 else ""
            raise DataError(f"Data folder {str(root)!r}: class {odd[0]!r} is in {here}/ but not in {there}/{more}.")
