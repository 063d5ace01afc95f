"""What recording and scanning cost: time beside a forward pass on the meta device, memory beside a real one.

    python benchmarks/scan_cost.py [--only GLOB] [--rounds 5] [--memory resnet50 densenet121 ...]

All torchvision classification and segmentation networks take turns with their own forward pass on the meta device, in
one process on one thread; medians over the rounds.  ``--memory`` runs networks on real numbers instead, each forward
pass and each scan in a process of its own, and compares the most memory they take over the model and the example.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from conformance import meta_case, networks
from fit_cost import Peak
from torch import nn

from ghostify.runtimes import pinned_threads
from ghostify.scanning import scan
from ghostify.tables import Table
from ghostify.tracing import trace

SIZE, IMAGES = 224, 16


def main() -> None:
    options = _options()
    if options.one:
        print(peak_of(*options.one))
    elif options.memory:
        print(memory_table(options.memory))
    else:
        with pinned_threads(1):
            print(time_table(options.only, options.rounds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="networks whose name matches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs="+", metavar="NETWORK", help="compare memory of these networks instead")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


# -- time ------------------------------------------------------------------------------------------------------


def time_table(only: str, rounds: int) -> Table:
    """A row for each network, those that take most forward passes first; the median in the title."""
    times = sorted(_times(only, rounds), key=lambda row: -sum(row[2:]) / row[1])
    rows = [
        [name, f"{1e3 * forward:.1f}", f"{recording / forward:.2f}", f"{reading / forward:.2f}",
         f"{(recording + reading) / forward:.2f}"]
        for name, forward, recording, reading in times
    ]  # fmt: skip
    median = statistics.median((recording + reading) / forward for _, forward, recording, reading in times)
    title = f"Scanning takes {median:.2f} forward passes on meta (median of {len(times)} networks)"
    return Table(title, ["network", "forward, ms", "trace", "scan", "both"], rows)


def _times(only: str, rounds: int) -> Iterator[tuple[str, float, float, float]]:
    for network in networks(only):
        if network.kind in ("classification", "segmentation"):
            case = meta_case(network)
            forward, recording, reading = _medians(case.model.eval(), case.example, rounds)
            yield network.name, forward, recording, reading


def _medians(model: nn.Module, example: Any, rounds: int) -> list[float]:
    """Seconds of a forward pass, of recording, and of scanning the record; the first round warms up."""
    seen = [_round(model, example) for _ in range(rounds + 1)][1:]
    return [statistics.median(times) for times in zip(*seen, strict=True)]


def _round(model: nn.Module, example: Any) -> tuple[float, float, float]:
    began = time.perf_counter()
    with torch.no_grad():
        model(example)
    ran = time.perf_counter()
    traced = trace(model, example)
    recorded = time.perf_counter()
    scan(traced)
    return ran - began, recorded - ran, time.perf_counter() - recorded


# -- memory ----------------------------------------------------------------------------------------------------


def memory_table(names: list[str]) -> Table:
    rows = []
    for name in names:
        forward, scanned = (_in_own_process(what, name) for what in ("forward", "scan"))
        rows.append([name, f"{forward / 2**20:.0f}", f"{scanned / 2**20:.0f}", f"{scanned / forward:.2f}"])
    return Table(f"Peak memory, MiB, {IMAGES} images of {SIZE} pixels", ["network", "forward", "scan", "ratio"], rows)


def _in_own_process(what: str, name: str) -> int:
    command = [sys.executable, __file__, "--one", what, name]
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is free is not held, so that it is not counted
    return int(subprocess.run(command, env=given_back, capture_output=True, text=True, check=True).stdout)


def peak_of(what: str, name: str) -> int:
    """Bytes that a forward pass or a scan takes at most, over the model and the example, in a fresh process.

    The same with one small image comes first, so that what the libraries load for it is not counted.
    """
    model = torchvision.models.get_model(name, weights=None).eval()
    example = torch.randn(IMAGES, 3, SIZE, SIZE)
    run = _forward if what == "forward" else scan
    run(model, example[:1, :, :96, :96].clone())
    with Peak() as peak:
        run(model, example)
    return peak.over


def _forward(model: nn.Module, example: torch.Tensor) -> None:
    with torch.no_grad():
        model(example)


if __name__ == "__main__":
    main()
