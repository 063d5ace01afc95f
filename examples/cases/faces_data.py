"""The detection cascade MTCNN (facenet-pytorch) as ghostify reads it: its networks, what they are fed, how they agree.

The cascade is plain Python around three small networks.  P-Net runs over a pyramid of the image and proposes boxes;
R-Net looks at each box as a crop of 24x24 pixels, and O-Net at each that is left as one of 48x48.  What the last two
are fed in earnest is recorded here from the cascade itself, on photographs of scikit-image and scikit-learn.  Of these
one shows a face only, so faces of scikit-image's subset of LFW (25x25 pixels, grey) are pasted in.  Photographs and
faces of the test are others than those of the training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy
import skimage
import sklearn
import torch
from facenet_pytorch import MTCNN
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

PHOTOS = {
    "train": ("coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "ihc.png", "china.jpg"),
    "test": ("astronaut.png", "camera.png", "hubble_deep_field.jpg", "coins.png", "moon.png", "flower.jpg"),
}
FACES = {"train": range(70), "test": range(70, 100)}
"""Places in LFW's subset: its first hundred pictures are faces, of different people."""
SCENES, PASTED, LONGEST = 8, 6, 640
"""Scenes made of each photograph, faces pasted into each scene, and pixels of its longer side."""
THRESHOLD = 0.7
"""From which probability the cascade takes a crop for a face."""


@cache
def cascade() -> MTCNN:
    """The detector with its trained weights; it gives all faces of an image."""
    return MTCNN(keep_all=True, device="cpu")


def rnet() -> nn.Module:
    """(N, 3, 24, 24) → boxes (N, 4), probabilities (N, 2)"""
    return cascade().rnet


def onet() -> nn.Module:
    """(N, 3, 48, 48) → boxes (N, 4), landmarks (N, 10), probabilities (N, 2)"""
    return cascade().onet


def photo(name: str) -> Image.Image:
    """A photograph of scikit-image, or of scikit-learn, at most ``LONGEST`` pixels long."""
    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    file = next(folder / name for folder in folders if (folder / name).is_file())
    image = Image.open(file).convert("RGB")
    image.thumbnail((LONGEST, LONGEST))
    return image


def scenes(split: str, each: int = SCENES) -> Iterator[Image.Image]:
    """Each photograph as it is, then ``each - 1`` times with faces in it, the same every time."""
    faces = numpy.load(Path(skimage.__file__).parent / "data" / "lfw_subset.npy")[FACES[split]]
    for index, name in enumerate(PHOTOS[split]):
        random = numpy.random.default_rng((index, split == "test"))
        original = photo(name)
        yield original
        for _ in range(each - 1):
            yield _with_faces(original.copy(), faces, random)


def _with_faces(image: Image.Image, faces: numpy.ndarray, random: numpy.random.Generator) -> Image.Image:
    for _ in range(PASTED):
        face = Image.fromarray(numpy.uint8(255 * faces[random.integers(len(faces))])).convert("RGB")
        size = int(random.integers(40, 140))
        left, top = random.integers(image.width - size), random.integers(image.height - size)
        image.paste(face.resize((size, size), Image.Resampling.BICUBIC), (int(left), int(top)))
    return image


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """What a network of the cascade was fed, and what it gave: (3, H, W) and all its numbers for that crop in a row."""

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs, self.outputs = inputs, outputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.outputs[index]


@cache
def crops(network: str, split: str) -> Crops:
    """Every crop that ``network`` (rnet or onet) is fed on the scenes of a split."""
    seen: list[Tensor] = []
    module = getattr(cascade(), network)
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        for scene in scenes(split):
            cascade().detect(scene)
    finally:
        hook.remove()
    inputs = torch.cat(seen)
    with torch.no_grad():
        return Crops(inputs, torch.cat(module(inputs), 1))


def rnet_crops() -> tuple[Crops, Crops]:
    """R-Net's crops, to fit with and to test with."""
    return crops("rnet", "train"), crops("rnet", "test")


def onet_crops() -> tuple[Crops, Crops]:
    """O-Net's crops, to fit with and to test with."""
    return crops("onet", "train"), crops("onet", "test")


def same_decisions(outputs: tuple[Tensor, ...], labels: Tensor) -> float:
    """The share of crops that are taken for a face, or not, as by the original."""
    return float(((outputs[-1][:, 1] > THRESHOLD) == (labels[:, -1] > THRESHOLD)).float().mean())


def missed(outputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """What fine-tuning lowers: the mean square by which boxes and landmarks, and by which log odds, are missed.

    Labels are what the original gives, so that no picture needs one.
    """
    places, probabilities = torch.cat(outputs[:-1], 1), outputs[-1]
    odds, wanted = _log_odds(probabilities[:, 1]), _log_odds(labels[:, -1])
    return (places - labels[:, :-2]).square().mean() + (odds - wanted).square().mean() / 100


def _log_odds(probability: Tensor) -> Tensor:
    # a probability of 1 has no odds, and float32 gives it often
    bounded = probability.clamp(1e-4, 1 - 1e-4)
    return (bounded / (1 - bounded)).log()


def agreement(one: MTCNN, other: MTCNN, split: str = "test") -> dict[str, float]:
    """How two cascades agree on the scenes of a split: faces found by both, by one only, and how far apart they are.

    Boxes are the same face where they overlap by half (intersection over union); ``overlap`` is its mean, and
    ``landmarks`` the mean distance of eyes, nose and mouth, in shares of the box's side.
    """
    found = [_compared(one, other, scene) for scene in scenes(split)]
    both, missing, more = (sum(column) for column in list(zip(*found, strict=True))[:3])
    overlaps = [overlap for row in found for overlap in row[3]]
    distances = [distance for row in found for distance in row[4]]
    return {
        "faces of the original": both + missing,
        "found": both,
        "missed": missing,
        "found besides": more,
        "overlap": float(numpy.mean(overlaps)),
        "landmarks": float(numpy.mean(distances)),
    }


def _compared(one: MTCNN, other: MTCNN, scene: Image.Image) -> tuple[int, int, int, list[float], list[float]]:
    boxes, _, points = one.detect(scene, landmarks=True)
    others, _, there = other.detect(scene, landmarks=True)
    if boxes is None or others is None:
        return 0, 0 if boxes is None else len(boxes), 0 if others is None else len(others), [], []
    overlaps, distances = [], []
    for box, marks in zip(boxes, points, strict=True):
        shares = [_overlap(box, candidate) for candidate in others]
        nearest = int(numpy.argmax(shares))
        if shares[nearest] >= 0.5:
            overlaps.append(shares[nearest])
            apart = numpy.linalg.norm(numpy.asarray(marks - there[nearest], dtype=float), axis=1).mean()
            distances.append(apart / math.sqrt(_area(box)))
    return len(overlaps), len(boxes) - len(overlaps), max(0, len(others) - len(overlaps)), overlaps, distances


def _area(box: numpy.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _overlap(one: numpy.ndarray, other: numpy.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, float(width)) * max(0.0, float(height))
    return common / (_area(one) + _area(other) - common)
