"""What does a plan under a budget keep, beside uniform settings of as many MACs; and is the time met that is asked?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt, resnet56-cifar10.pt> \\
    python benchmarks/budget.py --data <folder with train/CLASS and test/CLASS>
        [--networks resnet20 resnet56] [--targets 0.526 0.4 0.333] [--others c-ghost thin mixed torch-pruning]
        [--images 512] [--skip 0] [--limit N] [--threads 1]
    python benchmarks/budget.py --latency 0.5 [--model resnet50] [--runtimes onnxruntime openvino] [--batch 1]
        [--threads 1]

The first form converts trained networks for each target of MACs and tests them on all test images as they are, with no
training; harm is measured once for all targets of a network.  Three harms are told of a plan: predicted before any
network was built, predicted with what networks of one kind of swap taught (``ghostify/budget/trying.py``), and
measured.  ``c-ghost`` has the smallest ratio s for all layers that meets the target, ``thin`` one width for all blocks,
``mixed`` settings by stage (``fitting.py``), ``torch-pruning`` one ratio for all layers.  ``--skip`` takes other
calibration images: those behind so many.

The second form plans a network of random weights, whose time is that of any, for a latency, and tells what the first
plan was predicted and took, what the last one was and took, and how much of the theory (MACs) that is.  Planning is
timed twice: the second time, all pieces are known.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from fitting import METHODS, Fit, Subject, converted, percent, say
from torch import Tensor

import ghostify
from ghostify.budget.choosing import Choosing
from ghostify.budget.preparing import prepared
from ghostify.budget.trying import tried
from ghostify.clock import Place
from ghostify.errors import GhostifyError
from ghostify.fitting import fitted
from ghostify.harm import Harms
from ghostify.planning import Plan
from ghostify.recipe import BudgetSettings, DataSettings, FitSettings, GhostSettings
from ghostify.rewriting import Ghosted, agreed
from ghostify.sources import Data, load_data
from ghostify.tables import Table, quantity, ratio
from ghostify.tracing import Recording

HELD = 1024
"""Training images, none of those fitted to, on which harm and agreement are measured."""
RATIOS = range(2, 9)
"""s of uniform C-Ghost networks."""


@dataclass
class Targeted(Subject):
    """A trained network, and the MACs that its conversions may have."""

    allowed: int = 0

    @property
    def target(self) -> int:  # type: ignore[override]
        return self.allowed


def planned(subject: Targeted, target: str, images: Tensor, held: Tensor, harms: Harms | None) -> Choosing:
    """The budget of a target, ready to be met."""
    budget = BudgetSettings(target=target, measure=False)
    recording = ghostify.record(subject.model, subject.example)
    return prepared(recording, GhostSettings(), budget, images=images, held=held, harms=harms)


def met(subject: Targeted, choosing: Choosing, images: Tensor) -> list[str]:
    """The cells of the network that meets a budget."""
    first = choosing.plan()
    before = choosing.harm
    made = best(subject, choosing, first, images)
    assert choosing.witness is not None
    found = choosing.result(choosing.witness.saw(made.module), None, made.after.cost)
    told = [
        f"{before:.3f} / {found.harm:.3f} / {found.harm_measured or 0:.3f}",
        f"{100 * (found.agreement or 0):.1f} / {100 * (found.agreement_measured or 0):.1f}",
    ]
    say(*found.notes)
    return [*_costs(subject, made.after.cost.macs), percent([subject.accuracy(made.module)]), *told]


def best(subject: Targeted, choosing: Choosing, first: Plan, images: Tensor) -> Ghosted:
    """The network of the plan that does best of those that the first one suggests, fitted."""
    plan = tried(choosing, first, lambda plan: built(subject, plan, images).module, say)
    return built(subject, plan, images)


def built(subject: Targeted, plan: Plan, images: Tensor) -> Ghosted:
    """The network of a plan, fitted."""
    recording, checked = agreed(subject.model, subject.example, plan, fitted=True)
    return fitted(recording, checked, images, FitSettings(images=len(images)))


def other(subject: Targeted, method: str, images: int) -> list[str]:
    """The cells of another method, whose costs are those of the target or a little below."""
    name = {"mixed": _mixed(subject), "c-ghost": "c-ghost"}.get(method, method)
    fit = Fit("data" if METHODS[name].fitted else "norms", images)
    made = _uniform(subject, fit) if method == "c-ghost" else converted(subject, name, fit)
    return [*_costs(subject, made.cost.macs), percent([subject.accuracy(made.module)]), "", ""]


def _uniform(subject: Targeted, fit: Fit) -> Any:
    """The C-Ghost network of the smallest ratio s that meets the target."""
    settings = subject.settings("c-ghost")
    s = next(s for s in RATIOS if subject.planned(settings | {"s": s}).after.macs <= subject.target or s == RATIOS[-1])
    images = subject.data.calibration(fit.images)
    made = ghostify.convert(subject.model, subject.example, settings | {"s": s}, images=images)
    return argparse.Namespace(module=made.module, cost=made.after.cost)


def _mixed(subject: Targeted) -> str:
    """The mildest of the mixed settings that meets the target, else the strongest."""
    names = [name for name in METHODS if name.startswith("mixed-")]
    meeting = (name for name in names if subject.planned(subject.settings(name)).after.macs <= subject.target)
    return next(meeting, names[-1])


def _costs(subject: Targeted, macs: int) -> list[str]:
    return [quantity(macs), ratio(subject.cost.macs, macs)]


def rows(subject: Targeted, options: argparse.Namespace) -> Iterator[list[str]]:
    """A row for the original, and for each target one of ours and one of each other method."""
    yield [
        subject.name,
        "",
        "original",
        quantity(subject.cost.macs),
        "",
        percent([subject.accuracy(subject.model)]),
        "",
        "",
    ]
    images = subject.data.calibration(options.images, beyond=options.skip)
    held = subject.data.calibration(HELD, beyond=options.skip + options.images)
    harms: Harms | None = None
    for share in options.targets:
        target = f"macs={share}x"
        choosing = planned(subject, target, images, held, harms)
        harms = choosing.measured
        subject.allowed = int(share * subject.cost.macs)
        yield [subject.name, target, "budget", *met(subject, choosing, images)]
        for method in options.others:
            yield [subject.name, target, method, *other(subject, method, options.images)]


def accuracies(options: argparse.Namespace) -> Table:
    """Test accuracy right after the fit, ours and that of others."""
    feeding = DataSettings(source=f"folder:{options.data}", augment=False, limit=options.limit, hold_out=0)
    data: Data = load_data(feeding)
    found = []
    for name in options.networks:
        subject = Targeted.load(name, Path(os.environ["GHOSTIFY_DATA_DIR"]), data)
        for row in rows(subject, options):
            say(*row)
            found.append(row)
    columns = [
        "network",
        "target",
        "method",
        "MACs",
        "ratio",
        "accuracy",
        "harm first / predicted / measured",
        "agreement",
    ]
    title = f"Test accuracy right after the fit, %, {options.images} images to fit to, no training"
    return Table(title, columns, found, left=frozenset({"target", "method"}))


def latencies(options: argparse.Namespace) -> Table:
    """What was asked of the clock, predicted and measured, a row for each runtime."""
    model = getattr(torchvision.models, options.model)().eval()
    recording = ghostify.record(model, torch.randn(1, 3, 224, 224))
    found = [on_the_clock(recording, name, options) for name in options.runtimes]
    columns = ["runtime", "original", "asked", "predicted", "measured", "missed", "of theory", "again", "planned in"]
    title = f"{options.model}, latency={options.latency}x, batch {options.batch}, {options.threads} thread(s)"
    return Table(title, columns, found)


def on_the_clock(recording: Recording, runtime: str, options: argparse.Namespace) -> list[str]:
    """The cells of one runtime; planning is timed with its pieces unknown, if they were, and with them known."""
    place = Place(runtime=runtime, threads=options.threads, batch=options.batch)
    budget = BudgetSettings(target=f"latency={options.latency}x", runtime=runtime)
    began = time.perf_counter()
    choosing = prepared(recording, GhostSettings(), budget, place)
    cold = time.perf_counter()
    plan = prepared(recording, GhostSettings(), budget, place).plan()
    warm = time.perf_counter()
    plan = choosing.plan()
    result = choosing.result()
    (amount,) = result.amounts
    assert amount.measured is not None and amount.bound is not None and amount.missed is not None
    theory = plan.before.macs / plan.after.macs
    cells = [
        runtime,
        *(f"{value:.1f} ms" for value in (amount.before, amount.bound, amount.predicted, amount.measured)),
        f"{100 * amount.missed:+.1f} %",
        f"{amount.before / amount.measured / theory:.2f}",
        str(result.rounds),
        f"{cold - began:.0f} / {warm - cold:.0f} s",
    ]
    say(*cells, *result.notes)
    return cells


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"], choices=["resnet20", "resnet56"])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.526, 0.4, 0.333], help="shares of the MACs")
    others = ["c-ghost", "thin", "mixed", "torch-pruning"]
    parser.add_argument("--others", nargs="*", default=others, choices=others)
    parser.add_argument("--images", type=int, default=512, help="training images to fit to")
    parser.add_argument("--skip", type=int, default=0, help="take those behind so many")
    parser.add_argument("--limit", type=int, help="use only so many images of each split, for a quick look")
    parser.add_argument("--latency", type=float, help="plan for this share of the time, in place of the first form")
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if not options.latency and not (options.data and os.environ.get("GHOSTIFY_DATA_DIR")):
        parser.error("give --data and GHOSTIFY_DATA_DIR, or --latency")
    return options


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    try:
        print("", latencies(options) if options.latency else accuracies(options), sep="\n")
    except GhostifyError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
