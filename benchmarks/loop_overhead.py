"""What the training loop costs beside a minimal one written by hand, and what a teacher adds to a step.

Three trainings of one network on the same batches take turns in one process, an epoch each, and are compared by their
CPU time: the bare loop (forward, loss, backward, step), ``finetune`` (which checks, seeds, counts and tells each step),
and ``finetune`` with a teacher of the same size.  Told are the medians of the ratios within a turn.

    python benchmarks/loop_overhead.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ghostify.finetuning import finetune
from ghostify.recipe import ModelSettings, TrainSettings
from ghostify.sources import build_model

Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class Batches:
    """The same batches in every epoch, in memory, so that nothing but the loop is timed."""

    pairs: Pairs

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int, *, start: int = 0) -> Any:
        return self.pairs[start:]

    def held_loader(self, batch_size: int, workers: int) -> None:
        return None


def by_hand(model: nn.Module, pairs: Pairs) -> None:
    """What a person writes first: nothing is checked, counted or kept."""
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, nesterov=True, weight_decay=5e-4)
    model.train()
    for images, labels in pairs:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()


def by_ghostify(model: nn.Module, pairs: Pairs, teacher: nn.Module | None = None) -> None:
    # maps lie as they do in the loop by hand; what another layout saves is told by layout.py
    settings = TrainSettings(epochs=1, lr=0.02, distill=0.5 if teacher else 0.0, channels_last=False)
    finetune(model, Batches(pairs), settings, teacher=teacher)


def seconds(way: Callable[[nn.Module, Pairs], None], network: nn.Module, pairs: Pairs) -> float:
    """CPU time of a training of a copy of a network."""
    model = copy.deepcopy(network)
    began = time.process_time()
    way(model, pairs)
    return time.process_time() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="ghostify.networks:resnet20")
    options.add_argument("--size", type=int, default=32)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--turns", type=int, default=11)
    args = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_model(ModelSettings(source=args.model))
    shape = (args.batch, 3, args.size, args.size)
    pairs = [(torch.randn(shape), torch.randint(10, (args.batch,))) for _ in range(args.steps)]
    teacher = copy.deepcopy(network)
    ways: dict[str, Callable[[nn.Module, Pairs], None]] = {
        "by hand": by_hand,
        "finetune": by_ghostify,
        "distilled": lambda model, pairs: by_ghostify(model, pairs, teacher),
    }
    for way in ways.values():
        way(copy.deepcopy(network), pairs[:2])  # what is imported or chosen at a first run is no part of a step
    turns = [{name: seconds(way, network, pairs) for name, way in ways.items()} for _ in range(args.turns)]
    step = 1000 * statistics.median(turn["by hand"] for turn in turns) / args.steps
    print(f"{args.model}, {args.batch} images of {args.size}x{args.size}, one thread: {step:.1f} ms a step by hand")
    for name, beside in (("finetune", "by hand"), ("distilled", "finetune")):
        ratios = sorted(turn[name] / turn[beside] for turn in turns)
        print(f"{name} beside {beside}: {statistics.median(ratios):.3f}x ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
