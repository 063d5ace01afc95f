"""The learning rate that suits a network, found by a short test on its own training images (``lr: auto``).

What was fitted stands near an optimum, and how large a rate it bears depends on what became of it: a ResNet20 of
C-Ghost modules trains best at a quarter of the rate that suits a thinned one (``docs/fitting.md``).  A range test
(Smith, 2017) tells that edge: the rate rises from step to step, by a constant factor, until training does harm.

What a step says is paired: its loss, after the steps before, less that of the same images by the network as it was, so
that it is no matter whether a batch is hard.  With differences d_k at rates r_k, g_k what had been gained before step
k, the least mean of three differences in a row (0 at first), and L the mean loss of the network as it was, the edge is

    r_j   with j the end of the smallest sum  h_0 + ... + h_j        h_k = d_k − g_k − BORNE · |L|

after which more is lost of what was gained than a share of the loss, on the whole, and not by one batch alone.  It is a
share of the loss, because what has much to learn bears, and makes good, what would undo a close fit.  (Without it edges
differed by a factor of 5 between seeds of one network, and were smallest for G-Ghost stages, which lose most and train
best at a large rate.)  The peak rate is the geometric mean of that edge and of a rate that harms nothing, and no more
than is usual,

    p = min(√(edge · SAFE · usual rate), usual rate)

because edges differ more than the best rates do.  Around this rule the best rates of twelve networks, a ResNet20 made
smaller in six ways, scatter by a factor of 1.4, for any share between 0.1 and 0.5, each with a SAFE of its own, and by
1.5 without a share (``benchmarks/rates.py``); at 0.3, edges of one network differ little between seeds.  Everything
moved is put back, bit for bit, and nothing is drawn that training would draw otherwise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, count
from statistics import fmean

import torch

from ghostify.errors import DataError
from ghostify.finetuning.engine import Engine
from ghostify.finetuning.feeding import Feed, Pair
from ghostify.recipe import TrainSettings

SAFE = 0.1
"""A rate that harms nothing, in shares of the usual one."""
BORNE = 0.3
"""What may be lost of what was gained, in shares of the loss that the network began with."""
LOWEST, HIGHEST = 1 / 40, 15.0
"""The rates that are tried, in shares of the usual one."""
STEPS = 24
"""Steps of a test, which say by which factor the rate rises: one that rises faster shows less of the harm it does."""
_IN_A_ROW = 3
"""Differences of which a mean tells what was gained: one alone may be that of an easy batch."""
_LOST, _AT_FIRST = 3.0, 3
"""So many times the loss of the first steps ends a test, because nothing is learned beyond."""


@dataclass(frozen=True)
class FoundRate:
    """What a test found: the peak rate, and how."""

    rate: float
    edge: float
    """The rate beyond which steps did harm."""
    steps: int

    harmed: bool = True
    """Whether larger rates than the edge were tried."""

    def __str__(self) -> str:
        what = f"rates above {self.edge:.2g} did harm" if self.harmed else f"no rate up to {self.edge:.2g} did harm"
        return f"Learning rate {self.rate:.2g}, found by a test of {self.steps} steps on training images: {what}."


def find_rate(engine: Engine, feed: Feed) -> FoundRate:
    """The peak rate that suits a network as it is; the network and its engine are as they were.

    All processes find the same.  Raises ``DataError`` where the data give no batch.
    """
    usual = engine.objective.settings.peak
    rates, moved, still = range_test(engine, feed)
    edge = edge_of(rates, moved, still)
    return FoundRate(peak_of(edge, usual), edge, len(moved), harmed=edge < rates[-1])


def range_test(engine: Engine, feed: Feed) -> tuple[list[float], list[float], list[float]]:
    """Rates that rise; the losses before steps at them; and those of the same batches by the network as it was.

    Of the losses there are as many as steps could be taken.
    """
    rates = tried_rates(engine.objective.settings)
    with _put_back(engine):
        moved = _losses_while_rising(engine, feed, rates)
    with _put_back(engine):
        still = [engine.losses(*batch).mean for batch in _batches(feed, len(moved))]
    return rates, moved, still


def tried_rates(settings: TrainSettings) -> list[float]:
    """The rates of a test, rising by a constant factor."""
    lowest, highest = LOWEST * settings.peak, HIGHEST * settings.peak
    return [lowest * (highest / lowest) ** (step / (STEPS - 1)) for step in range(STEPS)]


def edge_of(rates: Sequence[float], moved: Sequence[float], still: Sequence[float], share: float = BORNE) -> float:
    """The rate beyond which more was lost than is borne, on the whole; the formula is at the head.

    Of what a ``range_test`` gives, and the share of the loss that is borne.
    """
    if not moved:
        return rates[0]
    differences = [after - before for after, before in zip(moved, still, strict=True)]
    borne = share * abs(fmean(still))
    harms = (found - gain - borne for found, gain in zip(differences, _gained(differences), strict=True))
    sums = list(accumulate(harms))
    return rates[sums.index(min(sums))]


def peak_of(edge: float, usual: float) -> float:
    """The peak rate by an edge; the formula is at the head."""
    return min(math.sqrt(edge * SAFE * usual), usual)


def _gained(differences: Sequence[float]) -> Iterator[float]:
    """By step, the least mean of differences in a row before it; 0 where there were none so far."""
    least = 0.0
    for step in range(len(differences)):
        yield least
        recent = differences[max(0, step + 1 - _IN_A_ROW) : step + 1]
        least = min(least, sum(recent) / _IN_A_ROW)


def _losses_while_rising(engine: Engine, feed: Feed, rates: Sequence[float]) -> list[float]:
    """The loss before each step at rising rates, until too much is lost."""
    losses: list[float] = []
    for rate, batch in zip(rates, _batches(feed, len(rates)), strict=True):
        loss = engine.gradients(*batch).mean
        if not math.isfinite(loss):
            break
        losses.append(loss)
        usual = max(losses[:_AT_FIRST])
        if loss > usual + (_LOST - 1) * abs(usual):  # a loss of the user's may be below 0
            break
        engine.update(rate)
    return losses


def _batches(feed: Feed, steps: int) -> Iterator[tuple[Pair | None, int, int, int]]:
    """The first batches of training, as an engine takes them: with seed, epoch and step."""
    left = steps
    for epoch in count():
        total, pairs = feed.epoch(epoch)
        if not total:
            raise DataError("The training data gives no batch: there are no images, or fewer than batch_size.")
        for step, pair in enumerate(pairs):
            if not left:
                return
            left -= 1
            yield pair, feed.seed, epoch, step


@contextmanager
def _put_back(engine: Engine) -> Iterator[None]:
    """All that steps change is afterwards as it was: weights, statistics, their average, and the optimiser's state."""
    tensors = [*engine.model.parameters(), *engine.model.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]
    average = copy.deepcopy(engine.average.state()) if engine.average else None
    scaler = engine.scaler.state_dict()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, kept in zip(tensors, copies, strict=True):
                tensor.copy_(kept)
        engine.optimizer.state.clear()  # training has not begun, so there was none
        engine.optimizer.zero_grad()
        engine.scaler.load_state_dict(scaler)
        if engine.average and average is not None:
            engine.average.load(average)
