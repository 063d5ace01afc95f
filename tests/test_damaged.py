"""Images that cannot be read: fatal and named, or left out, named and counted; and never in the way of a resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from image_trees import data, epoch, refusal, same, write_tree

from ghostify.sources import Data
from ghostify.sources.damaged import Damaged, Skipped, read_each

USER_MODULE = """
import torch
class Failing:
    classes = ['a', 'b']
    def __len__(self): return 24
    def __getitem__(self, i):
        if i % 5 == 3: raise KeyError("three")
        return torch.full((1, 4, 4), float(i)), i % 2
def failing(): return Failing(), Failing()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "damaged_data", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "damaged_data.py").write_text(USER_MODULE)
    return tmp_path


def spoiled(root: Path, size: tuple[int, int]) -> Path:
    write_tree(root, {"train": 9, "test": 6}, size)
    for name in ("train/cat/03.jpg", "train/dog/08.jpg", "test/dog/01.jpg"):
        (root / name).write_bytes(b"")
    return root


@pytest.fixture(params=["large", "small", "user"])
def broken(request: pytest.FixtureRequest, here: Path) -> Data:
    """Data of which some samples cannot be read, where those are to be left out."""
    if request.param == "user":
        return data("damaged_data:failing", damaged="skip")
    size, shape = ((90, 70), (3, 66, 68)) if request.param == "large" else ((12, 10), (3, 10, 12))
    return data(f"folder:{spoiled(here / request.param, size)}", shape, damaged="skip")


def whole(loaded: Data, count: int) -> int:
    """How many of a set's samples can be read."""
    return sum(_readable(loaded.test, index) for index in range(count))


def _readable(images: Any, index: int) -> bool:
    try:
        images.batch([index])
    except Damaged:
        return False
    return True


def test_by_default_the_first_one_ends_it(here: Path) -> None:
    root = spoiled(here / "large", (90, 70))
    for call in (lambda loaded: epoch(loaded), lambda loaded: loaded.calibration(18)):
        text = refusal(lambda call=call: call(data(f"folder:{root}", (3, 66, 68))))  # type: ignore[misc]
        assert "cannot be decoded" in text and "train" in text


def test_each_test_image_that_can_be_read_is_counted_once(broken: Data) -> None:
    good = whole(broken, len(broken.test))
    assert good < len(broken.test)
    for world in (1, 2, 5):
        parts = [x for rank in range(world) for x, _ in broken.test_loader(2, rank=rank, world=world)]
        assert all(len(part) for part in parts)
        rows = {row.numpy().tobytes() for part in parts for row in part}
        assert len(rows) == sum(map(len, parts)) == good


def test_a_test_batch_of_damaged_images_only_is_no_batch(broken: Data) -> None:
    assert sum(len(labels) for _, labels in broken.test_loader(1)) == whole(broken, len(broken.test))


def test_training_goes_on_with_the_next_and_a_resume_repeats_it(broken: Data) -> None:
    first = epoch(broken, 1, 2)
    labels = first[1::2]
    assert [len(part) for part in labels[:-1]] == [8] * (len(labels) - 1)
    for start, workers in ((0, 2), (1, 0), (2, 4)):
        assert same(epoch(broken, 1, 2, workers, start=start), first[2 * start :])


def test_they_are_named_and_counted_once_each(broken: Data) -> None:
    for number in range(2):
        epoch(broken, number=number, workers=number)
        list(broken.test_loader(4))
    broken.calibration(30)
    problems = list(broken.feeding.skipped.problems)
    assert len(problems) == len(set(problems)) >= 3
    text = str(broken.feeding.skipped)
    assert text.startswith(f"{len(problems)} damaged samples were left out: ") and problems[0] in text


def test_a_label_is_that_of_the_sample_that_stands_in(here: Path) -> None:
    loaded = data("damaged_data:failing", damaged="skip", augment=False)
    for images, labels in loaded.train_loader(8, 0, 0):
        assert torch.equal(images[:, 0, 0, 0].long() % 2, labels)
        assert (images[:, 0, 0, 0].long() % 5 != 3).all()


def test_data_of_which_nothing_can_be_read_are_one_line(here: Path) -> None:
    root = spoiled(here / "large", (90, 70))
    for file in root.glob("train/*/*.jpg"):
        file.write_bytes(b"")
    loaded = data(f"folder:{root}", (3, 66, 68), damaged="skip")
    assert "None of 18 samples can be read: Image" in refusal(lambda: epoch(loaded))
    assert "None of 4 samples can be read: Image" in refusal(lambda: loaded.calibration(4))
    everything = data(f"folder:{root}", damaged="skip")
    assert everything.shape == (3, 224, 224), "the first that can be read is of test/"


def test_many_are_counted_and_few_are_named() -> None:
    skipped = Skipped()
    assert str(skipped) == ""
    skipped.add(["A."])
    assert str(skipped) == "1 damaged sample was left out: A."
    skipped.add(["A.", "B.", "C.", "D.", "E."])
    assert str(skipped) == "5 damaged samples were left out: A. B. C. (and 2 more)"


def test_all_of_a_batch_are_tried_before_it_fails() -> None:
    from ghostify.errors import DataError

    tried = []

    def read(place: int) -> int:
        tried.append(place)
        if place in (1, 3):
            raise DataError(f"no {place}.")
        return place

    assert read_each(lambda place: 2 * place, 3) == [0, 2, 4]
    with pytest.raises(Damaged, match=r"no 1\.") as caught:
        read_each(read, 5)
    assert tried == [0, 1, 2, 3, 4] and caught.value.problems == {1: "no 1.", 3: "no 3."}
