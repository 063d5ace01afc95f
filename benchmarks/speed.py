"""How long ghostify itself takes, beside a plain forward pass and beside Torch-Pruning on the same networks.

    python benchmarks/speed.py [--rounds N] [--only GLOB]

Everything runs in one process on one thread and takes turns; the medians over the rounds are printed, the fastest
round, the ratio to one forward pass and to Torch-Pruning's pruning of half of the channels (its dependency graph and
one step, in place, on a copy made before the clock starts; ghostify copies within its own time).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from ghostify.planning import plan
from ghostify.rewriting import rewrite
from ghostify.runtimes import pinned_threads
from ghostify.scanning import scan
from ghostify.tracing import trace

SCANNED = ("resnet50", "densenet201")
REWRITTEN = ("resnet50", "resnet152")
TARGETS = {
    "scan resnet50": 0.3,
    "scan densenet201": 1.0,
    "rewrite resnet50": 0.5,
    "rewrite resnet152": 1.3,
}
"""Seconds on a quiet machine, one thread."""


@dataclass
class Task:
    """Something to be timed: ``prepare`` makes its argument outside the clock."""

    what: str
    network: str
    run: Callable[[Any], Any]
    prepare: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.what} {self.network}"

    def once(self) -> float:
        argument = self.prepare()
        start = time.perf_counter()
        self.run(argument)
        return time.perf_counter() - start


def tasks(example: Tensor) -> Iterator[Task]:
    """All tasks, those of one network together, so that what is compared runs close in time."""
    for network in dict.fromkeys((*SCANNED, *REWRITTEN)):
        model = models.get_model(network, weights=None).eval()
        yield Task("forward", network, lambda model: _forward(model, example), lambda model=model: model)
        if network in SCANNED:
            yield Task("scan", network, lambda model: scan(model, example), lambda model=model: model)
        if network in REWRITTEN:
            yield from _rewriting_tasks(network, model, example)


def _rewriting_tasks(network: str, model: nn.Module, example: Tensor) -> Iterator[Task]:
    def planned() -> tuple[Any, Any]:
        traced = trace(model, example)
        return traced, plan(scan(traced))

    yield Task("trace, scan, plan, rewrite", network, lambda model: convert(model, example), lambda: model)
    yield Task("rewrite", network, lambda made: rewrite(*made), planned)
    yield Task("torch-pruning", network, lambda model: prune(model, example), lambda: copy.deepcopy(model))


def convert(model: nn.Module, example: Tensor) -> nn.Module:
    """ghostify's main path, chapter by chapter."""
    traced = trace(model, example)
    return rewrite(traced, plan(scan(traced))).module


def prune(model: nn.Module, example: Tensor) -> nn.Module:
    """Torch-Pruning's main path: half of the channels, by magnitude, the classifier kept."""
    import torch_pruning

    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, example, importance, pruning_ratio=0.5, ignored_layers=[model.fc]
    )
    pruner.step()
    return model


def _forward(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        return model(example)


def take_turns(todo: list[Task], rounds: int) -> None:
    """Every task once a round; the first round warms up and is not kept."""
    for round_ in range(rounds + 1):
        for task in todo:
            seconds = task.once()
            if round_:
                task.seconds.append(seconds)
        print(f"round {round_} of {rounds}", file=sys.stderr, flush=True)


def report(todo: list[Task]) -> Iterator[str]:
    medians = {task.name: statistics.median(task.seconds) for task in todo}
    yield f"{'':40s} {'median':>9s} {'fastest':>9s} {'target':>8s} {'forwards':>9s} {'beside torch-pruning':>21s}"
    for task in todo:
        median, target = medians[task.name], TARGETS.get(task.name)
        pruning = f"{beside:.2f}x" if (beside := _over(median, medians.get(f"torch-pruning {task.network}"))) else ""
        forwards = f"{beside:.1f}" if (beside := _over(median, medians.get(f"forward {task.network}"))) else ""
        goal = f"{target:.1f} s" if target else ""
        missed = " missed" if target and median > target else ""
        times = f"{median:7.3f} s {min(task.seconds):7.3f} s"
        yield f"{task.name:40s} {times} {goal:>8s} {forwards:>9s} {pruning:>21s}{missed}"


def _over(seconds: float, base: float | None) -> float | None:
    return seconds / base if base else None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="*", metavar="GLOB", help="tasks whose name matches")
    options = parser.parse_args()
    torch.manual_seed(0)
    todo = [task for task in tasks(torch.randn(1, 3, 224, 224)) if fnmatchcase(task.name, options.only)]
    if not todo:
        parser.error(f"no task matches {options.only!r}")
    with pinned_threads(1):
        take_turns(todo, options.rounds)
    print("\n".join(report(todo)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
