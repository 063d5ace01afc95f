"""Loaders that can be repeated exactly, from any batch on, and say how long they let others wait.

A loader is given its batches as lists of indices; what is random about them was drawn before (``seeding.py``), and
nothing is taken from the global generators.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ghostify.errors import DataError
from ghostify.sources.damaged import Damaged, Skipped, read_others
from ghostify.sources.images import Images


@dataclass
class Waits:
    """How long training has waited for its images, of all the time it took."""

    waited: float = 0.0
    """Seconds."""
    total: float = 0.0

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.waited / self.total if self.total else 0.0


@dataclass(frozen=True)
class Feeding:
    """How batches are read and who is told of it: what all loaders of some data share."""

    skips: bool = False
    """Whether damaged samples are left out."""
    prefetch: int = 2
    skipped: Skipped = field(default_factory=Skipped)
    waits: Waits = field(default_factory=Waits)


class _Read(NamedTuple):
    """What a loader process gives: a batch, and why samples of it are missing."""

    batch: Any
    problems: list[str]


class Loader(DataLoader[tuple[Tensor, Tensor]]):
    """Batches of (images (n, C, H, W), labels (n,)) in a given order; what goes wrong is a DataError of one line."""

    def __init__(
        self,
        images: Images,
        batches: list[list[int]],
        workers: int,
        seed: int = 0,
        draws: Tensor | None = None,
        feeding: Feeding | None = None,
    ) -> None:
        self._feeding, self._trains = feeding or Feeding(), draws is not None
        if images.left_out and not self._feeding.skips:
            raise DataError(images.left_out[0])
        self._feeding.skipped.add(images.left_out)
        workers = workers if images.worth_processes else 0
        super().__init__(
            _Batches(images, draws, self._feeding.skips),  # type: ignore[arg-type] # which __iter__ takes the batches out of
            batch_size=None,
            sampler=batches,
            collate_fn=_as_it_is,  # torch's own would make lists of tuples, and pinning does
            num_workers=workers,
            prefetch_factor=self._feeding.prefetch if workers else None,
            pin_memory=torch.cuda.is_available() and not images.structured,
            generator=Generator().manual_seed(seed),  # so that loading takes nothing from the global generator
        )

    def check_worker_number_rationality(self) -> None:
        """No advice of torch's: how many loader processes there are is the user's to say, and waiting takes no core."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        try:
            for read in self._timed(super().__iter__()):
                self._feeding.skipped.add(read.problems)
                # a process without a share of a batch must know; a test batch of which nothing is left is no batch
                if read.batch is not None or self._trains:
                    yield read.batch
        except DataError as problem:
            # Its frames hold the loader processes in a cycle; ended by the garbage collector, each takes 5 s to go.
            traceback.clear_frames(problem.__traceback__)
            raise data_error(problem) from None
        except RuntimeError as problem:
            if "DataLoader worker" not in str(problem):
                raise
            raise DataError(
                "A loader process died, often for lack of (shared) memory; use fewer workers, or 0."
            ) from None

    def _timed(self, batches: Iterator[_Read]) -> Iterator[_Read]:
        """The batches; how long each was waited for, and what was done with it took, is noted in training."""
        waits = self._feeding.waits if self._trains else Waits()
        while True:
            began = time.perf_counter()
            read = next(batches, None)
            if read is None:
                return
            came = time.perf_counter()
            yield read
            waits.waited += came - began
            waits.total += time.perf_counter() - began


class _Batches(Dataset[_Read]):
    """Whole batches by their list of indices, which is what lets them be varied and normalised at once."""

    def __init__(self, images: Images, draws: Tensor | None, skips: bool) -> None:
        self.images, self.draws, self.skips = images, draws, skips

    def __getitem__(self, indices: list[int]) -> _Read:
        """A batch; None of a share that is empty, because the batch is too small for all processes."""
        if not indices:
            return _Read(None, [])
        draws = None if self.draws is None else self.draws[torch.as_tensor(indices)]
        try:
            return _Read(self.images.batch(indices, draws), [])
        except Damaged as damage:
            if not self.skips:
                raise DataError(str(damage)) from None
        return _Read(*read_around(self.images, indices, draws))


def read_around(images: Images, indices: list[int], draws: Tensor | None = None) -> tuple[Any, list[str]]:
    """A batch without its damaged samples, or None, and why those are; in training (with ``draws``) of full size."""

    def read(present: Any, places: Any) -> Any:
        return images.batch(present, None if draws is None else draws[torch.as_tensor(places)])

    return read_others(read, indices, len(images), replace=draws is not None)


def data_error(problem: BaseException) -> DataError:
    """The one line of a DataError, also when a loader process wrapped it into its traceback."""
    marker = f"{DataError.__name__}: "
    text = str(problem)
    return DataError(text.rpartition(marker)[2].strip().partition("\n")[0])


def _as_it_is(batch: Any) -> Any:
    return batch
