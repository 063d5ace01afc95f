"""``digits``: real images that are inside a package, so that they are at hand everywhere."""

from __future__ import annotations

from dataclasses import replace

import torch

from ghostify.errors import DataError
from ghostify.sources.data import Data
from ghostify.sources.images import ArrayImages
from ghostify.sources.kinds.asked import Asked
from ghostify.sources.preprocessing import Scale


def digits(asked: Asked) -> Data:
    """Handwritten digits, 8x8.  Raises ``DataError`` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError("Data 'digits' needs scikit-learn: pip install scikit-learn.") from None
    shape = asked.shape_or((1, 16, 16))
    pixels, labels = load_digits(return_X_y=True)
    seen, unseen = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    grey = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    std, mean = (float(value) for value in torch.std_mean(grey[seen]))
    prepared = asked.preprocessing(shape, Scale(mean=(mean,) * shape[0], std=(std,) * shape[0]))
    images = ArrayImages(pixels=grey, labels=torch.tensor(labels), shape=shape, scale=prepared.scale)
    # no mirror: a mirrored 2 is not a 2
    train = replace(images.take(seen), jitter=asked.shift(max(shape[1:]) // 8, flip=False))
    about = "1,797 real 8x8 grey images of handwritten digits (scikit-learn), 1,437 to train and 360 to test"
    names = tuple("0123456789")
    return Data(train, images.take(unseen), names, shape, "digits", about, preprocessing=prepared)
