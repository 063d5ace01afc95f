"""WebDataset's shards: read where they lie, so that an epoch begins anywhere, and gives what the library reads."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_trees import MEAN, STD, data, epoch, refusal, same
from PIL import Image

from ghostify.sources.kinds.shards import expanded


def jpeg(number: int, size: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def write_shard(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def samples(first: int, count: int, size: tuple[int, int] = (12, 10)) -> dict[str, bytes]:
    numbers = range(first, first + count)
    images = {f"some/{number:04}.png": jpeg(number, size) for number in numbers}
    return dict(sorted((images | {f"some/{number:04}.cls": str(number % 3).encode() for number in numbers}).items()))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five shards of 24 samples to train and 7 to validate, of three classes."""
    for index in range(4):
        write_shard(tmp_path / f"set-train-{index:03}.tar", samples(6 * index, 6))
    write_shard(tmp_path / "set-val-000.tar", samples(100, 7))
    return tmp_path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves its files open
def test_shards_give_what_the_library_reads(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    loaded = data(f"webdataset:{shards}/set-*.tar", hold_out=0, augment=False)
    assert loaded.train is not None and (len(loaded.train), len(loaded.test), len(loaded.classes)) == (24, 7, 3)
    for images, pattern in ((loaded.train, "set-train-{000..003}.tar"), (loaded.test, "set-val-000.tar")):
        theirs = webdataset.WebDataset(f"{shards}/{pattern}", shardshuffle=False).decode("torchrgb")
        for index, (pixels, label) in enumerate(theirs.to_tuple("png", "cls")):
            image, ours = images[index]
            assert ours == label and torch.allclose(image, (pixels - MEAN) / STD, atol=1e-6)
        assert index == len(images) - 1


@pytest.mark.parametrize("size", [(12, 10), (90, 70)])
def test_an_epoch_of_shards_begins_anywhere(tmp_path: Path, size: tuple[int, int]) -> None:
    for index in range(3):
        write_shard(tmp_path / f"train/{index}.tar", samples(6 * index, 6, size))
    write_shard(tmp_path / "val/0.tar", samples(50, 3, size))
    loaded = data(f"webdataset:{tmp_path}/*/*.tar", (3, 66, 68) if size[0] > 64 else None)
    whole = epoch(loaded, 1, 1)
    for start, workers in ((1, 0), (2, 2)):
        assert same(epoch(loaded, 1, 1, workers, start=start), whole[2 * start :])
    assert not same(whole, epoch(loaded, 1, 2))
    assert sorted(label for part in whole[1::2] for label in part.tolist()) == sorted([0, 1, 2] * 6)


def test_val_chooses_where_there_is_a_test(shards: Path) -> None:
    write_shard(shards / "set-test-000.tar", samples(200, 5))
    loaded = data(f"webdataset:{shards}/set-*.tar")
    assert loaded.chosen_by == "7 images of val" and len(loaded.test) == 5 and "6 shards" in loaded.description
    only = data(f"webdataset:{shards}/set-val-*.tar")
    assert only.train is None and only.held is None and "none to train" in only.description


def test_a_json_may_tell_the_class(tmp_path: Path) -> None:
    told = {"a.b.png": jpeg(1), "a.json": json.dumps({"label": 4, "text": "x"}).encode(), "readme": b"no sample"}
    del told["a.b.png"]
    write_shard(tmp_path / "validation.tar", {"a.png": jpeg(1), **told})
    loaded = data(f"webdataset:{tmp_path}/validation.tar")
    assert loaded.test[0][1] == 4 and len(loaded.classes) == 5


def test_a_damaged_member_is_named(shards: Path) -> None:
    spoiled = samples(0, 3)
    spoiled["some/0001.png"] = b"no image"
    write_shard(shards / "set-val-000.tar", spoiled)
    text = refusal(lambda: list(data(f"webdataset:{shards}/set-*.tar").test_loader(4)))
    assert f"{shards}/set-val-000.tar:some/0001.png" in text and "cannot be decoded" in text
    loaded = data(f"webdataset:{shards}/set-*.tar", damaged="skip")
    assert [len(labels) for _, labels in loaded.test_loader(4)] == [2]


def test_braces_stand_for_numbers_and_words() -> None:
    assert list(expanded("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expanded("{train,val}-{0..1}")) == ["train-0", "train-1", "val-0", "val-1"]
    assert list(expanded("plain-*.tar")) == ["plain-*.tar"]


def unlabelled(root: Path) -> None:
    write_shard(root / "set-val-000.tar", {"a.png": jpeg(1), "b.png": jpeg(2), "b.cls": b"1"})


@pytest.mark.parametrize(
    ("spoil", "pattern", "says"),
    [
        (lambda root: None, "ste-*.tar", "names no file"),
        (lambda root: None, "set-train-*.tar", "none of val or test"),
        (lambda root: (root / "set-val-000.tar").rename(root / "set-000.tar"), "set-*.tar", "does not say whether"),
        (lambda root: (root / "set-val-000.tar").write_bytes(b"x" * 2000), "set-*.tar", "cannot be read (ReadError)"),
        (lambda root: write_shard(root / "set-val-000.tar", samples(0, 2), "w:gz"), "set-*.tar", "not compressed"),
        (lambda root: write_shard(root / "set-val-000.tar", {"a.txt": b""}), "set-*.tar", "holds no images"),
        (unlabelled, "set-*.tar", "sample 'a' has no class; it needs a a.cls"),
    ],
)
def test_shards_that_are_not_as_they_must_be_are_one_line(
    shards: Path, spoil: Callable[[Path], Any], pattern: str, says: str
) -> None:
    spoil(shards)
    assert says in refusal(lambda: data(f"webdataset:{shards}/{pattern}"))
