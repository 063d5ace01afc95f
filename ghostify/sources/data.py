"""Images to train on, to choose an epoch by and to test on, and the loaders of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from ghostify.batches import Batch
from ghostify.errors import DataError
from ghostify.inputs import Inputs
from ghostify.sources.damaged import Damaged
from ghostify.sources.images import Images
from ghostify.sources.loaders import Feeding, Loader, read_around
from ghostify.sources.preprocessing import Preprocessing
from ghostify.sources.seeding import epoch_draws, epoch_seed, in_batches, shuffled

PICK = 20_200_315  # one fixed seed for the images used by a limit and for calibration
HELD_OUT = "held out of train"


@dataclass(frozen=True)
class Data:
    """Images to train on (or none), to choose an epoch by (or none) and to test on.

    All are normalised and of one ``shape`` (C, H, W), or that of a user's first input; no image is in two of the three.
    """

    train: Images | None
    test: Images
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    name: str
    description: str
    held: Images | None = None
    """What epochs are compared by; never trained on, never calibrated with, and not what a report quotes."""
    held_from: str = ""
    """Where those come from, as in ``held out of train``; where there are none, why."""
    synthetic: bool = False
    """Whether the images are made up, so that accuracy on them says nothing about real ones."""
    preprocessing: Preprocessing | None = None
    """How images are prepared; None for what a user's function gives, which is fed as it is."""
    feeding: Feeding = field(default_factory=Feeding, compare=False)

    @property
    def held_out_of_train(self) -> bool:
        """Whether those are a part of the training images, which a network may have been trained on elsewhere."""
        return self.held_from == HELD_OUT

    @property
    def inputs(self) -> Inputs:
        """What a network is given of a sample."""
        return self.test.inputs

    @property
    def noun(self) -> str:
        """What a person calls its samples."""
        return noun_of(self.inputs)

    @property
    def has_classes(self) -> bool:
        """Whether the labels are class numbers."""
        return self.test.has_classes

    @property
    def worth_processes(self) -> bool:
        """Whether loader processes make training faster, if it waits for images."""
        return self.train is not None and self.train.quick.worth_processes

    @property
    def chosen_by(self) -> str:
        """What an epoch is chosen by, as in ``143 images held out of train``; empty where there is nothing."""
        return f"{len(self.held):,} {self.noun} {self.held_from}" if self.held is not None else ""

    def train_loader(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        workers: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> Loader:
        """Shuffled and varied batches: (n, C, H, W), (n,).  ``seed`` and ``epoch`` alone decide order and variation.

        ``batch_size`` images are what ``world`` processes train on together, so that a batch holds the same images
        however many they are; process ``rank`` gets its share of each, None of one that is too small for all to have
        one.  The loader begins at batch ``start``, and gives bit for bit what the whole epoch has from there on, with
        any number of ``workers``.  A last batch of one image is left out: batch norm cannot be trained on it.

        Raises DataError when there are no training images.
        """
        train = self._need_train("train on").quick
        draws, order = epoch_draws(len(train), seed, epoch)
        batches = in_batches(order, batch_size)
        if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
            batches.pop()
        shares = [batch[rank::world] for batch in batches[start:]]
        return Loader(train, shares, workers, epoch_seed(seed, epoch), draws, self.feeding)

    def test_loader(self, batch_size: int, workers: int = 0, *, rank: int = 0, world: int = 1) -> Loader:
        """All test images in their order, as they are: (n, C, H, W), (n,).

        ``world`` processes share them, each image once; a process gets none where there are fewer images than that.
        """
        return self._unvaried(self.test.quick, batch_size, workers, rank, world)

    def held_loader(self, batch_size: int, workers: int = 0, *, rank: int = 0, world: int = 1) -> Loader | None:
        """All images to choose an epoch by, shared as those of ``test_loader`` are; None where there are none."""
        return None if self.held is None else self._unvaried(self.held.quick, batch_size, workers, rank, world)

    def calibration(self, n: int, beyond: int = 0) -> Batch:
        """The same ``n`` training images every time, not varied: (n, C, H, W), or a batch of whatever the network is
        given, or a list of one input each where a collate of the user's makes lists; all of them where there are fewer.
        ``beyond`` so many that others have, and those again where no others are left.

        Raises DataError when there are no training images.
        """
        train = self._need_train("calibrate with")
        chosen = shuffled(len(train), PICK)
        inputs = self._read(train, chosen[beyond : beyond + n] or chosen[:n])
        return [[one] for one in inputs] if isinstance(inputs, list) else inputs

    def _read(self, images: Images, indices: list[int]) -> Batch:
        try:
            return images.batch(indices)[0]
        except Damaged:
            if not self.feeding.skips:
                raise
        batch, problems = read_around(images, indices)
        self.feeding.skipped.add(problems)
        if batch is None:
            raise DataError(f"None of {len(indices):,} samples can be read: {problems[0]}")
        return batch[0]

    def _unvaried(self, images: Images, batch_size: int, workers: int, rank: int, world: int) -> Loader:
        batches = in_batches(range(rank, len(images), world), batch_size)
        return Loader(images, batches, workers, feeding=self.feeding)

    def _need_train(self, purpose: str) -> Images:
        if self.train is None:
            raise DataError(f"Data {self.name!r} has no training images to {purpose}.")
        return self.train


def noun_of(inputs: Inputs) -> str:
    """What a person calls samples of these."""
    picture = len(inputs) == 1 and len(inputs[0].shape) == 3 and inputs[0].shape[0] in (1, 3)
    return "images" if picture else "samples"
