"""int8 files of a network and of what ghostify made of it, side by side: accuracy, agreement, size and speed.

    ghostify compress ghostify:resnet56 --weights FILE --data folder:FOLDER --target macs=0.4x --output runs/planned
    python benchmarks/int8.py runs/planned [runs/another …] --weights FILE --data folder:FOLDER

Each run's network and the original that they began with are written in fp32 and in int8, calibrated on training images,
and tested on the test images in the files' own runtimes.  All files take turns, on one image and (where their batch is
open) on 32, so that what else the machine does weighs on all alike; the median of the rounds' ratios is told.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import ghostify
from ghostify.exporting import Portable, Quantized, format_named, portable
from ghostify.recipe import DataSettings, ModelSettings
from ghostify.sources import build_model, load_data

BATCH = 100
"""Samples in a test batch, where a file's batch is open."""
TIMED = (1, 32)
"""Samples at a time, where a file's batch is open; else one."""


@dataclass
class Row:
    """One file, tested."""

    network: str
    precision: str
    size: int
    scores: Tensor
    runs: dict[int, Callable[[], Any]]
    """By the samples at a time."""
    quantized: Quantized | None
    ratios: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Time of the original's fp32 file over its own, round by round, by the samples at a time."""


def main() -> None:
    asked = arguments()
    data = load_data(DataSettings(source=asked.data))
    tests, labels = data.test.batch(range(0, len(data.test), len(data.test) // asked.tests))
    calibration = data.calibration(asked.images)
    networks = {"original": original(asked), **{Path(run).name: ghostify.load(run).module for run in asked.runs}}
    for name in asked.formats.split(","):
        with TemporaryDirectory() as folder:
            rows = []
            for key, network in networks.items():
                rows += files_of(key, network, name, calibration, tests, Path(folder))
            take_turns(rows, asked.rounds)
            print(table(name, rows, labels), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", help="run folders of one original network")
    parser.add_argument("--model", default="ghostify:resnet56")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, help="as in folder:PATH")
    parser.add_argument("--formats", default="onnx,openvino,executorch")
    parser.add_argument("--images", type=int, default=512, help="training images that int8 is calibrated on")
    parser.add_argument("--tests", type=int, default=10_000, help="test images, spread evenly over all")
    parser.add_argument("--rounds", type=int, default=40)
    return parser.parse_args()


def original(asked: argparse.Namespace) -> nn.Module:
    return build_model(ModelSettings(source=asked.model, weights=asked.weights))


def files_of(key: str, network: nn.Module, name: str, calibration: Tensor, tests: Tensor, folder: Path) -> list[Row]:
    """The network's file in fp32 and in int8, tested."""
    fast = ghostify.optimize(network.eval(), tests[:1]).module
    dynamic = "batch" if "batch" in format_named(name).dynamics else ""
    floats = portable(fast, tests[:1], dynamic=dynamic)
    ready, found = portable(fast, tests[:1], dynamic=dynamic, precision="int8").calibrated(calibration)
    return [tested(key, floats, None, name, tests, folder), tested(key, ready, found, name, tests, folder)]


def tested(key: str, ready: Portable, found: Quantized | None, name: str, tests: Tensor, folder: Path) -> Row:
    format = format_named(name)
    place = folder / f"{key}-{ready.precision}"
    place.mkdir()
    file = place / f"network{format.suffix}"
    format.write(ready, file)
    size = sum(one.stat().st_size for one in place.iterdir())
    run = format.open(file)
    scores = torch.cat([run(batch)[0] for batch in tests.split(BATCH if ready.dynamic else 1)])
    print(f"{name}: {key} in {ready.precision} is tested", file=sys.stderr, flush=True)
    runs: dict[int, Callable[[], Any]] = {
        count: partial(run, tests[:count]) for count in (TIMED if ready.dynamic else (1,))
    }
    return Row(key, ready.precision, size, scores, runs, found)


def take_turns(rows: list[Row], rounds: int) -> None:
    """All files in turns, ``rounds`` times; each round gives a ratio, so that load which lasts falls out of it."""
    for count in rows[0].runs:
        for row in rows:
            row.runs[count]()
        for _ in range(rounds):
            times = [timed(row.runs[count]) for row in rows]
            for row, took in zip(rows, times, strict=True):
                row.ratios[count].append(times[0] / took)


def timed(run: Callable[[], Any], calls: int = 5) -> float:
    """The shortest of some calls, in seconds."""
    took = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took)


def table(format: str, rows: list[Row], labels: Tensor) -> str:
    floats = {row.network: row for row in rows if row.precision == "fp32"}
    heads = [f"times the original's fp32, {'one image' if count == 1 else count}" for count in rows[0].runs]
    lines = [
        f"## {format}",
        "",
        f"| network | precision | accuracy | agrees with its fp32 | size | {' | '.join(heads)} |",
        f"|---|---|--:|--:|--:|{'--:|' * len(heads)}",
    ]
    for row in rows:
        right = (row.scores.argmax(1) == labels).float().mean()
        same = (row.scores.argmax(1) == floats[row.network].scores.argmax(1)).float().mean()
        cells = [row.network, row.precision, f"{right:.2%}", f"{same:.2%}", f"{row.size / 1000:,.0f} kB"]
        cells += [f"{statistics.median(ratios):.2f}x" for ratios in row.ratios.values()]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{row.network}: {row.quantized}." for row in rows if row.quantized]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
