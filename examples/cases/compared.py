"""Networks of a case side by side: the trained one, runs made of it, and what Torch-Pruning makes of it.

    python compared.py tiny runs/tiny runs/tiny-width --shares 0.2,0.3

Torch-Pruning takes channels by the size of their filters: as many as leave the multiply-adds of the first run, and each
of the ``shares``.  Its norms, where a network has any, learn again from what the runs are fitted to.  Every network is
measured in the form that runs, one input at a time, all in turns, by the time of the processor on one thread.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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
RUNTIMES = ("eager", "onnxruntime")


class Row(NamedTuple):
    """A network of the table; times are milliseconds."""

    name: str
    score: float
    macs: int
    params: int
    megabytes: float
    eager: float
    onnxruntime: float


class Case(NamedTuple):
    """A network by name, and what it is judged by; all functions of one module."""

    module: str
    data: str
    metric: str
    size: tuple[int, ...]
    whole: tuple[str, ...]
    """Layers of which Torch-Pruning must be told that they keep their outputs: the network's, and sizes written out."""

    def function(self, name: str) -> Any:
        return getattr(importlib.import_module(self.module), name)


CASES = {
    "tiny": Case("notes", "every_note", "raw_pitch_accuracy", (1024,), ("conv6", "classifier")),
    "full": Case("notes", "every_note", "raw_pitch_accuracy", (1024,), ("conv6", "classifier")),
    "onet": Case("faces_data", "onet_crops", "same_decisions", (3, 48, 48), ("dense6_1", "dense6_2", "dense6_3")),
    "rnet": Case("faces_data", "rnet_crops", "same_decisions", (3, 24, 24), ("dense5_1", "dense5_2")),
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


def pruned_to(network: nn.Module, example: Tensor, whole: Sequence[str], macs: int) -> nn.Module:
    """The largest of the pruned networks that needs as many multiply-adds, or at most one in a hundred more."""
    low, high = 0.0, 0.95
    for _ in range(7):
        share = (low + high) / 2
        found = ghostify.scan(pruned(network, example, whole, share), example).cost.macs
        low, high = (share, high) if found > 1.01 * macs else (low, share)
    return pruned(network, example, whole, high)


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
def score(model: nn.Module, case: Case, test: Any) -> float:
    inputs, labels = next(iter(DataLoader(test, batch_size=len(test))))
    outputs = [model(batch) for batch in inputs.split(64)]
    one = isinstance(outputs[0], Tensor)
    joined = torch.cat(outputs) if one else tuple(map(torch.cat, zip(*outputs, strict=True)))
    return float(case.function(case.metric)(joined, labels))


def milliseconds(networks: Mapping[str, nn.Module], example: Tensor) -> dict[tuple[str, str], float]:
    """By network and runtime, the median time of the processor for one input."""
    sessions = {
        (name, kind): runtime(kind).session(model, (example,)) for name, model in networks.items() for kind in RUNTIMES
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


def networks_of(case: Case, original: nn.Module, runs: Sequence[str], shares: Sequence[float]) -> dict[str, nn.Module]:
    """By what a table calls them, the networks of a case in the form that runs; the original as it was made."""
    example, train = torch.randn(1, *case.size), case.function(case.data)()[0]
    loaded = {run: ghostify.load(run) for run in runs}
    narrower = {f"pruned by {share:g}": pruned(original, example, case.whole, share) for share in shares}
    if runs:
        macs = ghostify.scan(loaded[runs[0]].module, example).cost.macs
        narrower["pruned, MACs of the first run"] = pruned_to(original, example, case.whole, macs)
    some = DataLoader(Subset(train, range(min(FITTED, len(train)))), batch_size=64)
    return (
        {"original": original}
        | {run: ghostify.optimize(one).module.eval() for run, one in loaded.items()}
        | {
            name: ghostify.optimize(with_norms_renewed(one, some), example).module.eval()
            for name, one in narrower.items()
        }
    )


def rows_of(case: Case, networks: Mapping[str, nn.Module]) -> Iterator[Row]:
    example, test = torch.randn(1, *case.size), case.function(case.data)()[1]
    times = milliseconds(networks, example)
    for name, network in networks.items():
        cost = ghostify.scan(network, example).cost
        clock = (times[name, kind] for kind in RUNTIMES)
        yield Row(name, score(network, case, test), cost.macs, cost.params, megabytes(network, example), *clock)


def main(name: str, runs: Sequence[str], shares: Sequence[float], picture: Path | None) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    networks = networks_of(case, case.function(name)().eval(), runs, shares)
    rows = list(rows_of(case, networks))
    print(f"{name:30} {case.metric:>18}         MACs      params  ONNX file  {'  '.join(RUNTIMES)}")
    for row in rows:
        clock = f"{row.eager:6.2f} ms {row.onnxruntime:6.2f} ms"
        size = f"{row.macs:13,} {row.params:11,} {row.megabytes:7.2f} MB"
        print(f"{row.name:30} {100 * row.score:16.2f} % {size} {clock}")
    if picture:
        drawn(rows, f"{name}: {case.metric}", picture)


def drawn(rows: Sequence[Row], title: str, file: Path) -> None:
    """Each network by its time in ONNX Runtime and its score."""
    pyplot.rcParams["svg.fonttype"] = "none"  # letters as text
    figure, axes = pyplot.subplots(figsize=(7.5, 3.6), layout="constrained")
    for row in rows:
        marker = "s" if row.name.startswith("pruned") else "o"
        axes.plot(row.onnxruntime, 100 * row.score, marker, label=row.name.removeprefix("runs/"))
    axes.set(xlabel="one input in ONNX Runtime, ms", ylabel="%", title=title, ylim=(0, 105), xlim=(0, None))
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--shares", default="", help="of the channels, that Torch-Pruning is to take")
    parser.add_argument("--picture", type=Path, help="an SVG file")
    asked = parser.parse_args()
    main(asked.case, asked.runs, [float(share) for share in asked.shares.split(",") if share], asked.picture)
