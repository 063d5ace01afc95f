"""Which training images are held out: the best epoch is chosen by images that are neither trained on nor tested.

The choice depends on the images alone: it is the same for every run on them, whatever its seed, its limit or its
workers, so that what one run is trained on is never what the next one is chosen by.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

SHARE = 0.1
"""Share of the training images that is held out, where no other is asked for."""
MOST = 5_000
"""More than these tell epochs apart no better, and each epoch would take longer."""
WANTED = 100
"""Of fewer images one is more than a hundredth, which is as far as epochs differ."""
SMALLEST = 16
"""With fewer images, which epoch is best would be chance."""
_PART = 5
"""At most one image in so many is held out to come to ``WANTED``."""
_PICK = 20_200_315


def held_out(count: int, labels: Tensor | None, share: float | None) -> list[int]:
    """The places, rising, of the training images that are held out; none where there are too few images.

    ``count`` is how many images there are, ``labels`` (count,) their classes, None where nobody knows; with labels
    each class gives its share, and keeps an image to be trained on.  ``share`` None means ``SHARE``, within the bounds
    above.
    """
    wanted = _wanted(count) if share is None else round(share * count)
    spare = _spare(torch.zeros(count, dtype=torch.long) if labels is None else labels)
    wanted = min(wanted, len(spare))
    if not wanted or (share is None and wanted < SMALLEST):
        return []
    # ``spare`` lies class by class, so that evenly spaced places take the same share of each
    places = (torch.arange(wanted) + 0.5) * (len(spare) / wanted)
    return spare[places.long()].sort().values.tolist()


def _wanted(count: int) -> int:
    """How many of ``count`` images are held out where nobody says so."""
    return min(MOST, max(int(SHARE * count), min(WANTED, count // _PART)))


def _spare(labels: Tensor) -> Tensor:
    """The places of all images but one of each class: class by class, shuffled within each."""
    order = torch.randperm(len(labels), generator=Generator().manual_seed(_PICK))
    order = order[labels[order].argsort(stable=True)]
    sorted_labels = labels[order]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = sorted_labels[1:] != sorted_labels[:-1]
    return order[~first]
