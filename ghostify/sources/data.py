"""Images by name: ``digits``, ``folder:PATH``, ``cifar10:PATH``, ``fake``, or ``package.module:function``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from ghostify.batches import Batch
from ghostify.errors import DataError, did_you_mean
from ghostify.files import near_path
from ghostify.inputs import Inputs, described, parse_inputs
from ghostify.recipe import DataSettings
from ghostify.sources.decoding import read_image
from ghostify.sources.functions import read_function
from ghostify.sources.held_out import held_out
from ghostify.sources.images import (
    DRAWS,
    LARGE,
    ArrayImages,
    FileImages,
    Images,
    Jitter,
    Loader,
    Scale,
    Shape,
    epoch_seed,
    in_batches,
    shuffled,
)
from ghostify.sources.named import reason_of

KINDS = ("digits", "folder", "cifar10", "fake")
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
IMAGENET = Scale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_GREY = Scale((0.449,), (0.226,))  # the mean of the three
_FORMS = "digits, folder:PATH, cifar10:PATH, fake, or package.module:function"
_TREE = "train/CLASS/*.jpg and val/CLASS/*.jpg (or test/CLASS/*.jpg)"
_PICK = 20_200_315  # one fixed seed for the images used by a limit and for calibration


@dataclass(frozen=True)
class Data:
    """Images to train on (or none), to choose an epoch by (or none) and to test on.

    All are normalised and of one ``shape`` (C, H, W), or that of a user's first input; no image is in two of the three.
    """

    train: Images | None
    test: Images
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    name: str
    description: str
    held: Images | None = None
    """What epochs are compared by; never trained on, never calibrated with, and not what a report quotes."""
    held_from: str = ""
    """Where those come from, as in ``held out of train``; where there are none, why."""
    synthetic: bool = False
    """Whether the images are made up, so that accuracy on them says nothing about real ones."""

    @property
    def inputs(self) -> Inputs:
        """What a network is given of a sample."""
        return self.test.inputs

    @property
    def noun(self) -> str:
        """What a person calls its samples."""
        return "images" if _are_images(self.inputs) else "samples"

    @property
    def has_classes(self) -> bool:
        """Whether the labels are class numbers."""
        return self.test.has_classes

    @property
    def chosen_by(self) -> str:
        """What an epoch is chosen by, as in ``143 images held out of train``; empty where there is nothing."""
        return f"{len(self.held):,} {self.noun} {self.held_from}" if self.held is not None else ""

    def train_loader(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        workers: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> Loader:
        """Shuffled and varied batches: (n, C, H, W), (n,).  ``seed`` and ``epoch`` alone decide order and variation.

        ``batch_size`` images are what ``world`` processes train on together, so that a batch holds the same images
        however many they are; process ``rank`` gets its share of each, None of one that is too small for all to have
        one.  The loader begins at batch ``start``, and gives bit for bit what the whole epoch has from there on, with
        any number of ``workers``.  A last batch of one image is left out: batch norm cannot be trained on it.

        Raises DataError when there are no training images.
        """
        train = self._need_train("train on").quick
        generator = Generator().manual_seed(epoch_seed(seed, epoch))
        draws = torch.rand(len(train), DRAWS, generator=generator)
        order = torch.randperm(len(train), generator=generator).tolist()
        batches = in_batches(order, batch_size)
        if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
            batches.pop()
        shares = [batch[rank::world] for batch in batches[start:]]
        return Loader(train, shares, workers, epoch_seed(seed, epoch), draws)

    def test_loader(self, batch_size: int, workers: int = 0, *, rank: int = 0, world: int = 1) -> Loader:
        """All test images in their order, as they are: (n, C, H, W), (n,).

        ``world`` processes share them, each image once; a process gets none where there are fewer images than that.
        """
        return _unvaried(self.test, batch_size, workers, rank, world)

    def held_loader(self, batch_size: int, workers: int = 0, *, rank: int = 0, world: int = 1) -> Loader | None:
        """All images to choose an epoch by, shared as those of ``test_loader`` are; None where there are none."""
        return None if self.held is None else _unvaried(self.held, batch_size, workers, rank, world)

    def calibration(self, n: int, beyond: int = 0) -> Batch:
        """The same ``n`` training images every time, not varied: (n, C, H, W), or a batch of whatever the network is
        given, or a list of one input each where a collate of the user's makes lists; all of them where there are fewer.
        ``beyond`` so many that others have, and those again where no others are left.

        Raises DataError when there are no training images.
        """
        train = self._need_train("calibrate with")
        chosen = shuffled(len(train), _PICK)
        inputs = train.batch(chosen[beyond : beyond + n] or chosen[:n])[0]
        return [[one] for one in inputs] if isinstance(inputs, list) else inputs

    def _need_train(self, purpose: str) -> Images:
        if self.train is None:
            raise DataError(f"Data {self.name!r} has no training images to {purpose}.")
        return self.train


def _unvaried(images: Images, batch_size: int, workers: int, rank: int, world: int) -> Loader:
    return Loader(images.quick, in_batches(range(rank, len(images), world), batch_size), workers)


def load_data(
    settings: DataSettings, shape: Inputs | tuple[int, ...] | None = None, classes: int | None = None
) -> Data:
    """The images that ``settings`` names, as a network wants them.

    ``shape`` is what the network takes: the shape of a sample, as in (C, H, W), or all its inputs; None lets the data
    decide.  ``classes`` is the number of the
    network's outputs, which must be enough.  Raises DataError when images cannot be found or read.
    """
    kind, colon, rest = settings.source.partition(":")
    load: Any = {"digits": _digits, "folder": _folder, "cifar10": _cifar10, "fake": _fake}.get(kind, _function)
    if (load is _function and not (kind and rest)) or (colon and kind in ("digits", "fake")):
        raise DataError(f"There is no data source {settings.source!r}; write {_FORMS}.{_near(settings.source)}")
    if load in (_folder, _cifar10) and not rest:
        raise DataError(f"Data source {settings.source!r} does not say where the images are; write {kind}:PATH.")
    inputs = None if shape is None else parse_inputs(shape)
    if load is _function:
        data = _function(settings, inputs, classes)
    else:
        data = load(settings, image_shape(inputs, settings.source), classes)
    if classes is not None and classes < len(data.classes):
        raise DataError(f"Data {data.name!r} has {len(data.classes)} classes, but the network only {classes} outputs.")
    return _limited(_with_held_out(data, settings.hold_out), settings.limit)


# --- sources: (settings, shape of the network's input, number of its outputs) -> Data


def _digits(settings: DataSettings, shape: Shape | None, classes: int | None) -> Data:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError("Data 'digits' needs scikit-learn: pip install scikit-learn.") from None
    shape = _checked("digits", shape or (1, 16, 16))
    pixels, labels = load_digits(return_X_y=True)
    seen, unseen = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    grey = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    std, mean = (float(value) for value in torch.std_mean(grey[seen]))
    scale = Scale((mean,) * shape[0], (std,) * shape[0])
    images = ArrayImages(pixels=grey, labels=torch.tensor(labels), shape=shape, scale=scale)
    # No mirror: a mirrored 2 is not a 2.
    jitter = Jitter(max(shape[1:]) // 8) if settings.augment else Jitter()
    description = "1,797 real 8x8 grey images of handwritten digits (scikit-learn), 1,437 to train and 360 to test"
    train = replace(images.take(seen), jitter=jitter)
    return Data(train, images.take(unseen), tuple("0123456789"), shape, "digits", description)


def _fake(settings: DataSettings, shape: Shape | None, classes: int | None) -> Data:
    shape, classes = _checked("fake", shape or (3, 32, 32)), classes or 10
    generator = Generator().manual_seed(0)
    labels = torch.arange(512 + 128) % classes
    patterns = torch.rand(classes, shape[0], 8, 8, generator=generator)
    noise = torch.rand(len(labels), shape[0], 8, 8, generator=generator)
    scale = Scale((0.5,) * shape[0], (0.25,) * shape[0])
    images = ArrayImages(pixels=0.6 * patterns[labels] + 0.4 * noise, labels=labels, shape=shape, scale=scale)
    train = replace(images.take(range(512)), jitter=_shift(shape, settings.augment, flip=False))
    names = tuple(f"class {index}" for index in range(classes))
    description = "synthetic images, one smooth pattern per class in noise, 512 to train and 128 to test"
    return Data(train, images.take(range(512, 640)), names, shape, "fake", description, synthetic=True)


def _cifar10(settings: DataSettings, shape: Shape | None, classes: int | None) -> Data:
    from torchvision.datasets import CIFAR10

    root = Path(settings.source.partition(":")[2]).expanduser()
    root = root.parent if root.name == CIFAR10.base_folder else root
    shape = _checked(settings.source, shape or (3, 32, 32))
    try:
        raw = [CIFAR10(root, train=train, download=False) for train in (True, False)]
    except Exception as problem:  # missing, damaged, or not readable
        reason = "not there, or damaged" if isinstance(problem, RuntimeError) else reason_of(problem)
        place = root / CIFAR10.base_folder
        raise DataError(f"The files of CIFAR-10 (Python version) in {str(place)!r}: {reason}.") from None
    train, test = (
        ArrayImages(
            pixels=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            labels=torch.tensor(part.targets),
            shape=shape,
            scale=imagenet(shape),
        )
        for part in raw
    )
    train = replace(train, jitter=_shift(shape, settings.augment, flip=True))
    description = f"CIFAR-10, {len(train):,} images to train and {len(test):,} to test"
    return Data(train, test, tuple(raw[0].classes), shape, settings.source, description)


def _folder(settings: DataSettings, shape: Shape | None, classes: int | None) -> Data:
    root = Path(settings.source.partition(":")[2]).expanduser()
    splits = _splits(root)
    test_name = list(splits)[-1]
    names = list(splits[test_name])
    _require_equal_classes(root, splits)
    shape = _checked(settings.source, shape or natural_shape(next(iter(next(iter(splits.values())).values()))[0]))
    test = _files(splits[test_name], shape)
    train = _for_training(_files(splits["train"], shape), settings.augment) if "train" in splits else None
    held = _files(splits["val"], shape) if train and test_name == "test" and "val" in splits else None
    training = f"{len(train):,} to train" if train else "none to train"
    description = f"images of {len(names)} classes in {str(root)!r}, {training} and {len(test):,} in {test_name}/"
    return Data(train, test, tuple(names), shape, settings.source, description, held, "of val" if held else "")


def _function(settings: DataSettings, inputs: Inputs | None, classes: int | None) -> Data:
    name = settings.source
    made = read_function(name, inputs, classes, KINDS)
    training = f"{len(made.train):,} to train" if made.train is not None else "none to train"
    noun = "images" if _are_images(made.test.inputs) else "samples"
    description = f"{noun} of {name}, {training} and {len(made.test):,} to test"
    found = made.test.shape
    return Data(made.train, made.test, made.classes, found, name, description, made.val, "of val" if made.val else "")


def _are_images(inputs: Inputs) -> bool:
    return len(inputs) == 1 and len(inputs[0].shape) == 3 and inputs[0].shape[0] in (1, 3)


def image_shape(inputs: Inputs | None, name: str) -> Shape | None:
    """The (C, H, W) a network takes; None where it is not known.  Raises DataError where it takes anything else."""
    if inputs is None:
        return None
    if len(inputs) > 1 or len(inputs[0].shape) != 3 or inputs[0].dtype != "float32":
        raise DataError(
            f"Data {name!r} has images (C, H, W), but the network takes {described(inputs)}; give samples of that by a "
            "function of your own: --data package.module:function."
        )
    return inputs[0].shape[0], inputs[0].shape[1], inputs[0].shape[2]


def _near(source: str) -> str:
    if Path(source).expanduser().is_dir():
        return f" Did you mean {f'folder:{source}'!r}?"
    kind = source.partition(":")[0]
    return did_you_mean(kind, KINDS)


def _checked(name: str, shape: Shape) -> Shape:
    if shape[0] not in (1, 3):
        raise DataError(f"Data {name!r} has images of 1 or 3 channels, but the network takes {shape[0]}.")
    return shape


def _with_held_out(data: Data, share: float | None) -> Data:
    """The data with images to choose an epoch by, held out of those to train where no others do that."""
    if data.train is None or (share is None and data.held is not None):
        return data
    if share == 0:
        return replace(data, held=None, held_from="hold_out is 0")
    train, count = data.train, len(data.train)
    chosen = held_out(count, train.known_labels, share)
    if not chosen:
        return replace(data, held=None, held_from=f"{count:,} training images are too few to hold any out")
    stays = torch.ones(count, dtype=torch.bool)
    stays[chosen] = False
    return replace(
        data,
        train=train.take(stays.nonzero().flatten().tolist()),
        held=train.take(chosen),
        held_from="held out of train",
        description=f"{data.description}; {len(chosen):,} of those to train are held out",
    )


def _limited(data: Data, limit: int | None) -> Data:
    """At most ``limit`` of each kind.  After images were held out: so those are the same for every limit."""
    if limit is None:
        return data
    train, held, test = (
        part and part.take(shuffled(len(part), _PICK)[:limit]) for part in (data.train, data.held, data.test)
    )
    assert test is not None
    description = f"{data.description}; at most {limit:,} of each used"
    return replace(data, train=train, held=held, test=test, description=description)


def _shift(shape: Shape, augment: bool, flip: bool) -> Jitter:
    """What suits small images: a crop after padding by 4, as the papers train on CIFAR."""
    return Jitter(4, flip) if augment else Jitter()


def imagenet(shape: Shape) -> Scale:
    return IMAGENET_GREY if shape[0] == 1 else IMAGENET


# --- a folder of images: {split: {class: files}}


def _splits(root: Path) -> dict[str, dict[str, list[str]]]:
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


def _classes(split: Path) -> dict[str, list[str]]:
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


def natural_shape(file: str) -> Shape:
    width, height = read_image(file).size
    return (3, height, width) if max(width, height) <= LARGE else (3, 224, 224)


def _files(classes: Mapping[str, Sequence[str]], shape: Shape) -> FileImages:
    files = tuple(file for members in classes.values() for file in members)
    labels = torch.tensor([label for label, members in enumerate(classes.values()) for _ in members])
    return FileImages(files=files, labels=labels, shape=shape, scale=imagenet(shape))


def _for_training(images: FileImages, augment: bool) -> FileImages:
    if max(images.shape[1:]) <= LARGE:
        return replace(images, jitter=_shift(images.shape, augment, flip=True))
    return replace(images, jitter=Jitter(flip=augment), crops=augment)
