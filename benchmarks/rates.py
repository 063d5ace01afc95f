"""How near does the rate of ``--lr auto`` come to the one that trains best, and by which shares would it be nearest?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt, resnet56-cifar10.pt> \\
    python benchmarks/rates.py --data <folder with train/CLASS and test/CLASS> --epochs 1 [the options of finetuning.py]

Networks are made and trained by ``finetuning.py``, whose ``--made`` and ``--json`` keep what was done there.  The rate
that is best for one is the top of the parabola, in the logarithm of the rate, through what the first seed had on images
held out at the rates by hand; no further than a factor of 2 from these.  Each network is tested with each seed.

The second table tells, for several shares of the loss that may be lost (``BORNE`` in ``ghostify/finetuning/rate.py``),
how far the best rates scatter around √(edge · SAFE · usual rate), with SAFE as suits them.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import torch
from finetuning import Bench, Job, Row, found_by, parsed
from fitting import TRAIN, say

from ghostify.finetuning.distilling import Teacher
from ghostify.finetuning.engine import Engine
from ghostify.finetuning.feeding import Feed
from ghostify.finetuning.objective import Objective
from ghostify.finetuning.optimizers import make_optimizer
from ghostify.finetuning.rate import BORNE, SAFE, edge_of, peak_of, range_test
from ghostify.processes import Processes
from ghostify.recipe import TrainSettings
from ghostify.tables import Table

SHARES = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
USUAL = TrainSettings().peak

Losses = tuple[list[float], list[float], list[float]]
"""What a range test gives."""


@dataclass(frozen=True)
class Tested:
    """A network, the rate that trained it best, and its range tests, one for each seed."""

    job: Job
    best: float
    tests: list[Losses]

    def factors(self, share: float) -> list[float]:
        """By test, the logarithm of the SAFE that would have given the best rate."""
        return [math.log(self.best**2 / (edge_of(*test, share) * USUAL)) for test in self.tests]

    def cells(self) -> list[str]:
        """As the first table has them."""
        edges = [edge_of(*test) for test in self.tests]
        rates = [peak_of(edge, USUAL) for edge in edges]
        told = [" ".join(f"{value:.2g}" for value in values) for values in (edges, rates, [self.best])]
        return [self.job.network, f"{self.job.times:g}x", self.job.method, *told]


def losses_of(bench: Bench, job: Job, seed: int) -> Losses:
    """The range test that a training run of this seed begins with."""
    device, options = torch.device(bench.options.device), bench.options
    settings = TrainSettings.model_validate(TRAIN.model_dump(exclude_unset=True) | options.set | {"lr": "auto"})
    teacher = bench.subjects[job.network].model.to(device)
    objective = Objective(bench.made(job.of_network).module.to(device), settings, device, Teacher(teacher))
    engine = Engine(objective, make_optimizer(objective.model, settings), Processes())
    feed = Feed(bench.data[job.epochs > 1], options.batch, seed, options.workers, device, Processes())
    with objective.training():
        return range_test(engine, feed)


def best_rate(row: Row, epochs: int) -> float:
    """The top of the parabola through what three rates have on images held out."""
    held = {float(rate): row.held(epochs, rate) for rate in row.options.by_hand}
    curved, sloped, _ = np.polyfit(np.log(list(held)), list(held.values()), 2)
    low, high = min(held) / 2, max(held) * 2
    if curved >= 0:
        return max(held, key=lambda rate: held[rate])
    return float(np.clip(np.exp(-sloped / (2 * curved)), low, high))


def main() -> int:
    options = parsed()
    if len(options.by_hand) < 3 or len(options.epochs) != 1:
        sys.exit("Give one number of --epochs, and three --rates by hand at least.")
    with tempfile.TemporaryDirectory() as folder:
        options.made = options.made or Path(folder)
        rows, bench, (epochs,) = found_by(options), Bench(options), options.epochs
        tested = []
        for row in rows:
            job = replace(row.job, epochs=epochs)
            tests = [losses_of(bench, job, seed) for seed in options.seeds]
            tested.append(Tested(job, best_rate(row, epochs), tests))
            say(*tested[-1].cells())
    columns = ["network", "fewer MACs", "method", "edges", "rates found", "best by hand"]
    title = f"Rates, BORNE {BORNE:g}, SAFE {SAFE:g}"
    print("", Table(title, columns, [one.cells() for one in tested], left=frozenset({"method"})), "", sep="\n")
    shares = []
    for share in SHARES:
        factors = [factor for one in tested for factor in one.factors(share)]
        shares.append([f"{share:g}", f"{math.exp(fmean(factors)):.2g}", f"x / {math.exp(pstdev(factors) / 2):.2f}"])
    print(Table("What may be lost", ["share of the loss", "SAFE that suits", "scatter of the best rate"], shares))
    return 0


if __name__ == "__main__":
    sys.exit(main())
