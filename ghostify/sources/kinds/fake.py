"""``fake``: images that are made up, of any shape and number of classes, to try things with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator

from ghostify.sources.data import Data
from ghostify.sources.images import ArrayImages
from ghostify.sources.kinds.asked import Asked
from ghostify.sources.preprocessing import Scale

TRAIN, TEST = 512, 128


def fake(asked: Asked) -> Data:
    """One smooth pattern per class in noise, the same every time."""
    shape, classes = asked.shape_or((3, 32, 32)), asked.classes or 10
    generator = Generator().manual_seed(0)
    labels = torch.arange(TRAIN + TEST) % classes
    patterns = torch.rand(classes, shape[0], 8, 8, generator=generator)
    noise = torch.rand(len(labels), shape[0], 8, 8, generator=generator)
    prepared = asked.preprocessing(shape, Scale(mean=(0.5,) * shape[0], std=(0.25,) * shape[0]))
    pixels = 0.6 * patterns[labels] + 0.4 * noise
    images = ArrayImages(pixels=pixels, labels=labels, shape=shape, scale=prepared.scale)
    train, test = images.take(range(TRAIN)), images.take(range(TRAIN, TRAIN + TEST))
    train = replace(train, jitter=asked.shift(4, flip=False))
    names = tuple(f"class {index}" for index in range(classes))
    about = f"synthetic images, one smooth pattern per class in noise, {TRAIN} to train and {TEST} to test"
    return Data(train, test, names, shape, "fake", about, synthetic=True, preprocessing=prepared)
