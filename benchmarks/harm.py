"""Does the harm of single swaps predict what a whole plan does, once it is built and fitted?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt, resnet56-cifar10.pt> \\
    python benchmarks/harm.py --data <folder with train/CLASS and test/CLASS>
        [--network resnet20] [--images 512] [--tests 10000] [--threads 1] [--targets 1.9 2.5 3.0]
    python benchmarks/harm.py --cost resnet50 [--threads 2]

Harms are measured on ``--images`` training images without labels, once.  Then plans are made: uniform ones of several
methods and sizes, and for each of ``--targets`` (times fewer multiply-adds) the one whose harms add up to least.  Each
is built, fitted to the same images, and compared with the original: the sum of its swaps' harms beside the divergence
on as many other training images, and on test images.  Trained networks fit their training images closely, so test
images tell of more harm than training images can; ranks are what a planner lives on.

The second form tells how long it takes to measure the harm of all that a budget may choose among, of a network of
torchvision at 224x224 with random weights, on random images.  Trained weights and real images take somewhat longer, for
more layers answer an error there.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from scipy.stats import spearmanr
from torch import Tensor, nn

from ghostify.budget.candidates import Numbered
from ghostify.budget.candidates import candidates as offered
from ghostify.budget.preparing import settings_under
from ghostify.budget.solving import Choice, Problem, least_harm
from ghostify.errors import PlanError
from ghostify.fitting import rewrite_fitted
from ghostify.harm import Harms, measure_harms
from ghostify.networks import NETWORKS
from ghostify.planning import Plan, plan, scan_for
from ghostify.recipe import DataSettings, GhostSettings
from ghostify.rules import CGhostSwap, Swap
from ghostify.rules.c_ghost import predict
from ghostify.scanning import Scan, Site
from ghostify.sources import load_data
from ghostify.tables import Table
from ghostify.tracing import Traced, trace

GHOSTS = {"method": "c-ghost", "also": ["stem"], "min_saving": 0}
UNIFORM = {
    "ghosts, s = 2": GHOSTS | {"s": 2, "cheap": "pointwise"},
    "ghosts, s = 3": GHOSTS | {"s": 3, "cheap": "pointwise"},
    "ghosts, s = 4": GHOSTS | {"s": 4, "cheap": "pointwise"},
    "ghosts, depthwise, s = 2": GHOSTS | {"s": 2, "cheap": "depthwise 3"},
    "thin 0.75": {"method": "thin", "width": 0.75, "round_to": 1},
    "thin 0.5": {"method": "thin", "width": 0.5, "round_to": 1},
    "thin 0.75 and s = 2": {
        "method": "mixed",
        "width": 0.75,
        "s": 2,
        "round_to": 1,
        "cheap": "pointwise",
        "min_saving": 0,
    },
}
"""Settings of the same for every layer."""
STEPS = 16
"""Numbers m of intrinsic maps among which a plan of least harm chooses, for each layer."""


class Subject:
    """A trained network, the images that it is fitted to, others, and test images with labels."""

    def __init__(self, name: str, folder: Path, data: str, images: int, tests: int) -> None:
        self.name = name
        self.model = NETWORKS[name]()
        self.model.load_state_dict(torch.load(folder / f"{name}-cifar10.pt", weights_only=True))
        self.model.eval()
        loaded = load_data(DataSettings(source=f"folder:{data}", augment=False, hold_out=0))
        both = loaded.calibration(2 * images)
        self.images, self.others = both[:images], both[images:]
        assert loaded.test is not None, "the folder has test images"
        self.tests, self.labels = loaded.test.batch(list(range(0, len(loaded.test), max(1, len(loaded.test) // tests))))
        self.traced: Traced = trace(self.model, self.images[:1])
        self.scan: Scan = scan_for(self.traced, GhostSettings(method="mixed"))

    def planned(self, settings: dict[str, object]) -> Plan:
        asked = GhostSettings.model_validate(settings)
        return plan(scan_for(self.traced, asked, fitted=True), asked, fitted=True)


def scores(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(batch) for batch in images.split(250)])


def divergence(p: Tensor, q: Tensor) -> float:
    """KL of the softmax of scores, (N, k) each, in nats."""
    logs = q.double().log_softmax(1), p.double().log_softmax(1)
    return float(nn.functional.kl_div(*logs, log_target=True, reduction="batchmean"))


# -- plans -----------------------------------------------------------------------------------------------------


def mixtures(subject: Subject) -> Iterator[tuple[Site, list[CGhostSwap]]]:
    """By convolution, a swap for each number of intrinsic maps that saves anything."""
    for site in subject.scan.sites:
        if site.kind != "conv":
            continue
        n = site.out_channels
        swaps = [_mixture(site, m) for m in sorted({max(1, n * step // STEPS) for step in range(1, STEPS)})]
        yield site, [swap for swap in swaps if swap.after.macs < site.cost.macs]


def _mixture(site: Site, m: int) -> CGhostSwap:
    s = min(site.out_channels, max(2, -(-site.out_channels // m)))
    swap = CGhostSwap.model_validate(
        {"target": site.name, "geometry": site.geometry, "s": s, "m": m, "cheap": "pointwise", "before": site.cost}
    )
    return swap.model_copy(update={"after": predict(site, swap)})


def of_least_harm(subject: Subject, harms: Harms, fewer: float) -> Plan:
    """The plan whose harms add up to least with so many times fewer multiply-adds."""
    options: list[CGhostSwap | None] = []
    choices = []
    for _, swaps in mixtures(subject):
        choices.append(Choice(tuple(range(len(options), len(options) + len(swaps) + 1))))
        options += [None, *swaps]
    harm = np.array([0.0 if swap is None else harms.of(swap) for swap in options])
    saved = np.array([[0.0 if swap is None else swap.after.macs - swap.before.macs for swap in options]])
    macs = subject.scan.cost.macs
    found = least_harm(Problem(harm, saved, tuple(choices)), [macs / fewer - macs])
    if found is None:
        raise PlanError(f"{subject.name} has no plan with {fewer:g} times fewer multiply-adds.")
    taken = [swap for index in found.taken if (swap := options[index]) is not None]
    empty = subject.planned(UNIFORM["ghosts, s = 2"])
    return empty.model_copy(update={"swaps": tuple(taken), "skips": ()})


def predicted(subject: Subject, harms: Harms, made: Plan) -> float:
    """The sum of a plan's harms; of a ghost in a thinner block, by the share that it has of the layer's maps."""
    return sum(harms.of(swap, _share(subject, swap)) for swap in made.swaps)


def _share(subject: Subject, swap: Swap) -> float:
    site = subject.scan.site(swap.target)
    outputs = re.search(r"→(\d+)", swap.geometry)
    return int(outputs[1]) / site.out_channels if site and outputs else 1.0


# -- what comes of them ----------------------------------------------------------------------------------------


def row(subject: Subject, label: str, made: Plan, harms: Harms) -> tuple[list[str], list[float]]:
    """A line of the table, and its numbers: predicted, on other images, on test images, accuracy."""
    ghosted = rewrite_fitted(subject.traced, made, subject.images, "data")
    module = ghosted.module.eval()
    given = scores(module, subject.tests)
    numbers = [
        predicted(subject, harms, made),
        divergence(scores(subject.model, subject.others), scores(module, subject.others)),
        divergence(scores(subject.model, subject.tests), given),
        100 * float((given.argmax(1) == subject.labels).float().mean()),
    ]
    fewer = f"{ghosted.before.cost.macs / ghosted.after.cost.macs:.2f}x"
    cells = [label, fewer, *(f"{value:.3f}" for value in numbers[:3]), f"{numbers[0] / numbers[1]:.2f}"]
    return [*cells, f"{numbers[3]:.2f}"], numbers


def compared(subject: Subject, harms: Harms, targets: list[float]) -> Table:
    plans = {label: subject.planned(settings) for label, settings in UNIFORM.items()}
    plans |= {f"least harm, {fewer:g}x": of_least_harm(subject, harms, fewer) for fewer in targets}
    rows, numbers = [], []
    for label, made in plans.items():
        cells, values = row(subject, label, made, harms)
        print(*cells, sep="  ", flush=True)
        rows.append(cells)
        numbers.append(values)
    sums, others, tests, accuracy = np.array(numbers).T
    ranks = ", ".join(
        f"{spearmanr(sums, sign * values)[0]:.3f} with {what}"
        for what, values, sign in (("other images", others, 1), ("test images", tests, 1), ("accuracy", accuracy, -1))
    )
    title = f"{subject.name}: harms added up, and the divergence of the whole plan, fitted; no training"
    columns = ["plan", "MACs fewer", "predicted", "other images", "test images", "predicted/other", "accuracy %"]
    return Table(title, columns, rows, note=f"Rank correlation of what is predicted: {ranks}.")


def cost(name: str) -> str:
    """How long it takes to measure all harms that a budget asks for."""
    model = getattr(torchvision.models, name)().eval()
    traced = trace(model, torch.randn(1, 3, 224, 224))
    settings = settings_under(GhostSettings())
    numbered = Numbered.of(offered(scan_for(traced, settings, fitted=True), settings, fitted=True))
    swaps = numbered.swaps(range(len(numbered.options)))
    began = time.perf_counter(), time.process_time()
    harms = measure_harms(traced, torch.randn(64, 3, 224, 224), swaps, told=_told)
    wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    on = f"{harms.images} images held out, fitted to {harms.fitted} others"
    return f"{name}: {len(swaps)} candidates, {on}: {wall:.0f} s, {processor:.0f} s of CPU time"


def _told(done: int, total: int) -> None:
    print(time.strftime("%H:%M:%S"), f"{done} of {total} hundredths of the work are done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--network", choices=["resnet20", "resnet56"], default="resnet20")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--targets", type=float, nargs="*", default=[1.9, 2.5, 3.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cost", metavar="NETWORK", help="of torchvision: only time how harm is measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.cost:
        print(cost(options.cost))
        return
    if not options.data:
        parser.error("give --data, or --cost")
    folder = Path(os.environ["GHOSTIFY_DATA_DIR"])
    subject = Subject(options.network, folder, options.data, options.images, options.tests)
    candidates: list[Swap] = [swap for _, swaps in mixtures(subject) for swap in swaps]
    candidates += [swap for settings in UNIFORM.values() for swap in subject.planned(settings).swaps]
    began = time.process_time()
    harms = measure_harms(subject.traced, subject.images, candidates)
    print(harms, f"\n{len(candidates)} candidates, {time.process_time() - began:.0f} s of CPU time\n", flush=True)
    print(compared(subject, harms, options.targets))


if __name__ == "__main__":
    main()
