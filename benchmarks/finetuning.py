"""What does training make of a smaller network, however it was made smaller, at equal MACs and the best of some rates?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt, resnet56-cifar10.pt> \\
    python benchmarks/finetuning.py --data <folder with train/CLASS and test/CLASS> [--json rows.json]
        [--networks resnet20 resnet56] [--times 1.85 2.4] [--methods budget c-ghost ...] [--epochs 1 5]
        [--rates auto 0.005 0.01 0.02] [--seeds 0 1 2] [--batch 64] [--images 512] [--limit N]
        [--set label_smoothing=0.1 ...] [--jobs 1] [--device cpu] [--threads 1] [--workers 0] [--made FOLDER]

Each network is made so many times cheaper in MACs by each method (within 2 %, else the row says so) and fitted to the
same images, but for Torch-Pruning, whose norms' statistics are measured anew.  Then it is trained by equal settings:
SGD, a cosine, 0.7 of the loss by the original's answers, images cropped and mirrored where more than one epoch sees
them.  A tenth of the training images (5,000 at most) is held out of everything: by these the epoch and the rate are
chosen, so that test images decide nothing.  The first seed is trained at every rate, the others at the best one and by
``auto``.

``budget`` is the plan of least harm (``budget.py``); ``c-ghost`` has s = 2, and where that is not enough s = 3 in as
many layers as it takes, from the first on; ``g-ghost`` has another share of ghosts (ResNet56: width inside thin
blocks); ``thin`` and ``width`` have one width, ``torch-pruning`` one ratio (``fitting.py``).

``--set`` gives all of them another setting of ``ghostify finetune``.  ``--jobs`` trains so many networks at a time,
each in a process of its own, as a GPU has room for.  ``--json`` keeps every finished run, and a second start does only
what is not in the file.  ``--made`` keeps the smaller networks, so that another machine can train them; it reads back
only what this script wrote there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from budget import HELD, Targeted, best, planned
from fitting import METHODS, TRAIN, Converted, Fit, Results, converted, matched, percent, rewritten, right_after, say

from ghostify.files import replacing
from ghostify.finetuning import finetune
from ghostify.harm import Harms
from ghostify.measuring import evaluate
from ghostify.recipe import DataSettings, TrainSettings
from ghostify.sources import load_data
from ghostify.tables import Table, quantity, ratio

ORDER = ("budget", "c-ghost", "g-ghost", "thin", "width", "torch-pruning")
AUTO = "auto"
NEAR = 0.02
"""How far, in shares, MACs may be from those asked for without a note."""

# -- one network, and one run of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A network made smaller by a method; with ``epochs``, a training run of it."""

    network: str
    times: float
    method: str
    epochs: int = 0
    rate: str = ""
    seed: int = 0

    @property
    def of_network(self) -> Job:
        """What makes the network that is trained."""
        return Job(self.network, self.times, self.method)

    def key(self, options: argparse.Namespace) -> dict[str, Any]:
        """What its result depends on."""
        made = {"network": self.network, "times": self.times, "method": self.method}
        made |= {"images": options.images, "limit": options.limit}
        if not self.epochs:
            return made
        made |= {"epochs": self.epochs, "rate": self.rate, "seed": self.seed, "batch": options.batch}
        return made | ({"set": options.set} if options.set else {})

    def told(self, found: dict[str, Any]) -> str:
        """Its result in a line."""
        what = f"{self.network} {self.times:g}x {self.method}"
        if not self.epochs:
            return f"{what}: {quantity(found['macs'])} MACs, {percent([found['accuracy']])} % before training"
        how = f"{self.epochs} ep. at {found['rate']:.2g} ({self.rate}), seed {self.seed}"
        return f"{what}: {percent([found['accuracy']])} % after {how}, {found['seconds']:.0f} s"


class Bench:
    """The networks and images that a process makes smaller networks of and trains them with."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.options = options
        source = {"source": f"folder:{options.data}", "limit": options.limit}
        self.data = {augment: load_data(DataSettings(**source, augment=augment)) for augment in (False, True)}
        folder = Path(os.environ["GHOSTIFY_DATA_DIR"])
        self.subjects = {name: Targeted.load(name, folder, self.data[False]) for name in options.networks}
        self.harms: dict[str, Harms | None] = {}

    def found(self, job: Job) -> dict[str, Any]:
        """The result of a job."""
        if job.epochs:
            return self._trained(job)
        subject = self.subjects[job.network]
        return right_after(subject, partial(self.made, job)) | {"original_macs": subject.cost.macs}

    def made(self, job: Job) -> Converted:
        """The network as small as it is to be, fitted: the one that is kept, or one that is kept from now on."""
        kept = Path(self.options.made) / f"{job.network}-{job.times:g}x-{job.method}.pt"
        if kept.exists():
            made: Converted = torch.load(kept, weights_only=False)
            return made
        made = self._making(job)
        with replacing(kept) as new:
            torch.save(made, new)
        return made

    def _making(self, job: Job) -> Converted:
        subject, images = self.subjects[job.network], self.options.images
        subject.allowed = int(subject.cost.macs / job.times)
        if job.method == "budget":
            return self._by_budget(subject, images)
        fit = Fit("data" if METHODS[job.method].fitted else "norms", images)
        settings = subject.settings(job.method)
        if job.method == "c-ghost":
            layers = [swap.target for swap in subject.planned(settings).swaps]
            stronger = [{"set": {layer: {"s": 3} for layer in layers[:count]}} for count in range(len(layers) + 1)]
            return rewritten(subject, matched(subject, settings, stronger), fit)
        if job.method == "g-ghost":
            key = "ratio" if subject.name == "resnet20" else "inner_width"
            return rewritten(subject, matched(subject, settings, [{key: step / 128} for step in range(8, 120)]), fit)
        return converted(subject, job.method, fit)

    def _by_budget(self, subject: Targeted, count: int) -> Converted:
        images = subject.data.calibration(count)
        held = subject.data.calibration(HELD, beyond=count)
        target = f"macs={subject.target / subject.cost.macs:.4f}x"
        choosing = planned(subject, target, images, held, self.harms.get(subject.name))
        self.harms[subject.name] = choosing.measured
        ghosted = best(subject, choosing, choosing.plan(), images)
        return Converted(ghosted.module, ghosted.after.cost, target)

    def _trained(self, job: Job) -> dict[str, Any]:
        """Accuracy of a trained network on the test images and on those held out, its rate, and the time it took."""
        options, data = self.options, self.data[job.epochs > 1]
        module = self.made(job.of_network).module
        settings = TrainSettings.model_validate(
            TRAIN.model_dump(exclude_unset=True) | options.set | {"epochs": job.epochs, "lr": job.rate}
        )
        began = time.perf_counter()
        history = finetune(
            module,
            data,
            settings,
            teacher=self.subjects[job.network].model,
            seed=job.seed,
            device=options.device,
            batch_size=options.batch,
            workers=options.workers,
            known=True,  # the networks were trained on all of the training images
        )
        return {
            "accuracy": evaluate(module, data.test_loader(250)).top1,
            "held_before": history.before,
            "held": max(float(one.held or 0) for one in history.epochs),
            "rate": history.rate or float(job.rate),
            "kept": history.kept,
            "seconds": time.perf_counter() - began,
        }


# -- all of them, some at a time -------------------------------------------------------------------------------

_bench: Bench | None = None
"""That of a process of the pool."""


def _begin(options: argparse.Namespace) -> None:
    global _bench
    _bench = Bench(options)


def _found(job: Job) -> dict[str, Any]:
    assert _bench is not None
    return _bench.found(job)


def carry_out(jobs: Iterable[Job], pool: Executor, options: argparse.Namespace, results: Results) -> None:
    """Do what no result is known of, and tell each as it is finished."""
    todo = [job for job in jobs if results.known(job.key(options)) is None]
    running = {pool.submit(_found, job): job for job in todo}
    for done in as_completed(running):
        job = running[done]
        results.add(job.key(options), done.result())
        say(job.told(done.result()))


@dataclass
class Row:
    """A network made smaller by a method, and what training made of it."""

    job: Job
    options: argparse.Namespace
    results: Results

    @property
    def found(self) -> dict[str, Any]:
        """What is known of it before training."""
        known = self.results.known(self.job.key(self.options))
        assert known is not None
        return known

    def first(self) -> Iterator[Job]:
        """The runs that tell which rate is best."""
        for epochs in self.options.epochs:
            for rate in self.options.rates:
                yield self._job(epochs, rate, self.options.seeds[0])

    def others(self) -> Iterator[Job]:
        """The runs of the other seeds."""
        for epochs in self.options.epochs:
            rates = [rate for rate in self.options.rates if rate in (AUTO, self.best_rate(epochs))]
            yield from (self._job(epochs, rate, seed) for seed in self.options.seeds[1:] for rate in rates)

    def best_rate(self, epochs: int) -> str | None:
        """The one by hand that did best on the images held out; None where all are left to ``auto``."""
        return max(self.options.by_hand, key=lambda rate: self.held(epochs, rate), default=None)

    def held(self, epochs: int, rate: str) -> float:
        """What the first seed had on images held out."""
        return float(self._run(epochs, rate, self.options.seeds[0])["held"])

    def cells(self) -> Iterator[str]:
        """As the table has them."""
        before, macs = self.found["original_macs"], self.found["macs"]
        far = abs(macs * self.job.times / before - 1) > NEAR
        yield from (self.job.network, f"{self.job.times:g}x", self.job.method)
        yield f"{quantity(macs)} ({ratio(before, macs)}){'*' if far else ''}"
        yield percent([self.found["accuracy"]])
        for epochs in self.options.epochs:
            yield self._of(AUTO, epochs) if AUTO in self.options.rates else ""
            best_one = self.best_rate(epochs)
            yield self._of(best_one, epochs) if best_one else ""

    def _job(self, epochs: int, rate: str, seed: int) -> Job:
        return Job(self.job.network, self.job.times, self.job.method, epochs, rate, seed)

    def _run(self, epochs: int, rate: str, seed: int) -> dict[str, Any]:
        known = self.results.known(self._job(epochs, rate, seed).key(self.options))
        assert known is not None
        return known

    def _of(self, rate: str, epochs: int) -> str:
        runs = [self._run(epochs, rate, seed) for seed in self.options.seeds]
        rates = sorted({f"{run['rate']:.2g}" for run in runs}, key=float)
        return f"{percent([run['accuracy'] for run in runs])} ({' '.join(rates)})"


def table(rows: list[Row], options: argparse.Namespace) -> Table:
    """All of them, with a pair of columns for each number of epochs."""
    columns = ["network", "fewer MACs", "method", "MACs", "right after"]
    for epochs in options.epochs:
        columns += [f"{epochs} ep., auto (rates)", f"{epochs} ep., best (rate)"]
    note = f"* MACs further than {100 * NEAR:g} % from those asked for."
    title = f"Test accuracy, %, {options.images} images to fit to"
    return Table(title, columns, [list(one.cells()) for one in rows], left=frozenset({"method"}), note=note)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    both = ["resnet20", "resnet56"]
    parser.add_argument("--data", required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--networks", nargs="+", choices=both, default=both)
    parser.add_argument("--times", nargs="+", type=float, default=[1.85, 2.4], help="how many times fewer MACs")
    parser.add_argument("--methods", nargs="+", choices=ORDER, default=list(ORDER))
    parser.add_argument("--epochs", nargs="*", type=int, default=[1, 5], help="none: only make the networks")
    parser.add_argument("--rates", nargs="+", default=[AUTO, "0.005", "0.01", "0.02"], help="numbers, and auto")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=64, help="images of a training step")
    parser.add_argument("--images", type=int, default=512, help="training images to fit to")
    parser.add_argument("--limit", type=int, help="use only so many images of each split")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the training")
    parser.add_argument("--jobs", type=int, default=1, help="networks that train at a time")
    parser.add_argument("--device", default="cpu", help="where they train")
    parser.add_argument("--threads", type=int, default=1, help="of each job")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images, of each job")
    parser.add_argument("--json", type=Path, help="keep finished runs in this file and go on from it")
    parser.add_argument("--made", type=Path, help="keep the smaller networks in this folder")
    options = parser.parse_args(arguments)
    options.set = dict(one.split("=", 1) for one in options.set)
    options.by_hand = [rate for rate in options.rates if rate != AUTO]
    if not os.environ.get("GHOSTIFY_DATA_DIR"):
        parser.error("GHOSTIFY_DATA_DIR does not say where the trained weights are")
    return options


def found_by(options: argparse.Namespace) -> list[Row]:
    """The rows of the table, once all is known that they tell."""
    options.made.mkdir(parents=True, exist_ok=True)
    results, spawned = Results(options.json), multiprocessing.get_context("spawn")
    networks = [
        Job(name, times, method) for name in options.networks for times in options.times for method in options.methods
    ]
    rows = [Row(job, options, results) for job in networks]
    with ProcessPoolExecutor(options.jobs, mp_context=spawned, initializer=_begin, initargs=(options,)) as pool:
        carry_out(networks, pool, options, results)
        carry_out((job for row in rows for job in row.first()), pool, options, results)
        carry_out((job for row in rows for job in row.others()), pool, options, results)
    return rows


def main() -> int:
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        options.made = options.made or Path(folder)
        print("", table(found_by(options), options), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
