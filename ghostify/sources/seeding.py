"""Random numbers of a training epoch, all from its seed and number, so that it is the same after a resume.

Before an epoch starts, each image of the whole training set gets a row of ``DRAWS`` uniform numbers: what becomes of
image i is then told by (seed, epoch, i), whichever loader process reads it, in whichever batch, from wherever the epoch
is gone on with.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

DRAWS = 5  # vertical place, horizontal place, mirror; and the two halves of a seed for what draws by itself
_HALF = 24
"""Bits of each half: as many as a uniform float32 has."""


def epoch_seed(seed: int, epoch: int) -> int:
    """One 32-bit seed for an epoch of a run, unlike that of its neighbours."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=4).digest())


def epoch_draws(count: int, seed: int, epoch: int) -> tuple[Tensor, list[int]]:
    """The rows of ``count`` images in an epoch, (count, DRAWS), and the order in which they are trained on."""
    generator = Generator().manual_seed(epoch_seed(seed, epoch))
    draws = torch.rand(count, DRAWS, generator=generator)
    return draws, torch.randperm(count, generator=generator).tolist()


def seeds_in(draws: Tensor) -> list[int]:
    """The seed that each row of draws (n, DRAWS) holds."""
    high, low = (draws[:, -2:].double() * 2**_HALF).long().unbind(1)
    return (high * 2**_HALF + low).tolist()


def shuffled(count: int, seed: int) -> list[int]:
    """0 .. count - 1 in an order that ``seed`` alone decides."""
    return torch.randperm(count, generator=Generator().manual_seed(seed)).tolist()


def in_batches(order: Sequence[int], size: int) -> list[list[int]]:
    """``order`` cut into lists of ``size``, the last one shorter where it must be."""
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global CPU generators of torch, NumPy and Python, seeded inside and put back afterwards.

    Augmentations of torchvision and of users draw from these, and know no others.
    """
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    # NumPy takes seeds of 32 bits only
    torch.default_generator.manual_seed(seed), np.random.seed(seed % 2**32), random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])
