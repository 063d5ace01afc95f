"""What does an epoch of training do to images that a network was trained on elsewhere, and to images it never saw?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt> \\
    python benchmarks/known_images.py --data <folder with train/CLASS and test/CLASS> --made FOLDER
        [--methods budget c-ghost] [--times 1.85 2.4] [--rates 0.005 0.01 0.02] [--limit 10000]

The network's weights come from all of ``train/``, so images that are held out of it now were learned then.  Smaller
networks are made as in ``finetuning.py``, whose ``--made`` folder is used, trained for an epoch on the others with no
epoch chosen, and measured before and after on both kinds of images: where the loss on the first goes with a gain on the
second, a network that lost is the better one (``KNOWN`` in ``ghostify/finetuning/history.py``).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace

from finetuning import Bench, Job, parsed
from fitting import TRAIN, say
from torch import nn

from ghostify.finetuning import finetune
from ghostify.measuring import evaluate
from ghostify.tables import Table


def rows(bench: Bench, job: Job) -> Iterator[list[str]]:
    """A line for each rate."""
    options, data = bench.options, bench.data[False]
    unheld = replace(data, held=None)
    network, teacher = bench.made(job).module, bench.subjects[job.network].model

    def accuracies(module: nn.Module) -> tuple[float, float]:
        loader = data.held_loader(250)
        assert loader is not None, "a folder's images are enough to hold some out"
        return evaluate(module, loader).top1, evaluate(module, data.test_loader(250)).top1

    known, unknown = accuracies(network)
    for rate in options.by_hand:
        module = copy.deepcopy(network)
        settings = TRAIN.model_copy(update={"epochs": 1, "lr": float(rate)})
        finetune(module, unheld, settings, teacher=teacher, batch_size=options.batch)
        known_after, unknown_after = accuracies(module)
        lost, gained = 100 * (known - known_after), 100 * (unknown_after - unknown)
        yield [f"{job.times:g}x", job.method, rate, f"{100 * known:.2f}", f"{lost:+.2f}", f"{gained:+.2f}"]


def main() -> int:
    options = parsed()
    options.networks = ["resnet20"]
    if options.made is None:
        sys.exit("Give --made, a folder for the smaller networks.")
    options.made.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    found = []
    for method in options.methods:
        for times in options.times:
            for row in rows(bench, Job("resnet20", times, method)):
                say(*row)
                found.append(row)
    columns = ["fewer MACs", "method", "rate", "held out, before", "lost on them", "gained on test images"]
    print("", Table("ResNet20, one epoch, %", columns, found, left=frozenset({"method"})), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
