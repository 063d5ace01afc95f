"""Images by name: what a loader gives, that it gives it again, and the one line that says why it cannot."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_trees import MEAN, STD, data, epoch, refusal, same, write_tree
from PIL import Image
from torchvision import transforms
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from ghostify.recipe import DataSettings
from ghostify.sources import Data, decoding, load_sample
from ghostify.sources.augmenting import Jitter, random_part
from ghostify.sources.held_out import held_out
from ghostify.sources.preprocessing import Preprocessing
from ghostify.sources.seeding import DRAWS

USER_MODULE = """
import random, numpy, torch
class Noisy:
    classes = ["a", "b"]
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, i):
        return torch.rand(1, 4, 4) + random.random() + float(numpy.random.rand()), i % 2
class Failing(Noisy):
    def __getitem__(self, i):
        if i == 3: raise KeyError("three")
        return super().__getitem__(i)
def pairs(): return Noisy(20), Noisy(6)
class Many(Noisy):
    def __init__(self, count, targets): self.count, self.targets = count, targets
    def __getitem__(self, i): return super().__getitem__(i)[0], int(i % 4 == 0)
def many(): return Many(200, [int(i % 4 == 0) for i in range(200)]), [(torch.ones(1, 4, 4), 0)] * 6
def odd_labels(): return Many(200, ["cat"] * 200), Noisy(6)
def with_val(): return {"train": Noisy(8), "val": Noisy(4), "test": Noisy(6)}
def only_test(): return None, Noisy(6)
def named(): return {"train": Noisy(8), "test": Noisy(4), "classes": ["cat", "dog"]}
def lists(): return [(torch.zeros(1, 2, 2), 0)] * 5, [(torch.zeros(1, 2, 2), 2)] * 3
def failing(): return Failing(9), Noisy(4)
def wrong_key(): return {"trian": Noisy(8), "test": Noisy(4)}
def wrong_type(): return 3
def no_test(): return Noisy(3), None
def empty(): return Noisy(3), []
def uneven(): return [(torch.zeros(1, 2, 2), 0), (torch.zeros(1, 3, 3), 0)], [(torch.zeros(1, 2, 2), 0)]
def mixed(items): return torch.stack([x for x, _ in items]) + torch.rand(1), torch.tensor([y for _, y in items])
def collating(): return {"train": Noisy(20), "test": Noisy(6), "collate": mixed}
def arrays(): return None, [(numpy.zeros((1, 2, 2)), 0)]
def bytes_(): return None, [(torch.zeros(1, 2, 2, dtype=torch.uint8), 0)]
def broken(): raise OSError("disk on fire")
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "small", {"train": 9, "test": 3}, (12, 10))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "large", {"train": 9, "val": 3}, (90, 70))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "user_data", raising=False)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "user_data.py").write_text(USER_MODULE)
    return tmp_path


@pytest.fixture
def sources(small: Path, large: Path, here: Path) -> dict[str, Data]:
    """One of each kind."""
    return {
        "digits": data("digits", limit=30),
        "fake": data("fake", limit=30),
        "small": data(f"folder:{small}"),
        "large": data(f"folder:{large}", (3, 66, 68)),
        "user": data("user_data:pairs"),
    }


# --- what every source promises


def test_every_source_gives_batches_of_its_shape_and_classes(sources: dict[str, Data]) -> None:
    for name, loaded in sources.items():
        assert loaded.train is not None, name
        for part in (loaded.train_loader(8, 0, 0), loaded.test_loader(8)):
            for images, labels in part:
                assert images.shape == (len(labels), *loaded.shape) and images.dtype == torch.float32, name
                assert images.is_contiguous() and labels.dtype == torch.int64, name
                assert labels.min() >= 0 and labels.max() < len(loaded.classes), name
        image, label = loaded.test[0]
        assert image.shape == loaded.shape and isinstance(label, int), name


def test_seed_and_epoch_alone_decide_an_epoch(sources: dict[str, Data]) -> None:
    for name, loaded in sources.items():
        first = epoch(loaded)
        torch.manual_seed(99), random.seed(99), np.random.seed(99)
        assert same(first, epoch(loaded)), name
        assert not same(first, epoch(loaded, number=1)), name
        assert not same(first, epoch(loaded, seed=1)), name


def test_loader_processes_change_nothing(sources: dict[str, Data]) -> None:
    for name in ("large", "user"):  # the others are held in memory
        alone = epoch(sources[name])
        assert same(alone, epoch(sources[name], workers=1)), name
        assert same(alone, epoch(sources[name], workers=2)), name


def test_an_epoch_holds_every_image_once_whatever_the_batch_size(sources: dict[str, Data]) -> None:
    for name, loaded in sources.items():
        assert loaded.train is not None
        for size in (3, 7, 100):
            count = sum(len(labels) for _, labels in loaded.train_loader(size, 0, 0))
            lone = len(loaded.train) % size == 1
            assert count == len(loaded.train) - lone, name


def test_an_image_is_varied_alike_in_any_batch_size() -> None:
    loaded = data("fake", limit=20)
    small, large = (torch.cat([x for x, _ in loaded.train_loader(size, 3, 4)]) for size in (4, 20))
    assert torch.equal(small, large)


def test_a_lone_last_image_is_left_out_unless_batches_are_of_one() -> None:
    loaded = data("fake", limit=9)
    assert [len(y) for _, y in loaded.train_loader(4, 0, 0)] == [4, 4]
    assert [len(y) for _, y in loaded.train_loader(1, 0, 0)] == [1] * 9
    assert [len(y) for _, y in data("fake", limit=1).train_loader(4, 0, 0)] == [1]


def test_loading_takes_nothing_from_the_global_generators(sources: dict[str, Data]) -> None:
    for name, loaded in sources.items():
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        expected = torch.rand(1), random.random(), np.random.rand()
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        epoch(loaded)
        assert (torch.rand(1), random.random(), np.random.rand()) == expected, name


def test_processes_share_an_epoch_and_leave_no_image_out(sources: dict[str, Data]) -> None:
    loaded = sources["small"]
    for world in (2, 3, 4, 7):
        loaders = [loaded.train_loader(8, 0, 0, rank=rank, world=world) for rank in range(world)]
        images = torch.cat([batch[0].flatten(1) for loader in loaders for batch in loader if batch])
        assert len(images) == len(images.unique(dim=0)) == 18


@pytest.mark.parametrize("world", [1, 3])
def test_a_loader_that_starts_later_gives_what_the_whole_one_gives_from_there(
    sources: dict[str, Data], world: int
) -> None:
    options = {"rank": 0, "world": world}
    for name, loaded in {**sources, "collated": data("user_data:collating")}.items():
        whole = epoch(loaded, 3, 5, **options)
        for start in range(len(whole) // 2 + 1):
            torch.manual_seed(start), random.seed(start), np.random.seed(start)
            assert same(epoch(loaded, 3, 5, start=start, **options), whole[2 * start :]), (name, start)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_loader_that_starts_later_may_have_other_loader_processes(sources: dict[str, Data], workers: int) -> None:
    for name, loaded in {"large": sources["large"], "collated": data("user_data:collating")}.items():
        whole = epoch(loaded, 3, 5)
        assert len(whole) >= 4 and same(epoch(loaded, 3, 5, workers, start=1), whole[2:]), name


def test_processes_together_train_on_the_batches_of_one(sources: dict[str, Data]) -> None:
    for name, loaded in sources.items():
        alone = [batch for batch, _ in loaded.train_loader(6, 0, 0)]
        shares = [loaded.train_loader(6, 0, 0, rank=rank, world=4) for rank in range(4)]
        for batch, parts in zip(alone, zip(*shares, strict=True), strict=True):
            together = torch.cat([part[0] for part in parts if part])
            rows, others = (sorted(row.numpy().tobytes() for row in some) for some in (batch, together))
            assert rows == others, name


@pytest.mark.parametrize("world", [1, 2, 4, 7, 100])
def test_processes_share_a_test_set_each_image_once(sources: dict[str, Data], world: int) -> None:
    for name, loaded in {**sources, "held": data("digits", limit=41)}.items():
        for make in (loaded.test_loader, loaded.held_loader):
            whole = make(8)
            if whole is not None:
                shares = [[x for x, _ in make(8, rank=rank, world=world) or ()] for rank in range(world)]
                rows = sorted(row.numpy().tobytes() for share in shares for batch in share for row in batch)
                assert rows == sorted(row.numpy().tobytes() for batch, _ in whole for row in batch), name


def test_calibration_is_fixed_and_not_varied(sources: dict[str, Data]) -> None:
    for name, loaded in sources.items():
        images = loaded.calibration(5)
        assert images.shape == (5, *loaded.shape), name
        if name != "user":  # a user's own dataset may vary as it likes
            assert torch.equal(images, loaded.calibration(5)), name
            assert torch.equal(images[:3], loaded.calibration(3)), name
            plain = torch.stack([loaded.train[index][0] for index in range(len(loaded.train))])  # type: ignore[index, arg-type]
            assert all((plain == image).flatten(1).all(1).any() for image in images), name
        assert len(loaded.calibration(10_000)) == len(loaded.train), name  # type: ignore[arg-type]


def test_without_augmentation_an_epoch_is_the_images_in_another_order(small: Path, large: Path) -> None:
    for source, shape in (("digits", None), (f"folder:{small}", None), (f"folder:{large}", (3, 66, 68))):
        for augment in (False, True):
            loaded = data(source, shape, limit=20, augment=augment)
            assert loaded.train is not None
            plain = torch.stack([loaded.train[index][0] for index in range(len(loaded.train))])
            seen = torch.cat(epoch(loaded)[::2])
            unvaried = all((plain == image).flatten(1).all(1).any() for image in seen)
            assert unvaried is not augment


def test_a_limit_takes_the_same_few_of_each_split(small: Path) -> None:
    one, more = data("digits", limit=10), data("digits", limit=20)
    assert one.train is not None and more.train is not None
    assert (len(one.train), len(one.test), len(more.train)) == (10, 10, 20)
    assert torch.equal(one.train[9][0], more.train[9][0])
    assert set(data(f"folder:{small}", limit=8).train.labels.tolist()) == {0, 1}, "not the first few"  # type: ignore[union-attr]


def test_data_survives_the_way_to_another_process(sources: dict[str, Data]) -> None:
    for name in ("digits", "small", "large"):
        assert same(epoch(sources[name]), epoch(pickle.loads(pickle.dumps(sources[name])))), name


# --- augmentation


def test_a_shift_moves_over_black_and_a_flip_mirrors() -> None:
    pixels = torch.rand(64, 3, 6, 5) + 1
    draws = torch.rand(64, DRAWS)
    moved = Jitter(shift=2, flip=True)(pixels, draws)
    for before, after, (down, right, mirror, *_) in zip(pixels, moved, draws.tolist(), strict=True):
        down, right = int(down * 5), int(right * 5)
        expected = transforms.functional.pad(before, 2)[:, down : down + 6, right : right + 5]
        assert torch.equal(after, expected.flip(2) if mirror < 0.5 else expected)


def test_all_shifts_are_drawn() -> None:
    point = torch.zeros(2000, 1, 9, 9)
    point[:, :, 4, 4] = 1
    moved = Jitter(shift=2)(point, torch.rand(2000, DRAWS, generator=torch.Generator().manual_seed(0)))
    counts = moved.sum((0, 1))
    assert torch.equal(counts > 0, torch.nn.functional.pad(torch.ones(5, 5), (2,) * 4) > 0)
    assert counts.sum() == 2000 and counts[2:7, 2:7].min() > 40


def test_digits_are_shifted_by_an_eighth_and_never_mirrored() -> None:
    loaded = data("digits", (1, 16, 16))
    assert loaded.train.jitter == Jitter(shift=2, flip=False)  # type: ignore[union-attr]


def test_a_random_part_is_torchvisions_and_varies_with_the_seed() -> None:
    ramp = np.add.outer(np.arange(50), 3 * np.arange(90)).astype(np.uint8)
    picture, prepared = Image.fromarray(ramp).convert("RGB"), Preprocessing.usual((3, 66, 68))
    parts = [np.asarray(random_part(picture, prepared, seed)) for seed in (1, 1, 2)]
    assert parts[0].shape == (66, 68, 3) and (parts[0] == parts[1]).all() and (parts[0] != parts[2]).any()
    torch.manual_seed(2)  # the seed after that of the image, which its operations draw by
    assert (np.asarray(transforms.RandomResizedCrop((66, 68))(picture)) == parts[0]).all()


def test_randaugment_varies_each_image_by_its_own_seed(small: Path, large: Path) -> None:
    for source, shape in ((f"folder:{small}", None), (f"folder:{large}", (3, 66, 68)), ("digits", (1, 16, 16))):
        plain, varied = data(source, shape, limit=12), data(source, shape, limit=12, randaugment=(2, 9))
        assert not same(epoch(plain), epoch(varied)) and same(epoch(plain)[1::2], epoch(varied)[1::2])
        assert same(epoch(varied), epoch(varied, workers=2))
        by_one, at_once = (torch.cat([x for x, _ in varied.train_loader(size, 0, 0)]) for size in (1, 12))
        assert torch.equal(by_one, at_once)
        assert same(*([x for x, _ in one.test_loader(4)] for one in (plain, varied)))


# --- digits and fake


def test_digits_are_the_real_ones_split_for_good() -> None:
    from sklearn.datasets import load_digits

    loaded = data("digits", (1, 8, 8))
    assert loaded.train is not None and loaded.held is not None
    assert (len(loaded.train) + len(loaded.held), len(loaded.held), len(loaded.test)) == (1437, 143, 360)
    everything = [part.batch(range(len(part))) for part in (loaded.train, loaded.test, loaded.held)]
    per_class = torch.bincount(everything[1][1])
    assert per_class.min() >= 34 and per_class.max() <= 37
    train = torch.cat([everything[0][0], everything[2][0]])
    assert abs(train.mean()) < 1e-4 and abs(train.std() - 1) < 1e-3
    scale = loaded.test.scale  # type: ignore[attr-defined]
    back = torch.cat([images for images, _ in everything]) * scale.std[0] + scale.mean[0]
    ours = sorted(map(tuple, (back * 16).round().int().flatten(1).tolist()))
    assert ours == sorted(map(tuple, load_digits().data.astype(int).tolist()))


def test_grey_becomes_three_equal_channels_of_the_wanted_size() -> None:
    image, _ = data("digits", (3, 20, 24)).test[0]
    assert image.shape == (3, 20, 24) and torch.equal(image[0], image[2])


def test_fake_images_are_called_synthetic_and_can_be_told_apart() -> None:
    loaded = data("fake", (1, 12, 12), 4, hold_out=0)
    assert loaded.synthetic and "synthetic" in loaded.description and len(loaded.classes) == 4
    assert loaded.train is not None and (len(loaded.train), len(loaded.test)) == (512, 128)
    images, labels = loaded.train.batch(range(512))
    means = torch.stack([images[labels == label].mean(0) for label in range(4)])
    tests, truth = loaded.test.batch(range(128))
    nearest = torch.cdist(tests.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == truth).float().mean() > 0.95


# --- folders


def test_only_made_up_images_are_synthetic(tmp_path: Path, sources: dict[str, Data]) -> None:
    root = write_tree(tmp_path / "synthetic_parts", {"test": 1}, (8, 8))
    assert not data(f"folder:{root}").synthetic
    assert [name for name, loaded in sources.items() if loaded.synthetic] == ["fake"]
    wanted = DataSettings(source="fake"), DataSettings(source=f"folder:{root}")
    assert [load_sample(settings, (3, 8, 8), 2, 1).synthetic for settings in wanted] == [True, False]


def test_a_folder_is_read_as_image_folder_and_to_tensor_read_it(small: Path) -> None:
    loaded = data(f"folder:{small}")
    truth = ImageFolder(small / "test", transforms.ToTensor())
    assert loaded.shape == (3, 10, 12) and loaded.classes == tuple(truth.classes)
    assert loaded.test.files == tuple(path for path, _ in truth.samples)  # type: ignore[attr-defined]
    for index, (image, label) in enumerate(truth):
        ours, our_label = loaded.test[index]
        assert our_label == label and torch.allclose(ours, (image - MEAN) / STD, atol=1e-6)


def test_a_large_image_is_framed_as_resize_and_centre_crop_frame_it(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"test": 1}, (400, 320), ".png")
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None].repeat(320, 0).repeat(3, 2)
    Image.fromarray(ramp).save(root / "test/cat/00.png")
    loaded = data(f"folder:{root}")
    classic = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    expected = (classic(Image.fromarray(ramp)) - MEAN) / STD
    assert loaded.shape == (3, 224, 224) and (loaded.test[0][0] - expected).abs().max() < 0.04


def test_an_image_of_the_right_size_is_not_touched(large: Path) -> None:
    image, _ = data(f"folder:{large}", (3, 70, 90)).test[0]
    with Image.open(large / "val/cat/00.jpg") as file:
        assert torch.allclose(image, (transforms.ToTensor()(file) - MEAN) / STD, atol=1e-6)


def test_a_folder_can_be_read_grey_and_resized(small: Path) -> None:
    image, _ = data(f"folder:{small}", (1, 8, 8)).test[0]
    assert image.shape == (1, 8, 8)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK"])
def test_images_of_any_mode_are_read(tmp_path: Path, mode: str) -> None:
    root = write_tree(tmp_path, {"test": 1}, (8, 8), ".tiff")
    picture = Image.new("RGB", (8, 8), (200, 200, 200))
    picture = picture.quantize(2) if mode == "P" else picture.convert(mode)
    picture.save(root / "test/cat/00.tiff")
    if mode == "P":
        picture.save(root / "test/cat/00.png", transparency=b"\x00\x01")
    image, _ = data(f"folder:{root}").test[0]
    assert torch.allclose(image * STD + MEAN, torch.full((3, 8, 8), 200 / 255), atol=0.02)


RAMP = np.linspace(0, 1, 12 * 10).reshape(10, 12)
"""A grey picture, from black to white."""


def deep_folder(tmp_path: Path, picture: Image.Image, suffix: str) -> Path:
    (tmp_path / "test/cat").mkdir(parents=True)
    picture.save(tmp_path / f"test/cat/0{suffix}")
    return tmp_path


def scaled(most: float, kind: Any) -> Image.Image:
    return Image.fromarray((RAMP * most).round(6 if most == 1 else 0).astype(kind))


@pytest.mark.parametrize(
    ("picture", "suffix"),
    [
        (lambda: scaled(65535, np.uint16), ".png"),
        (lambda: scaled(65535, np.uint16), ".tiff"),
        (lambda: scaled(65535, ">u2"), ".tiff"),
        (lambda: scaled(65535, np.uint16), ".pgm"),
        (lambda: scaled(255, np.int32), ".tiff"),
        (lambda: scaled(65535, np.int32), ".tif"),
        (lambda: scaled(2**31 - 1, np.int32), ".tiff"),
        (lambda: scaled(1, np.float32), ".tiff"),
        (lambda: scaled(255, np.float32), ".tiff"),
        (lambda: scaled(65535, np.float32), ".tif"),
        (lambda: scaled(255, np.uint8), ".png"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_images_are_read_in_their_own_range(
    tmp_path: Path, picture: Callable[[], Image.Image], suffix: str, channels: int
) -> None:
    root = deep_folder(tmp_path, picture(), suffix)
    loaded = data(f"folder:{root}", (channels, 10, 12))
    ((images, _),) = loaded.test_loader(4)
    mean, std = (MEAN, STD) if channels == 3 else (0.449, 0.226)
    wanted = torch.from_numpy(RAMP).expand(channels, -1, -1)
    assert torch.allclose((images[0] * std + mean).double(), wanted, atol=0.005)
    smaller, _ = data(f"folder:{root}", (channels, 5, 6)).test[0]
    assert torch.allclose((smaller * std + mean).mean(), wanted.mean().float(), atol=0.01)


def test_a_dark_deep_image_stays_dark(tmp_path: Path) -> None:
    root = deep_folder(tmp_path, Image.fromarray(np.full((10, 12), 3000, np.uint16)), ".png")
    image, _ = data(f"folder:{root}", (1, 10, 12)).test[0]
    assert torch.allclose(image * 0.226 + 0.449, torch.full((1, 10, 12), 3000 / 65535), atol=1e-4)


def test_bits_that_a_file_tells_are_its_range(tmp_path: Path) -> None:
    from PIL import TiffImagePlugin

    path = deep_folder(tmp_path, scaled(4095, np.uint16), ".tiff") / "test/cat/0.tiff"
    assert TiffImagePlugin.BITSPERSAMPLE == 258
    with Image.open(path) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        image.tag_v2[258] = (12,)
        assert decoding._range(image, np.asarray(image)) == 4095


@pytest.mark.parametrize("kind", ["train", "test"])
def test_deep_and_plain_images_may_stand_in_one_folder(tmp_path: Path, kind: str) -> None:
    for split in ("train", "test"):
        folder = tmp_path / split / "cat"
        folder.mkdir(parents=True)
        scaled(65535, np.uint16).save(folder / "0.png")
        scaled(255, np.uint8).save(folder / "1.png")
    loaded = data(f"folder:{tmp_path}", (1, 10, 12), augment=False)
    loader = loaded.test_loader(2) if kind == "test" else loaded.train_loader(2, 0, 0)
    ((images, _),) = loader
    assert torch.allclose(images[0], images[1], atol=0.02)


@pytest.mark.parametrize(
    "values", [np.linspace(-1, 1, 120), np.full(120, np.nan), np.full(120, np.inf), np.full(120, 1e9)]
)
def test_values_without_a_range_are_one_line(tmp_path: Path, values: Any) -> None:
    root = deep_folder(tmp_path, Image.fromarray(values.reshape(10, 12).astype(np.float32)), ".tiff")
    text = refusal(lambda: data(f"folder:{root}", (1, 10, 12)).test[0])
    assert "0.tiff" in text and "0 to 1" in text


def test_without_train_a_folder_can_be_evaluated_only(small: Path) -> None:
    shutil.rmtree(small / "train")
    loaded = data(f"folder:{small}")
    assert loaded.train is None and len(loaded.test) == 6 and "none to train" in loaded.description
    assert "no training images to train on" in refusal(lambda: loaded.train_loader(8, 0, 0))
    assert "no training images to calibrate with" in refusal(lambda: loaded.calibration(4))


def test_hidden_entries_are_ignored(small: Path) -> None:
    shutil.move(small / "test", small / "val")
    (small / "val/dog/00.jpg").unlink()
    (small / "val/.cache").mkdir()
    (small / "val/cat/._00.jpg").write_bytes(b"not an image")
    (small / "val/cat/notes.txt").write_text("not an image")
    loaded = data(f"folder:{small}")
    assert len(loaded.test) == 5 and "val/" in loaded.description


# --- images to choose an epoch by


def keys(images: Any) -> set[bytes]:
    """Each image of a split as its bytes."""
    return {images[index][0].numpy().tobytes() for index in range(len(images))}


def test_what_is_held_out_is_neither_trained_on_nor_calibrated_with_nor_tested(here: Path) -> None:
    for source in ("digits", "fake", "user_data:many"):
        whole, loaded = data(source, hold_out=0), data(source)
        assert whole.train and loaded.train and loaded.held and whole.held is None
        assert len(loaded.train) + len(loaded.held) == len(whole.train), source
        assert keys(loaded.train) | keys(loaded.held) == keys(whole.train), source
        assert not keys(loaded.held) & (keys(loaded.train) | keys(loaded.test)), source
        seen = {image.numpy().tobytes() for image in loaded.calibration(10_000)}
        assert not seen & keys(loaded.held), source
        assert loaded.chosen_by == f"{len(loaded.held)} images held out of train"


def test_the_same_images_are_held_out_whatever_the_run(here: Path) -> None:
    for source in ("digits", "user_data:many"):
        once, again = data(source), data(source, augment=False, limit=100, batch_size=7, workers=1)
        assert once.held and again.held and again.train
        assert keys(again.held) <= keys(once.held) and len(again.held) == min(100, len(once.held)), source
        assert not keys(again.train) & keys(once.held), source
        assert same(*([x for x, _ in one.held_loader(8, workers) or ()] for one, workers in ((once, 0), (once, 1))))


def test_held_out_images_are_not_varied(here: Path) -> None:
    for source in ("digits", "fake", "user_data:many"):
        loaded = data(source)
        assert loaded.held
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        first = torch.cat([images for images, _ in loaded.held_loader(9) or ()])
        torch.manual_seed(2), random.seed(2), np.random.seed(2)
        assert torch.equal(first, torch.cat([images for images, _ in loaded.held_loader(32) or ()])), source
        assert {image.numpy().tobytes() for image in first} == keys(loaded.held), source


def test_each_class_gives_its_share() -> None:
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 95 + [3] * 4 + [4])
    found = torch.bincount(labels[held_out(1000, labels, None)], minlength=5).tolist()
    assert sum(found) == 100
    assert found[:3] == pytest.approx([70, 20, 9.5], abs=1)
    assert found[3] <= 1 and found[4] == 0, "a class keeps an image to be trained on"
    assert held_out(1000, labels, None) == held_out(1000, labels, None)
    shuffled = torch.randperm(1000)
    assert torch.bincount(labels[shuffled][held_out(1000, labels[shuffled], None)], minlength=5).tolist() == found


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [
        (1_280_000, None, 5_000),
        (50_000, None, 5_000),
        (1_437, None, 143),
        (700, None, 100),
        (200, None, 40),
        (80, None, 16),
        (79, None, 0),
        (1, None, 0),
        (50_000, 0.2, 10_000),
        (20, 0.25, 5),
        (3, 0.1, 0),
    ],
)
def test_how_many_are_held_out(count: int, share: float | None, held: int) -> None:
    assert len(held_out(count, None, share)) == held
    assert len(held_out(count, torch.zeros(count, dtype=torch.long), share)) == held


def test_classes_of_one_image_are_all_trained_on() -> None:
    assert held_out(300, torch.arange(300), None) == []


def test_too_few_images_say_so(small: Path) -> None:
    loaded = data(f"folder:{small}")
    assert loaded.held is None and loaded.held_loader(8) is None and loaded.chosen_by == ""
    assert loaded.held_from == "18 training images are too few to hold any out"
    assert data(f"folder:{small}", hold_out=0).held_from == "hold_out is 0"
    assert len(data(f"folder:{small}", hold_out=0.3).held) == 5  # type: ignore[arg-type]


def test_val_beside_test_chooses_and_test_is_quoted(small: Path) -> None:
    shutil.copytree(small / "test", small / "val")
    (small / "val/dog/00.jpg").unlink()
    loaded = data(f"folder:{small}")
    assert loaded.train and loaded.held and (len(loaded.train), len(loaded.held), len(loaded.test)) == (18, 5, 6)
    assert loaded.chosen_by == "5 images of val" and "6 in test/" in loaded.description
    assert data(f"folder:{small}", hold_out=0).held is None
    assert len(data(f"folder:{small}", hold_out=0.5).held) == 9  # type: ignore[arg-type]
    shutil.rmtree(small / "val/cat")
    assert "class 'cat' is in train/ but not in val/." in refusal(lambda: data(f"folder:{small}"))


def test_val_alone_is_quoted_and_chooses_nothing(tmp_path: Path) -> None:
    loaded = data(f"folder:{write_tree(tmp_path, {'train': 50, 'val': 3}, (8, 8))}")
    assert len(loaded.test) == 6 and loaded.chosen_by == "20 images held out of train"


def test_a_test_folder_without_classes_beside_val_is_not_quoted(large: Path) -> None:
    """ImageNet's, whose labels are kept secret."""
    (large / "test").mkdir()
    shutil.copy(large / "val/cat/00.jpg", large / "test/00.jpg")
    loaded = data(f"folder:{large}")
    assert "6 in val/" in loaded.description and len(loaded.test) == 6


def test_a_users_function_may_give_val_and_tell_its_labels(here: Path) -> None:
    loaded = data("user_data:with_val")
    assert loaded.chosen_by == "4 images of val" and loaded.train is not None and len(loaded.train) == 8
    labels = [label for _, label in data("user_data:many").held]  # type: ignore[union-attr]
    assert (len(labels), sum(labels)) == (40, 10), "one in four is of class 1, as of all"
    odd = data("user_data:odd_labels").held
    assert odd is not None and odd.known_labels is None and len(odd) == 40


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: shutil.rmtree(root), "does not exist; it must hold train/CLASS"),
        (lambda root: (shutil.rmtree(root), root.write_text("")), "is not a folder"),
        (lambda root: shutil.rmtree(root / "test"), "has no val/ and no test/"),
        (lambda root: [shutil.rmtree(path) for path in (root / "test").iterdir()], "has no class folders"),
        (lambda root: [path.unlink() for path in (root / "train/cat").iterdir()], "train/cat' holds no images"),
        (lambda root: shutil.rmtree(root / "test/cat"), "class 'cat' is in train/ but not in test/."),
        (lambda root: shutil.copytree(root / "test/cat", root / "test/cow"), "class 'cow' is in test/ but not in"),
    ],
)
def test_a_folder_that_is_not_as_it_must_be_is_one_line(small: Path, spoil: Callable[[Path], Any], says: str) -> None:
    spoil(small)
    assert says in refusal(lambda: data(f"folder:{small}"))


def test_a_mistyped_folder_suggests_its_neighbour(small: Path) -> None:
    assert "Did you mean 'small'?" in refusal(lambda: data(f"folder:{small.parent / 'smal'}"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [b"", b"no image at all", None], ids=["empty", "text", "truncated"])
def test_a_damaged_image_is_one_line_also_from_a_loader_process(
    large: Path, damage: bytes | None, workers: int
) -> None:
    victim = large / "train/dog/04.jpg"
    victim.write_bytes(victim.read_bytes()[:1500] if damage is None else damage)
    loaded = data(f"folder:{large}", (3, 66, 68))
    text = refusal(lambda: epoch(loaded, workers=workers))
    assert str(victim) in text and "cannot be decoded" in text and text.count("Image ") == 1
    assert not multiprocessing.active_children(), "no loader process is left for the garbage collector"


def test_a_damaged_small_image_is_one_line(small: Path) -> None:
    victim = small / "test/dog/01.jpg"
    victim.write_bytes(b"")
    assert str(victim) in refusal(lambda: list(data(f"folder:{small}").test_loader(8)))


def test_an_epoch_that_is_broken_off_ends_its_processes(large: Path) -> None:
    loader = data(f"folder:{large}", (3, 66, 68)).train_loader(2, 0, 0, workers=1)
    for _ in loader:
        break
    assert len(list(loader)) == 9, "and it can be read again"


def test_small_images_are_decoded_once(small: Path) -> None:
    loaded = data(f"folder:{small}")
    first = epoch(loaded)
    shutil.rmtree(small)
    assert same(first, epoch(loaded))


# --- CIFAR-10 in its own files


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """A tiny CIFAR-10 in the real layout, whose checksums torchvision is told not to look at."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 3, 9, 1]}))
    names = [f"c{index}" for index in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, None] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    return rows


@pytest.mark.parametrize("inside", ["", CIFAR10.base_folder])
def test_cifar10_is_read_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    rows = write_cifar(tmp_path, monkeypatch)
    loaded = data(f"cifar10:{tmp_path / inside}")
    assert loaded.train is not None and (len(loaded.train), len(loaded.test)) == (20, 4)
    assert loaded.shape == (3, 32, 32) and loaded.classes[3] == "c3"
    image, label = loaded.test[1]
    truth = torch.from_numpy(rows[1].reshape(3, 32, 32)) / 255
    assert label == 3 and torch.allclose(image, (truth - MEAN) / STD, atol=1e-6)
    assert data(f"cifar10:{tmp_path}", (1, 16, 16)).test[0][0].shape == (1, 16, 16)


def test_cifar100_is_read_from_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (30, 3072), dtype=np.uint8)
    for name in ("train", "test"):
        (folder / name).write_bytes(
            pickle.dumps({"data": rows, "fine_labels": [7 * index % 100 for index in range(30)]})
        )
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, None]])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{index}" for index in range(100)]}))
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": None})
    loaded = data(f"cifar100:{tmp_path}")
    assert (len(loaded.test), len(loaded.classes), loaded.classes[14]) == (30, 100, "c14")
    image, label = loaded.test[2]
    assert label == 14 and torch.allclose(image, (torch.from_numpy(rows[2].reshape(3, 32, 32)) / 255 - MEAN) / STD)
    text = refusal(lambda: data(f"cifar100:{tmp_path / 'elsewhere'}"))
    assert "The files of CIFAR-100 (Python version)" in text and "not there, or damaged" in text


@pytest.mark.parametrize("write", [lambda path: None, lambda path: (path / "cifar-10-batches-py").mkdir()])
def test_cifar10_that_is_not_there_is_one_line(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    write(tmp_path)
    text = refusal(lambda: data(f"cifar10:{tmp_path}"))
    assert "cifar-10-batches-py" in text and "not there, or damaged" in text


# --- a user's function


def test_a_users_pairs_are_fed_as_they_are(here: Path) -> None:
    loaded = data("user_data:pairs")
    assert loaded.train is not None and (len(loaded.train), len(loaded.test)) == (20, 6)
    assert loaded.shape == (1, 4, 4) and loaded.classes == ("a", "b")
    assert data("user_data:only_test").train is None
    assert data("user_data:named").classes == ("cat", "dog")
    assert data("user_data:lists").classes == ("class 0", "class 1", "class 2")
    assert len(data("user_data:pairs", limit=3).test) == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wrong_key", "unknown key 'trian'. Did you mean 'train'?"),
        ("wrong_type", "returned a int, not (train, test)"),
        ("no_test", "test must be a dataset"),
        ("empty", "test must be a dataset"),
        ("arrays", "its image is ndarray"),
        ("bytes_", "its image is torch.uint8 (1, 2, 2)"),
        ("broken", "disk on fire"),
        ("pars", "Did you mean 'pairs'?"),
    ],
)
def test_a_users_function_that_gives_no_data_is_one_line(here: Path, name: str, says: str) -> None:
    assert says in refusal(lambda: data(f"user_data:{name}"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_dataset_that_fails_later_is_one_line(here: Path, workers: int) -> None:
    text = refusal(lambda: epoch(data("user_data:failing"), workers=workers))
    assert "item 3 cannot be read" in text and "KeyError: 'three'" in text
    assert "image 1 is (1, 3, 3), not (1, 2, 2)" in refusal(lambda: epoch(data("user_data:uneven"), workers=workers))


def test_a_users_images_must_have_the_networks_shape(here: Path) -> None:
    text = refusal(lambda: data("user_data:pairs", (3, 32, 32)))
    assert "(1, 4, 4)" in text and "(3, 32, 32)" in text


# --- sources that are none


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("digit", "Did you mean 'digits'?"),
        ("digits:8", "no data source 'digits:8'"),
        ("", "write digits, folder:PATH"),
        ("imagenet", "write digits, folder:PATH"),
        ("folder", "write folder:PATH"),
        ("folder:", "write folder:PATH"),
        ("cifar10", "write cifar10:PATH"),
        ("cifar:/data", "Did you mean 'cifar10'?"),
        ("foldr:images", "Did you mean 'folder'?"),
        ("no_such_module:fn", "no Python module 'no_such_module'"),
        (":fn", "write digits, folder:PATH"),
    ],
)
def test_an_unknown_source_is_one_line(here: Path, source: str, says: str) -> None:
    assert says in refusal(lambda: data(source))


def test_a_bare_path_is_told_its_prefix(small: Path) -> None:
    assert f"Did you mean 'folder:{small}'?" in refusal(lambda: data(str(small)))


def test_a_network_must_have_outputs_and_channels_for_the_images(small: Path) -> None:
    assert "10 classes, but the network only 5 outputs" in refusal(lambda: data("digits", classes=5))
    for source in ("digits", "fake", f"folder:{small}"):
        assert "takes 4" in refusal(lambda source=source: data(source, (4, 16, 16)))


def test_without_scikit_learn_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in refusal(lambda: data("digits"))


def test_a_dead_loader_process_is_one_line(here: Path) -> None:
    (here / "user_dead.py").write_text(
        "import os, torch\n"
        "class Dying(list):\n"
        "    def __getitem__(self, i):\n"
        "        return os._exit(1) if i == 5 else super().__getitem__(i)\n"
        "def pairs():\n"
        "    items = [(torch.zeros(1, 2, 2), 0)] * 6\n"
        "    return Dying(items), items\n"
    )
    assert "A loader process died" in refusal(lambda: epoch(data("user_dead:pairs"), workers=1))
