"""What does training make of a smaller network, however it was made smaller, at equal MACs and the best of some rates?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt, resnet56-cifar10.pt> \\
    python benchmarks/finetuning.py --data <folder with train/CLASS and test/CLASS> [--json rows.json]
        [--networks resnet20 resnet56] [--times 1.85 2.4] [--methods budget c-ghost ...] [--epochs 1 5]
        [--rates auto 0.005 0.01 0.02] [--seeds 0 1 2] [--images 512] [--limit N] [--threads 1]

Each network is made so many times cheaper in MACs by each method (within 2 %, else the row says so) and fitted to the
same images, but for Torch-Pruning, whose norms' statistics are measured anew.  Then it is trained by equal settings:
SGD, a cosine, batches of 64, 0.7 of the loss by the original's answers.  A tenth of the training images (5,000 at most)
is held out of everything: by these the epoch and the rate are chosen, so that test images decide nothing.  The first
seed is trained at every rate, the others at the best one and by ``auto``.

``budget`` is the plan of least harm (``budget.py``); ``c-ghost`` has s = 2, and where that is not enough s = 3 in as
many layers as it takes, from the first on; ``g-ghost`` has another share of ghosts (ResNet56: width inside thin
blocks); ``thin`` and ``width`` have one width, ``torch-pruning`` one ratio (``fitting.py``).

``--json`` keeps every finished run, and a second start does only what is not in the file.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from budget import HELD, Targeted, best, planned
from fitting import (
    BATCH,
    METHODS,
    TRAIN,
    Converted,
    Fit,
    Results,
    converted,
    matched,
    percent,
    rewritten,
    right_after,
    say,
)

from ghostify.finetuning import finetune
from ghostify.recipe import DataSettings
from ghostify.sources import load_data
from ghostify.tables import Table, quantity, ratio

ORDER = ("budget", "c-ghost", "g-ghost", "thin", "width", "torch-pruning")
NEAR = 0.02
"""How far, in shares, MACs may be from those asked for without a note."""


@dataclass
class Row:
    """A network made smaller by a method, and what training made of it."""

    subject: Targeted
    method: str
    found: dict[str, Any]
    runs: dict[tuple[int, str, int], dict[str, Any]] = field(default_factory=dict)
    """By epochs, rate and seed."""

    def best_rate(self, epochs: int, rates: list[str], seed: int) -> str:
        """The one that did best on the images held out."""
        return max(rates, key=lambda rate: float(self.runs[epochs, rate, seed]["held"]))

    def cells(self, options: argparse.Namespace) -> Iterator[str]:
        """As the table has them."""
        macs = self.found["macs"]
        far = abs(macs / self.subject.target - 1) > NEAR
        yield from (self.subject.name, f"{self.subject.cost.macs / self.subject.target:.2f}x", self.method)
        yield f"{quantity(macs)} ({ratio(self.subject.cost.macs, macs)}){'*' if far else ''}"
        yield percent([self.found["accuracy"]])
        for epochs in options.epochs:
            yield self._of("auto", epochs, options)
            yield self._of(self.best_rate(epochs, options.by_hand, options.seeds[0]), epochs, options)

    def _of(self, rate: str, epochs: int, options: argparse.Namespace) -> str:
        runs = [self.runs[epochs, rate, seed] for seed in options.seeds if (epochs, rate, seed) in self.runs]
        if not runs:
            return ""
        return f"{percent([run['accuracy'] for run in runs])} ({runs[0]['rate']:.2g})"


def made(subject: Targeted, method: str, images: int) -> Converted:
    """The network as small as it is to be, fitted."""
    fit = Fit("data" if method == "budget" or METHODS[method].fitted else "norms", images)
    if method == "budget":
        return _by_budget(subject, images)
    settings = subject.settings(method)
    if method == "c-ghost":
        layers = [swap.target for swap in subject.planned(settings).swaps]
        stronger = [{"set": {layer: {"s": 3} for layer in layers[:count]}} for count in range(len(layers) + 1)]
        return rewritten(subject, matched(subject, settings, stronger), fit)
    if method == "g-ghost":
        key = "ratio" if subject.name == "resnet20" else "inner_width"
        return rewritten(subject, matched(subject, settings, [{key: step / 128} for step in range(8, 120)]), fit)
    return converted(subject, method, fit)


def _by_budget(subject: Targeted, count: int) -> Converted:
    images = subject.data.calibration(count)
    held = subject.data.calibration(HELD, beyond=count)
    share = subject.target / subject.cost.macs
    choosing = planned(subject, f"macs={share:.4f}x", images, held, None)
    ghosted = best(subject, choosing, choosing.plan(), images)
    return Converted(ghosted.module, ghosted.after.cost, f"macs={share:.4f}x")


def trained(subject: Targeted, make: Any, epochs: int, rate: str, seed: int) -> dict[str, Any]:
    """Accuracy of a trained copy on the test images and on those held out, the rate it had, and the time it took."""
    module = copy.deepcopy(make().module)
    settings = TRAIN.model_copy(update={"epochs": epochs, "lr": rate if rate == "auto" else float(rate)})
    began = time.perf_counter()
    history = finetune(module, subject.data, settings, teacher=subject.model, seed=seed, batch_size=BATCH)
    return {
        "accuracy": subject.accuracy(module),
        "held": max(float(one.held or 0) for one in history.epochs),
        "rate": history.rate or float(rate),
        "kept": history.kept,
        "seconds": time.perf_counter() - began,
    }


def row(subject: Targeted, method: str, options: argparse.Namespace, results: Results) -> Row:
    """One method at one size, trained at all rates, told as soon as it is known."""
    key = {
        "network": subject.name,
        "macs": subject.target,
        "method": method,
        "images": options.images,
        "limit": options.limit,
    }
    make = cache(partial(made, subject, method, options.images))
    found = Row(subject, method, results.get(key, partial(right_after, subject, make)))
    say(subject.name, method, quantity(found.found["macs"]), f"{percent([found.found['accuracy']])} % before training")
    for epochs in options.epochs:
        for index, seed in enumerate(options.seeds):
            best_one = found.best_rate(epochs, options.by_hand, options.seeds[0]) if index else ""
            for rate in [one for one in options.rates if one in ("auto", best_one)] if index else options.rates:
                more = key | {"epochs": epochs, "rate": rate, "seed": seed}
                run = results.get(more, partial(trained, subject, make, epochs, rate, seed))
                found.runs[epochs, rate, seed] = run
                told = f"{percent([run['accuracy']])} % after {epochs} at {run['rate']:.2g} ({rate}), seed {seed}"
                say(subject.name, method, told, f"{run['seconds']:.0f} s")
    return found


def table(rows: list[Row], options: argparse.Namespace) -> Table:
    """All of them, with a pair of columns for each number of epochs."""
    columns = ["network", "fewer MACs", "method", "MACs", "right after"]
    for epochs in options.epochs:
        columns += [f"{epochs} ep., auto (rate)", f"{epochs} ep., best (rate)"]
    note = f"* MACs further than {100 * NEAR:g} % from those asked for."
    title = f"Test accuracy, %, {options.images} images to fit to"
    return Table(title, columns, [list(one.cells(options)) for one in rows], left=frozenset({"method"}), note=note)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    both = ["resnet20", "resnet56"]
    parser.add_argument("--data", required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--networks", nargs="+", choices=both, default=both)
    parser.add_argument("--times", nargs="+", type=float, default=[1.85, 2.4], help="how many times fewer MACs")
    parser.add_argument("--methods", nargs="+", choices=ORDER, default=list(ORDER))
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--rates", nargs="+", default=["auto", "0.005", "0.01", "0.02"], help="numbers, and auto")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=512, help="training images to fit to")
    parser.add_argument("--limit", type=int, help="use only so many images of each split")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="keep finished runs in this file and go on from it")
    options = parser.parse_args(arguments)
    options.by_hand = [rate for rate in options.rates if rate != "auto"]
    if not options.by_hand:
        parser.error("--rates takes at least one number")
    if not os.environ.get("GHOSTIFY_DATA_DIR"):
        parser.error("GHOSTIFY_DATA_DIR does not say where the trained weights are")
    return options


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    data = load_data(
        DataSettings(source=f"folder:{options.data}", augment=max(options.epochs) > 1, limit=options.limit)
    )
    folder, results = Path(os.environ["GHOSTIFY_DATA_DIR"]), Results(options.json)
    rows = []
    for name in options.networks:
        for times in options.times:
            subject = Targeted.load(name, folder, data)
            subject.allowed = int(subject.cost.macs / times)
            say(name, f"{percent([subject.accuracy(subject.model)])} % as it is; {times:g} times fewer MACs")
            rows += [row(subject, method, options, results) for method in options.methods]
    print("", table(rows, options), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
