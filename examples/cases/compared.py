"""Networks of a case side by side: the trained one, runs made of it, and what Torch-Pruning makes of it.

    python compared.py tiny runs/tiny runs/tiny-width --shares 0.2,0.3

Torch-Pruning takes channels by the size of their filters: as many as leave the multiply-adds of the first run, as many
as leave its time in ONNX Runtime, and each of the ``shares``.  Its norms, where a network has any, learn again from
what the runs are fitted to.  Every network is measured in the form that runs, one input at a time, all in turns, by the
time of the processor on one thread.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch_pruning
from matplotlib import pyplot
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import ghostify
from ghostify.runtimes import runtime
from ghostify.runtimes.exporting import export

ROUNDS, FITTED = 60, 1000
NEAR = 1.01
"""What counts as no more: a hundredth above."""
LOW = 10
"""Percent, below which a name would run into the axis if it stood below its point."""
RUNTIMES = ("eager", "onnxruntime")


class Row(NamedTuple):
    """A network of the table; times are milliseconds."""

    name: str
    scores: tuple[float, ...]
    macs: int
    params: int
    megabytes: float
    eager: float
    onnxruntime: float


class Case(NamedTuple):
    """A network by name, and what it is judged by; all functions of one module."""

    module: str
    measures: tuple[tuple[str, str], ...]
    """Data and a metric each; the first data is what runs were fitted to."""
    size: tuple[int, ...]
    whole: tuple[str, ...]
    """Layers of which Torch-Pruning must be told that they keep their outputs: the network's, and sizes written out."""

    def function(self, name: str) -> Any:
        return getattr(importlib.import_module(self.module), name)


PITCHES = (("every_note", "raw_pitch_accuracy"),)
PHOTOGRAPHS = (
    ("photographs_answered", "same_answer"),
    ("photographs", "right_class"),
    ("pictures_answered", "same_answer"),
)
CASES = {
    "tiny": Case("notes", PITCHES, (1024,), ("conv6", "classifier")),
    "full": Case("notes", PITCHES, (1024,), ("conv6", "classifier")),
    "onet": Case("faces_data", (("onet_crops", "same_decisions"),), (3, 48, 48), ("dense6_1", "dense6_2", "dense6_3")),
    "rnet": Case("faces_data", (("rnet_crops", "same_decisions"),), (3, 24, 24), ("dense5_1", "dense5_2")),
    "lite0": Case("lite0_data", PHOTOGRAPHS, (3, 224, 224), ("_fc",)),
}


def pruned(network: nn.Module, example: Tensor, whole: Sequence[str], share: float) -> nn.Module:
    """A copy of which Torch-Pruning has taken a share of the channels of each layer."""
    model = copy.deepcopy(network)
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    kept = [model.get_submodule(name) for name in whole]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, example, importance, pruning_ratio=share, ignored_layers=kept, round_to=8
    )
    pruner.step()
    return model


def largest_pruned(allowed: Callable[[nn.Module], bool], but_for: Callable[[float], nn.Module]) -> nn.Module:
    """The largest of the pruned networks, each made for a share, that is allowed."""
    low, high = 0.0, 0.95
    for _ in range(7):
        share = (low + high) / 2
        low, high = (low, share) if allowed(but_for(share)) else (share, high)
    return but_for(high)


@torch.no_grad()
def with_norms_renewed(model: nn.Module, inputs: DataLoader[Any]) -> nn.Module:
    """The network, its batch norms with the statistics of some inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches count alike
        norm.train()
    for batch, _ in inputs if norms else ():
        model(batch)
    return model.eval()


@torch.no_grad()
def score(model: nn.Module, test: Any, metric: Callable[[Any, Tensor], float]) -> float:
    outputs, labels = [], []
    for batch, of_batch in DataLoader(test, batch_size=64):
        outputs.append(model(batch))
        labels.append(of_batch)
    one = isinstance(outputs[0], Tensor)
    joined = torch.cat(outputs) if one else tuple(map(torch.cat, zip(*outputs, strict=True)))
    return float(metric(joined, torch.cat(labels)))


def milliseconds(
    networks: Mapping[str, nn.Module], example: Tensor, runtimes: Sequence[str] = RUNTIMES
) -> dict[tuple[str, str], float]:
    """By network and runtime, the median time of the processor for one input."""
    sessions = {
        (name, kind): runtime(kind).session(model, (example,)) for name, model in networks.items() for kind in runtimes
    }
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for key, session in sessions.items():
                began = time.process_time()
                session()
                taken[key].append(1000 * (time.process_time() - began))
    return {key: statistics.median(times) for key, times in taken.items()}


def megabytes(model: nn.Module, example: Tensor) -> float:
    """Of the network as an ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export(model, (example,), {}, file)
        return file.stat().st_size / 1e6


def as_fast(network: nn.Module, other: nn.Module, example: Tensor) -> bool:
    """Whether a network, once it is in the form that runs, takes no longer than another in ONNX Runtime."""
    networks = {"this": ghostify.optimize(network, example).module.eval(), "other": other}
    times = milliseconds(networks, example, ("onnxruntime",))
    return times["this", "onnxruntime"] <= NEAR * times["other", "onnxruntime"]


def networks_of(case: Case, original: nn.Module, runs: Sequence[str], shares: Sequence[float]) -> dict[str, nn.Module]:
    """By what a table calls them, the networks of a case in the form that runs; the original as it was made."""
    example, train = torch.randn(1, *case.size), case.function(case.measures[0][0])()[0]
    made = {run: ghostify.optimize(ghostify.load(run)).module.eval() for run in runs}
    but_for = partial(pruned, original, example, case.whole)
    narrower = {f"pruned by {share:g}": but_for(share) for share in shares}
    if runs:
        first = made[runs[0]]
        macs = NEAR * ghostify.scan(first, example).cost.macs
        narrower["pruned, as many MACs"] = largest_pruned(
            lambda network: ghostify.scan(network, example).cost.macs <= macs, but_for
        )
        narrower["pruned, as fast"] = largest_pruned(lambda network: as_fast(network, first, example), but_for)
    some = DataLoader(Subset(train, range(min(FITTED, len(train)))), batch_size=64)
    renewed = {
        name: ghostify.optimize(with_norms_renewed(one, some), example).module.eval() for name, one in narrower.items()
    }
    return {"original": original, **made, **renewed}


def tested(data: Any) -> Any:
    """What a network is tested on, of (train, test) or of a dict."""
    return data["test"] if isinstance(data, dict) else data[1]


def rows_of(case: Case, networks: Mapping[str, nn.Module]) -> Iterator[Row]:
    example = torch.randn(1, *case.size)
    tests = [(tested(case.function(data)()), metric) for data, metric in case.measures]
    times = milliseconds(networks, example)
    for name, network in networks.items():
        cost = ghostify.scan(network, example).cost
        clock = (times[name, kind] for kind in RUNTIMES)
        scores = tuple(score(network, test, case.function(metric)) for test, metric in tests)
        yield Row(name, scores, cost.macs, cost.params, megabytes(network, example), *clock)


def main(name: str, runs: Sequence[str], shares: Sequence[float], picture: Path | None) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    networks = networks_of(case, case.function(name)().eval(), runs, shares)
    rows = list(rows_of(case, networks))
    metrics = "  ".join(metric for _, metric in case.measures)
    print(f"{name:30} {metrics}         MACs      params  ONNX file  {'  '.join(RUNTIMES)}")
    for row in rows:
        scores = "  ".join(f"{100 * score:6.2f} %" for score in row.scores)
        clock = f"{row.eager:6.2f} ms {row.onnxruntime:6.2f} ms"
        size = f"{row.macs:13,} {row.params:11,} {row.megabytes:7.2f} MB"
        print(f"{row.name:30} {scores} {size} {clock}")
    if picture:
        drawn(rows, f"{name}: {case.measures[0][1]}", picture)


def drawn(rows: Sequence[Row], title: str, file: Path) -> None:
    """Each network by its time in ONNX Runtime and its score."""
    pyplot.rcParams["svg.fonttype"] = "none"  # letters as text
    figure, axes = pyplot.subplots(figsize=(7.5, 3.6), layout="constrained")
    others = [row for row in rows if row.name.startswith("pruned")]
    ours = [row for row in rows if row not in others]
    _marked(axes, ours, "#2f6fb5")
    _marked(axes, others, "#c2572b")
    slowest = max(row.onnxruntime for row in rows)
    axes.set(xlabel="one input in ONNX Runtime, ms", ylabel="%", ylim=(0, 108), xlim=(0, 1.1 * slowest))
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _marked(axes: pyplot.Axes, rows: Sequence[Row], color: str) -> None:
    """Points with their names, by turns above and below, because networks of one time lie close together."""
    for place, row in enumerate(sorted(rows, key=lambda row: row.onnxruntime)):
        at = (row.onnxruntime, 100 * row.scores[0])
        lifted = 7 if place % 2 or at[1] < LOW else -14
        axes.plot(*at, "o", color=color)
        name = row.name.removeprefix("runs/")
        axes.annotate(name, at, (0, lifted), textcoords="offset points", ha="center", fontsize=8, color=color)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--shares", default="", help="of the channels, that Torch-Pruning is to take")
    parser.add_argument("--picture", type=Path, help="an SVG file")
    asked = parser.parse_args()
    main(asked.case, asked.runs, [float(share) for share in asked.shares.split(",") if share], asked.picture)
