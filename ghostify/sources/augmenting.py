"""How training images are varied: all of it told by the draws of each image (``seeding.py``).

Small images are shifted and mirrored a whole batch at a time, which is many times faster than one by one.  What is done
to one image at a time anyway (RandAugment, random resized crops) is torchvision's, seeded for each image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ghostify.sources.preprocessing import Preprocessing
from ghostify.sources.seeding import seeded, seeds_in


@dataclass(frozen=True)
class Jitter:
    """How a batch of images is varied: shifted by up to ``shift`` pixels over black, mirrored when ``flip``, and
    changed by as many operations of ``randaugment`` (Cubuk et al. 2020) at such a magnitude.
    """

    shift: int = 0
    flip: bool = False
    randaugment: tuple[int, int] | None = None

    def __call__(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """(n, C, H, W), (n, DRAWS) uniform in [0, 1) → (n, C, H, W)"""
        if self.shift:
            pixels = _shifted(pixels, self.shift, (draws[:, :2] * (2 * self.shift + 1)).long())
        if self.flip:
            pixels = torch.where((draws[:, 2] < 0.5)[:, None, None, None], pixels.flip(3), pixels)
        return pixels if self.randaugment is None else _randaugmented(pixels, self.randaugment, draws)


AS_IT_IS = Jitter()


def random_part(image: Image.Image, preprocessing: Preprocessing, seed: int) -> Image.Image:
    """A part of an image, 8 to 100 % of its area at 3:4 to 4:3, in the size that is wanted."""
    from torchvision.transforms.v2 import RandomResizedCrop

    crop = RandomResizedCrop(preprocessing.size, interpolation=preprocessing.filter)
    # another seed than that of the operations that follow
    with seeded(seed + 1):
        return crop(image)


def _randaugmented(pixels: Tensor, strength: tuple[int, int], draws: Tensor) -> Tensor:
    from torchvision.transforms.v2 import RandAugment

    vary = RandAugment(*strength)
    varied = []
    for image, seed in zip(pixels, seeds_in(draws), strict=True):
        with seeded(seed):
            varied.append(vary(image))
    return torch.stack(varied)


def _shifted(pixels: Tensor, most: int, offsets: Tensor) -> Tensor:
    """Every image moved on its own: window ``offsets`` (n, 2), each 0 .. 2 * most, of the image padded with black."""
    n, channels, height, width = pixels.shape
    rows = (offsets[:, :1] + torch.arange(height)) * (width + 2 * most)
    places = rows[:, :, None] + (offsets[:, 1:] + torch.arange(width))[:, None, :]
    padded = F.pad(pixels, (most,) * 4).flatten(2)
    return padded.gather(2, places.view(n, 1, -1).expand(-1, channels, -1)).view(n, channels, height, width)
