"""The batches of an epoch, from any step on: the share of them that this process trains on.

Data that can begin at a batch, and share it among processes, do so themselves (``start``, ``rank`` and ``world`` of
``TrainingData.train_loader``).  Of others the batches before are read and thrown away, and each process takes its part
of a whole batch.  All random states are set before a loader is made, and before each batch is asked of it, so that what
is drawn for a batch does not depend on whether the ones before it were trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from ghostify.batches import Batch, take
from ghostify.errors import DataError
from ghostify.finetuning.seeding import seed_all
from ghostify.measuring.accuracy import images_and_labels, samples_in
from ghostify.processes import Processes

Pair = tuple[Batch, Any]
"""Inputs and labels."""


class TrainingData(Protocol):
    """Images to train on and to choose an epoch by.  Loaders give ``(images (N, C, H, W), labels (N,))``.

    The training loader of an epoch depends on its arguments alone, and has as many batches in every epoch.  Where it
    takes ``start``, ``rank`` and ``world`` as well, it begins at that batch and gives this process's share of each,
    ``None`` where there is none for it; ``held_loader`` may take the last two.
    """

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        """Shuffled, augmented batches of one epoch, counted from 0."""

    def held_loader(self, batch_size: int, workers: int) -> DataLoader[Any] | None:
        """Images that are not trained on, the same in every epoch, each once; None where there are none."""


@dataclass(frozen=True)
class Feed:
    """Training data as one process of some is fed with them."""

    data: TrainingData
    batch_size: int
    """Images of a batch, of all processes together."""
    seed: int
    workers: int
    device: torch.device
    processes: Processes

    def epoch(self, number: int, start: int = 0) -> tuple[int, Iterator[Pair | None]]:
        """How many batches an epoch has, and those from ``start`` on; None in place of an empty share.

        Raises ``DataError`` where the data do not say how many there are, or give none.
        """
        seed_all(self.device, self.seed, number)
        own = {"start": start, "rank": self.processes.rank, "world": self.processes.world}
        known = accepted(self.data.train_loader, own)
        loader = self.data.train_loader(self.batch_size, self.seed, number, self.workers, **known)
        passed = start if "start" in known else 0
        total = _length(loader) + passed
        batches = self._from(loader, number, passed, start)
        return total, batches if "rank" in known else map(self._share, batches)

    def held(self, whole: bool = False) -> DataLoader[Any] | None:
        """A loader of the images held out: this process's share of them, or the ``whole``; None where there are none.

        Of data that cannot be shared the first process has all, and the others have none.
        """
        wanted = {} if whole else {"rank": self.processes.rank, "world": self.processes.world}
        known = accepted(self.data.held_loader, wanted)
        loader = self.data.held_loader(self.batch_size, self.workers, **known)
        if whole or known or self.processes.first or loader is None:
            return loader
        none: Any = []
        return DataLoader(none)

    def example(self, samples: int) -> Batch:
        """The first training samples, by which networks are looked at; the same in every process.

        Raises ``DataError`` where there are none.
        """
        _, pairs = replace(self, processes=Processes()).epoch(0)
        pair = next(iter(pairs), None)
        if pair is None:
            raise DataError("The training data gives no batch: there are no images, or fewer than batch_size.")
        return take(pair[0], slice(samples))

    def _from(self, loader: Iterable[Any], epoch: int, first: int, start: int) -> Iterator[Pair | None]:
        """The batches of a loader whose first one has the number ``first``, without those before ``start``."""
        seed_all(self.device, self.seed, epoch)
        batches = iter(loader)
        number = first
        while True:
            seed_all(self.device, self.seed, epoch, number, "load")
            try:
                batch = next(batches)
            except StopIteration:
                return
            if number >= start:
                yield None if batch is None else images_and_labels(batch)
            number += 1

    def _share(self, pair: Pair | None) -> Pair | None:
        """The part of a whole batch that this process trains on."""
        if pair is None or self.processes.world == 1:
            return pair
        rank, world = self.processes.rank, self.processes.world
        found = part(pair, slice(rank, None, world))
        return found if samples_in(*found) else None


def accepted(function: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Those of some arguments that a function takes by name."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in wanted.items() if name in known}


def part(pair: Pair, rows: slice) -> Pair:
    """Some samples of a batch; of inputs or labels in a list, one entry each, the list's."""
    inputs, labels = (side[rows] if isinstance(side, list) else take(side, rows) for side in pair)
    return inputs, labels


def parts(pair: Pair, size: int) -> Iterator[Pair]:
    """A batch in parts of at most ``size`` samples, as equal as they can be."""
    samples = samples_in(*pair)
    count = max(1, -(-samples // size))
    for number in range(count):
        yield part(pair, slice(number * samples // count, (number + 1) * samples // count)) if count > 1 else pair


def _length(loader: Any) -> int:
    try:
        batches = len(loader)
    except TypeError:
        raise DataError("The training data does not say how many batches it holds; it needs a length.") from None
    return batches
