"""Does every network leave as a file that is the same network, in every format, and how fast and large is it there?

    python benchmarks/deployment.py --json rows.jsonl [--only 'resnet*'] [--methods 'thin;c-ghost s=4'] [--formats onnx]
    python benchmarks/deployment.py --json rows.jsonl --output docs/results/deployment.md --formats ''

Each network becomes what each method makes of it, and leaves in its inference form with an open batch size.  The file
is held to what ``ghostify.export`` asks: its outputs in its own runtime, optimised and not, at batches of 1, 2 and 7,
beside the network in eager PyTorch.  Then it takes turns with the file of the original, both in that runtime, one image
at a time, on one thread; the file of the original is held to the same.

``--json`` keeps a line for each file, and a later run does what is missing; ``--again failed`` or ``--again busy`` does
those anew that failed, or were timed while the machine had other work.  Each network and format has a process of its
own, for a runtime in C++ may take its process with it.  Weights are random (``GHOSTIFY_DATA_DIR`` names the folder of
trained ones of the CIFAR networks), and the norms' statistics those of noise, so that no layer gives next to nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import ghostify
from ghostify import Ghosted, GhostifyError, networks
from ghostify.exporting import FORMATS, Exported, format_named
from ghostify.measuring.latency import speedup

SEED = 0
SETTLING = 16
"""Samples of noise that the norms' statistics are taken from."""
BUSY = 1.5
"""A machine whose load is more than this has other work to do."""
WARM_UP, LEAST_TURNS = 3, 15

Make = Callable[[int], nn.Module]
"""A network for square images of a side."""


def torchvision(name: str, **given: Any) -> Make:
    return lambda side: models.get_model_builder(name)(weights=None, **given)


def retinanet_backbone(side: int) -> nn.Module:
    """ResNet50 and its pyramid, as in RetinaNet."""
    return resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d, returned_layers=[2, 3, 4]
    )


def vit_hybrid(side: int) -> nn.Module:
    """A transformer that reads the maps of a ResNet26."""
    import timm

    return timm.create_model("vit_small_r26_s32_224", img_size=side)


def cifar(make: Callable[[], nn.Module], file: str) -> Make:
    """A CIFAR network, with its trained weights where they are."""

    def made(side: int) -> nn.Module:
        network, folder = make(), os.environ.get("GHOSTIFY_DATA_DIR")
        if folder:
            network.load_state_dict(torch.load(Path(folder) / file, weights_only=True))
        return network

    return made


NETWORKS: dict[str, Make] = {
    "resnet18": torchvision("resnet18"),
    "resnet50": torchvision("resnet50"),
    "mobilenet_v2": torchvision("mobilenet_v2"),
    "mobilenet_v3_large": torchvision("mobilenet_v3_large"),
    "efficientnet_b0": torchvision("efficientnet_b0"),
    "regnet_x_800mf": torchvision("regnet_x_800mf"),
    "densenet121": torchvision("densenet121"),
    "convnext_tiny": torchvision("convnext_tiny"),
    "shufflenet_v2": torchvision("shufflenet_v2_x1_0"),
    "deeplabv3_resnet50": torchvision("deeplabv3_resnet50", weights_backbone=None),
    "retinanet's backbone": retinanet_backbone,
    "vit_small_r26": vit_hybrid,
    "cifar-resnet20": cifar(networks.resnet20, "resnet20-cifar10.pt"),
    "cifar-resnet56": cifar(networks.resnet56, "resnet56-cifar10.pt"),
}
ORIGINAL = "original"
METHODS: dict[str, dict[str, Any]] = {
    "c-ghost pointwise": {"cheap": "pointwise"},
    "c-ghost s=4": {"cheap": "pointwise", "s": 4},
    "c-ghost depthwise": {"cheap": "depthwise 3"},
    "c-ghost depthwise + pointwise": {"cheap": "depthwise 3 + pointwise"},
    "c-ghost norm-act": {"parts": "norm-act"},
    "thin": {"method": "thin", "width": 0.5},
    "g-ghost": {"method": "g-ghost"},
    "mixed": {"method": "mixed", "width": 0.5},
}


@dataclass(frozen=True)
class Row:
    """What became of one network by one method in one format.

    ``verdict`` is ``passed``, ``failed`` or ``unchanged`` (the method finds nothing to do); ``reason`` says why.
    ``bytes`` is the size of the file; the ``speedup`` is over the file of the original, by the clock and by the time
    that the processor spent (``cpu_speedup``), which other work disturbs less; ``load`` is how many processes wanted
    the machine before.
    """

    network: str
    method: str
    format: str
    side: int
    verdict: str
    reason: str = ""
    difference: float | None = None
    agreement: float | None = None
    bytes: int | None = None
    speedup: float | None = None
    cpu_speedup: float | None = None
    load: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, str]:
        return self.network, self.method, self.format


# -- one network in one format -------------------------------------------------------------------------------------


class Case:
    """A network on its way out in one format; the file of the original stays open beside those of its copies."""

    def __init__(self, name: str, format: str, side: int, seconds: float, folder: Path) -> None:
        torch.manual_seed(SEED)
        self.name, self.format, self.side, self.seconds, self.folder = name, format, side, seconds, folder
        self.network = settled(NETWORKS[name](side), side)
        self.example = torch.randn(1, 3, side, side)
        self.original: Path | None = None

    def row(self, method: str) -> Row:
        start, row = time.perf_counter(), partial(Row, self.name, method, self.format, self.side, load=load())
        try:
            network = self.network if method == ORIGINAL else self.converted(method)
        except GhostifyError as problem:
            return row("unchanged", str(problem))
        try:
            found = self.exported(network, method)
            return row("passed", **figures(found), **self.speed(found), seconds=time.perf_counter() - start)
        except Exception as problem:  # of an exporter or a runtime, any
            return row("failed", f"{type(problem).__name__}: {problem}", seconds=time.perf_counter() - start)

    def converted(self, method: str) -> Ghosted:
        return ghostify.convert(self.network, self.example, **METHODS[method])

    def exported(self, network: nn.Module | Ghosted, method: str) -> Exported:
        format = format_named(self.format)
        dynamic = "batch" if "batch" in format.dynamics else ""
        file = self.folder / f"{method.replace(' ', '-')}{format.suffix}"
        found = ghostify.export(network, file, to=self.format, example=self.example, dynamic=dynamic)
        if method == ORIGINAL:
            self.original = found.file
        return found

    def speed(self, found: Exported) -> dict[str, float]:
        """How much faster than the file of the original, where there is one."""
        if self.original is None or found.file == self.original:
            return {}
        format = format_named(self.format)
        files = {"original": self.original, "rewritten": found.file}
        sessions = {name: partial(format.open(file), self.example) for name, file in files.items()}
        wall, cpu = in_turns(sessions, self.seconds)
        return {
            "speedup": speedup(wall["original"], wall["rewritten"]),
            "cpu_speedup": speedup(cpu["original"], cpu["rewritten"]),
        }


Times = dict[str, list[float]]


def in_turns(sessions: dict[str, Callable[[], Any]], seconds: float) -> tuple[Times, Times]:
    """How long each call takes by the clock, and of the processor's time, in turns after a warm-up."""
    wall: Times = {name: [] for name in sessions}
    cpu: Times = {name: [] for name in sessions}
    begin, turns = time.perf_counter(), 0
    while turns < LEAST_TURNS or time.perf_counter() < begin + seconds:
        for name, session in sessions.items():
            before = time.perf_counter(), time.process_time()
            session()
            if turns >= WARM_UP:
                wall[name].append(time.perf_counter() - before[0])
                cpu[name].append(time.process_time() - before[1])
        turns += 1
    return wall, cpu


def settled(network: nn.Module, side: int) -> nn.Module:
    """The network in eval mode, its norms' statistics those of noise; as it is where it has any that are trained."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if all(not norm.running_mean.any() for norm in norms):
        for norm in norms:
            norm.momentum = None  # a mean over all batches, of which there is one
        with torch.no_grad():
            network.train()(torch.randn(SETTLING, 3, side, side))
    return network.eval()


def figures(found: Exported) -> dict[str, Any]:
    return {"difference": found.parity.worst, "agreement": found.parity.agreement, "bytes": found.bytes}


def load() -> float:
    return os.getloadavg()[0]


def one(name: str, format: str, methods: list[str], options: argparse.Namespace) -> None:
    """Print the rows of one network and format as lines of JSON."""
    warnings.simplefilter("ignore")  # of exporters, for who keeps the file
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(name, format, options.side, options.seconds, Path(folder))
        for method in (ORIGINAL, *methods):
            print("\n" + json.dumps(asdict(case.row(method))), flush=True)


# -- all of them ---------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[tuple[str, str, str], Row]:
    """The rows there are, the newest of each file."""
    if not path.exists():
        return {}
    rows = (Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return {row.key: row for row in rows}


def wanted(rows: dict[tuple[str, str, str], Row], name: str, format: str, options: argparse.Namespace) -> list[str]:
    """The methods that are to be done for one network and format."""
    names = [ORIGINAL, *(options.methods.split(";") if options.methods else METHODS)]
    return [method for method in names if is_missing(rows.get((name, method, format)), options)]


def is_missing(row: Row | None, options: argparse.Namespace) -> bool:
    if row is None or row.side != options.side:
        return True
    again = {"failed": row.verdict == "failed", "busy": row.load > BUSY and row.speedup is not None}
    return again.get(options.again, False)


def measured(name: str, format: str, methods: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """Rows as a process of their own gives them; what is missing when it is gone failed."""
    command = [sys.executable, __file__, "--one", f"{name}:{format}", "--methods", ";".join(methods)]
    command += ["--side", str(options.side), "--seconds", str(options.seconds)]
    left = list(methods)
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"network"'):
                    row = Row(**json.loads(line))
                    left = [method for method in left if method != row.method]
                    if row.method in methods:
                        yield row
        if left:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            reason = f"its process ended with {process.returncode}: {last}"
            yield Row(name, left[0], format, options.side, "failed", reason)


def everything(options: argparse.Namespace) -> dict[tuple[str, str, str], Row]:
    rows = read(options.json)
    for format in filter(None, options.formats.split(",")):
        for name in (name for name in NETWORKS if fnmatchcase(name, options.only)):
            methods = wanted(rows, name, format, options)
            for row in measured(name, format, methods, options) if methods else ():
                rows[row.key] = row
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
                print(told(row), flush=True)
    return rows


def told(row: Row) -> str:
    return f"{row.network} | {row.method} | {row.format} | {cell(row)} | {row.seconds:.0f} s {row.reason}"


# -- the page ------------------------------------------------------------------------------------------------------


HEAD = """\
# Files beside their networks

Each network as it is and as each method makes it, in its inference form, written to each format and compared with the
network in eager PyTorch: [what is checked](../deployment.md#what-is-checked). A cell has the speed-up over the file of
the original in the same runtime (one image, one thread, in turns), the size of the file, and the largest difference of
all runs. Speed-ups with a ~ were taken while the machine had other work, and are ratios of the processor's time.
Images are of {sides}: what is right does not depend on that, and speed-ups do. Empty cells were not run yet.

    python benchmarks/deployment.py --json rows.jsonl --output docs/results/deployment.md
"""
"""What the page says above its table."""


def page(rows: dict[tuple[str, str, str], Row]) -> str:
    tried = [row for row in rows.values() if row.verdict != "unchanged"]
    failed = [row for row in tried if row.verdict == "failed"]
    formats = [name for name in FORMATS if any(row.format == name for row in rows.values())]
    sides = ", ".join(f"{side}x{side}" for side in sorted({row.side for row in tried}))
    lines = [
        HEAD.format(sides=sides),
        f"{len(tried) - len(failed)} of {len(tried)} files ({1 - len(failed) / max(1, len(tried)):.1%}) pass.",
        "",
        f"| network | method | {' | '.join(formats)} |",
        f"|---|---|{'---|' * len(formats)}",
        *(line for name in NETWORKS for line in lines_of(rows, name, formats)),
        "",
        *(f"- {row.network}, {row.method}, {row.format}: {row.reason}" for row in failed),
    ]
    return "\n".join(lines).rstrip() + "\n"


def lines_of(rows: dict[tuple[str, str, str], Row], name: str, formats: list[str]) -> Iterator[str]:
    for method in (ORIGINAL, *METHODS):
        found = [rows.get((name, method, format)) for format in formats]
        if any(row is not None and row.verdict != "unchanged" for row in found):
            yield f"| {name} | {method} | {' | '.join('' if row is None else cell(row) for row in found)} |"


def cell(row: Row) -> str:
    """Speed-up, size and the largest difference, or what else there is to say."""
    if row.verdict != "passed" or row.difference is None or row.bytes is None:
        return row.verdict
    return ", ".join(filter(None, [faster(row), f"{row.bytes / 1e6:.1f} MB", f"{row.difference:.0e}"]))


def faster(row: Row) -> str:
    """The speed-up: on a busy machine that of the processor's time, and marked."""
    if row.load > BUSY:
        return f"~{row.cpu_speedup:.2f}x" if row.cpu_speedup is not None else ""
    return f"{row.speedup:.2f}x" if row.speedup is not None else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="networks, of " + ", ".join(NETWORKS))
    parser.add_argument("--methods", default="", help="with semicolons, of " + "; ".join(METHODS))
    parser.add_argument("--formats", default=",".join(FORMATS), help="with commas, of " + ", ".join(FORMATS))
    parser.add_argument("--side", type=int, default=64, help="of the square images")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing, for each file")
    parser.add_argument("--again", choices=("failed", "busy"), help="do these anew")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=Path("deployment.jsonl"), help="where rows are kept"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table to this page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, _, format = options.one.rpartition(":")
        one(name, format, [method for method in options.methods.split(";") if method != ORIGINAL], options)
        return 0
    rows = everything(options)
    if options.output:
        options.output.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
