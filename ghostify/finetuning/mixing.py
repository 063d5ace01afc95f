"""Images mixed in pairs, and their labels with them, for a network that is to be less sure of itself.

    mixup    λ x + (1 - λ) x'                       (Zhang et al., 2018)
    cutmix   x with a box of x' in it; λ is the share of x that stays       (Yun et al., 2019)

with λ ~ Beta(α, α) for a whole batch, and labels λ y + (1 - λ) y'.  The partner x' of an image is the one before it,
because batches are shuffled already.  All that is random comes of (seed, epoch, batch): nothing is drawn from a
generator that others share, so a run that goes on in the middle of an epoch mixes as one that was not stopped.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ghostify.errors import DataError
from ghostify.recipe import TrainSettings


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed: by a share, and of cutmix by where the box lies."""

    share: float
    """How much of its label an image keeps, λ."""
    box: tuple[slice, ...] = ()
    """What the partner covers in the last dimensions of an image; nothing where images are blended."""

    def images(self, images: Tensor) -> Tensor:
        """``images (N, C, ...)``, each mixed with the one before it."""
        partners = images.roll(1, 0)
        if not self.box:
            return images.lerp(partners, 1 - self.share)
        mixed = images.clone()
        inside: tuple[Any, ...] = (..., *self.box)
        mixed[inside] = partners[inside]
        return mixed

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """``labels (N,)`` as soft ones ``(N, classes)``, whose rows sum to 1."""
        own = one_hot(labels, classes).float()
        return own.lerp(own.roll(1, 0), 1 - self.share)


def mix_for(images: Any, settings: TrainSettings, seed: int, epoch: int, batch: int) -> Mix | None:
    """How the batch of this number is mixed; None where the settings ask for no mixing.

    Where both ways are asked for, each batch draws one.  Raises ``DataError`` where the images are no such tensor.
    """
    if not (settings.mixup or settings.cutmix):
        return None
    if not (isinstance(images, Tensor) and images.ndim >= 3 and images.is_floating_point()):
        raise DataError("mixup and cutmix mix images, tensors (N, C, ...) of one size; set mixup = 0 and cutmix = 0.")
    # by a hash of the text, as epochs are seeded: sums of small numbers would repeat one another
    draws = random.Random(f"mix {seed} {epoch} {batch}")
    ways = [way for way, alpha in ((_blend, settings.mixup), (_cut, settings.cutmix)) if alpha]
    way = draws.choice(ways)
    alpha = settings.mixup if way is _blend else settings.cutmix
    return way(draws.betavariate(alpha, alpha), tuple(images.shape[2:]), draws)


def _blend(share: float, size: tuple[int, ...], draws: random.Random) -> Mix:
    return Mix(share)


def _cut(share: float, size: tuple[int, ...], draws: random.Random) -> Mix:
    """A box of 1 - λ of the area around a place drawn evenly; what of it lies outside is cut off, and λ told anew."""
    part = (1 - share) ** (1 / len(size))
    box = tuple(_extent(length, part, draws) for length in size)
    covered = math.prod((side.stop - side.start) / length for side, length in zip(box, size, strict=True))
    return Mix(1 - covered, box)


def _extent(length: int, part: float, draws: random.Random) -> slice:
    centre, half = draws.randrange(length), int(length * part) // 2
    return slice(max(0, centre - half), min(length, centre + half))


def hard(labels: Tensor) -> Tensor:
    """The class that each label (a number, or a row of shares) is most of: ``(N,)`` or ``(N, classes)`` → ``(N,)``."""
    return labels if labels.ndim == 1 else torch.argmax(labels, 1)
