"""A small training task, and small networks that learn it: what the tests of training share."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ghostify.finetuning import Epoch, History, Step, finetune
from ghostify.recipe import TrainSettings

SETTINGS = TrainSettings(epochs=3, lr=0.1, warmup=0.2)


class Jittered(Dataset[tuple[Tensor, Tensor]]):
    """Images with noise from the global generators, as an augmentation by a user's own function may draw it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shift = random.random() + float(numpy.random.rand())
        return self.images[index] + 0.1 * torch.randn(3, 4, 4) + 0.01 * shift, self.labels[index]


@dataclass
class Blobs:
    """Images whose mean colour is their class."""

    n: int = 48
    labels: int = 3

    def _tensors(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % self.labels
        images = torch.randn(n, 3, 4, 4, generator=generator)
        return images + 2 * nn.functional.one_hot(labels, max(3, self.labels))[:, :3, None, None], labels

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        return DataLoader(Jittered(*self._tensors(self.n, 0)), batch_size, shuffle=True, num_workers=workers)

    def held_loader(self, batch_size: int, workers: int) -> DataLoader[Any] | None:
        return DataLoader(TensorDataset(*self._tensors(30, 1)), batch_size, num_workers=workers)


@dataclass
class Watcher:
    """Writes down what it is told, and interrupts after an epoch when asked to."""

    stop_after: int | None = None
    told: list[Any] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.told.append(text)

    def start(self, total_steps: int, title: str) -> None:
        self.told.append(("start", total_steps))

    def step(self, step: Step) -> None:
        self.told.append("step")

    def epoch(self, epoch: Epoch, history: History) -> None:
        self.told.append(("epoch", epoch.epoch))
        if epoch.epoch == self.stop_after:
            raise KeyboardInterrupt

    def done(self) -> None:
        self.told.append("done")


class Tied(nn.Module):
    """One convolution registered twice, its weight stored as a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.first = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.first.weight = nn.Parameter(torch.randn(6, 6, 3, 3).transpose(0, 1) * 0.1)
        self.second = self.first
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(self.stem(x)).relu())).relu().mean((2, 3))
        return torch.as_tensor(self.head(x))


class Small(nn.Module):
    """A convolution, its norm, some dropout, and a classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))))


def net(seed: int = 0, classes: int = 3) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small(classes)


def held_images() -> DataLoader[Any]:
    loader = Blobs().held_loader(16, 0)
    assert loader is not None
    return loader


def train(model: nn.Module, settings: TrainSettings = SETTINGS, **options: Any) -> History:
    return finetune(model, options.pop("data", Blobs()), settings, batch_size=16, **options)


def stopped(model: nn.Module, folder: Path, after: int, settings: TrainSettings = SETTINGS, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(model, settings, checkpoint=folder, progress=Watcher(stop_after=after), **options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def results(history: History) -> list[dict[str, Any]]:
    return [epoch.model_dump(exclude={"seconds", "throughput"}) for epoch in history.epochs]


class Unheld(Blobs):
    """Blobs of which none are held out, so that the last epoch is kept."""

    def held_loader(self, batch_size: int, workers: int) -> None:
        return None


def near(one: nn.Module, other: nn.Module) -> bool:
    """Whether the weights of two networks are the same up to rounding."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)
