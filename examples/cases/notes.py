"""What ghostify is told of the case by name: torchcrepe's networks, frames with their pitch, and the measure.

``frames.npz`` in the current folder is what ``frames.py`` makes: ``frames`` (N, 1024), ``pitch`` (N,) in Hz, ``note``
(N,), its MIDI number, and ``test`` (N,), whether a frame is kept for the test.
"""

from __future__ import annotations

import numpy as np
import torch
import torchcrepe
from torch import Tensor
from torch.utils.data import TensorDataset

NEAR = 50.0  # cents: what counts as the right pitch (Kim et al. 2018, CREPE, section 3.2)
LOWEST = 1997.3794084376191  # cents above 10 Hz: the pitch of torchcrepe's first class


def full() -> torch.nn.Module:
    """CREPE of 22 million parameters, with its trained weights."""
    return _network("full")


def tiny() -> torch.nn.Module:
    """CREPE of half a million."""
    return _network("tiny")


def _network(size: str) -> torch.nn.Module:
    torchcrepe.load.model("cpu", size)
    return torchcrepe.infer.model


def every_note() -> tuple[TensorDataset, TensorDataset]:
    """Train and test frames of every note, at different moments of it."""
    held = np.load("frames.npz")
    return _dataset(held, ~held["test"]), _dataset(held, held["test"])


def half_the_notes() -> tuple[TensorDataset, TensorDataset]:
    """Train frames of every other note, test frames of the others: what calibration never heard."""
    held = np.load("frames.npz")
    heard = np.isin(held["note"], np.unique(held["note"])[::2])
    return _dataset(held, heard & ~held["test"]), _dataset(held, ~heard & held["test"])


def tiny_hears() -> tuple[TensorDataset, TensorDataset]:
    """The frames of every note with what ``tiny`` gives for each (360,) in the place of a label: none is needed."""
    return _heard(tiny())


def full_hears() -> tuple[TensorDataset, TensorDataset]:
    """The same with what ``full`` gives."""
    return _heard(full())


@torch.no_grad()
def _heard(network: torch.nn.Module) -> tuple[TensorDataset, TensorDataset]:
    network.eval()
    train, test = (dataset.tensors[0] for dataset in every_note())
    train_heard, test_heard = (torch.cat([network(some) for some in frames.split(64)]) for frames in (train, test))
    return TensorDataset(train, train_heard), TensorDataset(test, test_heard)


def _dataset(held: np.lib.npyio.NpzFile, chosen: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(held["frames"][chosen]), torch.from_numpy(held["pitch"][chosen]))


def missed(outputs: Tensor, heard: Tensor) -> Tensor:
    """What fine-tuning lowers: the cross entropy of each class with what the original gives (N, 360)."""
    return torch.nn.functional.binary_cross_entropy(outputs, heard)


def same_pitch(outputs: Tensor, heard: Tensor) -> float:
    """The share of frames whose strongest class is within 50 cents of the original's."""
    apart = (outputs.argmax(1) - heard.argmax(1)).abs() * torchcrepe.CENTS_PER_BIN
    return float((apart < NEAR).float().mean())


def raw_pitch_accuracy(outputs: Tensor, pitch: Tensor) -> float:
    """The share of frames (N, 360) → (N,) whose strongest class lies within 50 cents of the true pitch in Hz."""
    heard = outputs.argmax(1) * torchcrepe.CENTS_PER_BIN + LOWEST
    true = 1200 * torch.log2(pitch / 10)
    return float(((heard - true).abs() < NEAR).float().mean())
