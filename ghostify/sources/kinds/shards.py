"""``webdataset:PATTERN``: samples in tar files, as WebDataset packs them for data sets of millions of images.

    train-0000.tar:  n01440764/0001.jpg, n01440764/0001.cls, n01440764/0002.jpg, …

Members of one name, endings aside, are one sample: an image, and its class as a number in a ``.cls``, or as ``label``
in a ``.json``.  A tar file that is not compressed holds its members as they are, so that each can be read where it
lies.  Therefore the library that streams shards is not used: it cannot begin in the middle of an epoch, and shuffles
only what is in a buffer.  Here the order is a permutation of all samples, as with any other source, and an epoch goes
on at any batch without reading what lies before it.  The price is that headers are read before the first epoch, and
that reading jumps: shards belong on a disk that seeks fast.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import torch

from ghostify.errors import DataError
from ghostify.files import near_path
from ghostify.sources.data import Data
from ghostify.sources.decoding import Member
from ghostify.sources.images import FileImages
from ghostify.sources.kinds.asked import SUFFIXES, Asked, first_shape
from ghostify.sources.preprocessing import Preprocessing, Shape

SPLITS = ("train", "val", "test")
_WORD = r"(train|val|test)(?:ing|id|idation)?"
_SPLIT = re.compile(rf"(?<![a-z]){_WORD}(?![a-z])")
"""How the name of a shard says which split it belongs to."""
_CLASS, _JSON = ".cls", ".json"
_KEY = "label"


class Packed(NamedTuple):
    """A sample in a shard."""

    image: Member
    label: int


def webdataset(asked: Asked) -> Data:
    """The samples of all shards that a pattern names.  Raises ``DataError`` where they hold none that can be used."""
    shards = _by_split(asked.name, _found(asked))
    packed = {split: [one for shard in shards[split] for one in _samples(shard)] for split in shards}
    test_name = "test" if "test" in packed else "val"
    if test_name not in packed:
        raise DataError(f"Data {asked.name!r} has shards to train with, and none of val or test; name those, too.")
    first = (sample.image for split in packed.values() for sample in split)
    shape = asked.shape_or(asked.shape or first_shape(first, asked.settings.damaged == "skip"))
    prepared = asked.preprocessing(shape)
    images = {split: _images(asked, samples, prepared, shape) for split, samples in packed.items()}
    train = asked.varied(images["train"]) if "train" in images else None
    held = images.get("val") if train is not None and test_name == "test" else None
    classes = 1 + max(sample.label for samples in packed.values() for sample in samples)
    training = f"{len(train):,} to train" if train else "none to train"
    count = sum(map(len, shards.values()))
    about = f"images of {classes} classes in {count:,} shards, {training} and {len(images[test_name]):,} of {test_name}"
    names = tuple(f"class {number}" for number in range(classes))
    held_from = "of val" if held else ""
    return Data(train, images[test_name], names, shape, asked.name, about, held, held_from, preprocessing=prepared)


def _images(asked: Asked, samples: Sequence[Packed], prepared: Preprocessing, shape: Shape) -> FileImages:
    labels = torch.tensor([sample.label for sample in samples])
    return asked.files([sample.image for sample in samples], labels, prepared, shape)


# -- which shards ----------------------------------------------------------------------------------------------


def _found(asked: Asked) -> list[str]:
    """The files that a pattern names, in order.  Raises ``DataError`` where there are none."""
    patterns = list(expanded(str(asked.place)))
    files = [file for pattern in patterns for file in sorted(glob.glob(pattern))]
    if not files:
        raise DataError(
            f"Data {asked.name!r} names no file; write it as in webdataset:shards/train-*.tar or "
            f"'webdataset:shards/{{train,val}}-{{0000..0099}}.tar'.{near_path(Path(patterns[0]))}"
        )
    return files


def expanded(pattern: str) -> Iterator[str]:
    """A pattern without its braces: ``{0000..0099}`` is each of these numbers, ``{train,val}`` each of these words."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    for word in _alternatives(found[1]):
        yield from expanded(pattern[: found.start()] + word + pattern[found.end() :])


def _alternatives(inside: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        return inside.split(",")
    width = len(numbers[1])
    return [f"{number:0{width}}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]


def _by_split(name: str, files: Sequence[str]) -> dict[str, list[str]]:
    """The shards of each split there is, as their names tell.  Raises ``DataError`` where one does not."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for file in files:
        home = re.fullmatch(_WORD, Path(file).parent.name.lower())
        words = _SPLIT.findall(Path(file).name.lower()) or (home.groups() if home else ())
        if not words:
            raise DataError(
                f"Data {name!r}: the name of shard {file!r} does not say whether it is of train, val or test; rename "
                "it, or put it into a folder of that name."
            )
        found[words[-1]].append(file)
    return {split: shards for split, shards in found.items() if shards}


# -- what is in a shard ----------------------------------------------------------------------------------------


def _samples(shard: str) -> list[Packed]:
    """The samples of a shard, in order.  Raises ``DataError`` where it cannot be read, or an image has no class."""
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, ending = _parts(member.name)
                if member.isfile() and ending in SUFFIXES:
                    images[key] = Member(shard, member.name, member.offset_data, member.size)
                elif member.isfile() and ending in (_CLASS, _JSON):
                    labels |= _label(archive.extractfile(member), key, ending)
    except (tarfile.TarError, OSError, ValueError) as problem:
        raise DataError(
            f"Shard {shard!r} cannot be read ({type(problem).__name__}); it must be a tar file that is not compressed."
        ) from None
    _require_labels(shard, images, labels)
    return [Packed(image, labels[key]) for key, image in images.items()]


def _parts(name: str) -> tuple[str, str]:
    """The key of a member, up to the first dot of its file's name, and its ending."""
    home, slash, file = name.rpartition("/")
    key, dot, ending = file.partition(".")
    return f"{home}{slash}{key}", f"{dot}{ending}".lower()


def _label(content: IO[bytes] | None, key: str, ending: str) -> dict[str, int]:
    """The class that a member tells of its sample, if it tells one."""
    assert content is not None, "members that are files have a content"
    text = content.read().decode()
    if ending == _CLASS:
        return {key: int(text)}
    told = json.loads(text)
    return {key: int(told[_KEY])} if isinstance(told, dict) and _KEY in told else {}


def _require_labels(shard: str, images: dict[str, Member], labels: dict[str, int]) -> None:
    if not images:
        raise DataError(f"Shard {shard!r} holds no images ({', '.join(SUFFIXES)}).")
    lacking = next((key for key in images if key not in labels), None)
    if lacking is not None:
        raise DataError(
            f"Shard {shard!r}: sample {lacking!r} has no class; it needs a {lacking}{_CLASS} that holds a number, or "
            f"a {_JSON} with a {_KEY!r}."
        )
