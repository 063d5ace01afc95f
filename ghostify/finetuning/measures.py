"""What epochs are compared by: a measure of the images held out, each counted once by however many processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from ghostify.finetuning.feeding import Feed, Pair
from ghostify.finetuning.history import TOP1
from ghostify.finetuning.losses import MinusLoss, OwnLoss
from ghostify.finetuning.renewing import renew_norms
from ghostify.finetuning.seeding import seed_all
from ghostify.finetuning.sharing import join_statistics
from ghostify.measuring import evaluate
from ghostify.processes import Processes
from ghostify.running import evaluating, training

Measure = Callable[[nn.Module, Iterable[Any]], float]
"""How good a network in eval mode is on the batches of a loader: a number, larger is better."""


def top1(model: nn.Module, loader: Iterable[Any]) -> float:
    """The share (0 to 1) of images that a classifier puts where their labels do."""
    return evaluate(model, loader).top1


def usual(own: OwnLoss | None) -> Measure | None:
    """What epochs are compared by where nobody says; nothing by a loss that runs the network itself, in train mode."""
    if own is None:
        return top1
    return None if own.whole else MinusLoss(own)


def measure_name(measure: Measure | None) -> str:
    """What a history calls it."""
    if measure is top1 or measure is None:
        return TOP1
    return getattr(measure, "label", "") or getattr(measure, "__name__", type(measure).__name__)


def measured(model: nn.Module, feed: Feed, measure: Measure) -> float | None:
    """What a measure says of the images held out, the same in every process; None where there are none.

    Processes share the images for top-1.  Another measure may look at all of them together: the first process does.
    """
    with evaluating(model), torch.no_grad():
        if measure is top1:
            return _shared_top1(model, feed)
        processes = feed.processes
        return processes.decided(lambda: _whole(model, feed, measure))


def renewed(model: nn.Module, feed: Feed, epoch: int, batches: int) -> None:
    """Count the statistics of batch norms anew, on the first training batches of an epoch.

    Each process runs some of these, and those whole: a norm in train mode looks at a batch as one, so that shares of
    batches would not give what one process counts.
    """
    with training(model):
        renew_norms(model, _own_batches(feed, epoch, batches), feed.device)
        join_statistics(model, feed.processes)


def _own_batches(feed: Feed, epoch: int, batches: int) -> Iterator[Pair]:
    """Of the first whole batches of an epoch, those that this process runs."""
    _, pairs = replace(feed, processes=Processes()).epoch(epoch)
    for number, pair in enumerate(islice(pairs, batches)):
        if pair is not None and feed.processes.share([number]):
            # by its number, because what dropout draws must not depend on who ran the batches before
            seed_all(feed.device, feed.seed, epoch, number, "renew")
            yield pair


def _whole(model: nn.Module, feed: Feed, measure: Measure) -> float | None:
    loader = feed.held(whole=True)
    return None if loader is None else float(measure(model, loader))


def _shared_top1(model: nn.Module, feed: Feed) -> float | None:
    loader = feed.held()
    if loader is None:
        return None
    found = evaluate(model, loader) if len(loader) else None
    correct, total = feed.processes.total([found.correct, found.total] if found else [0, 0])
    return correct / total
