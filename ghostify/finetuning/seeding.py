"""Random states as a function of where training stands, so that nothing of them must be saved."""

from __future__ import annotations

import random

import numpy
import torch


def seed_all(device: torch.device, *position: int | str) -> None:
    """Start all random states anew from a position, as (seed, epoch, step), far apart for neighbouring ones.

    Not by ``torch.manual_seed``: it seeds all devices, also those whose state nobody here puts back.
    """
    # by a hash of the text: seed + epoch would give epoch 1 of seed 0 the numbers of epoch 0 of seed 1
    number = random.Random(" ".join(map(str, position))).getrandbits(63)
    random.seed(number)
    numpy.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
