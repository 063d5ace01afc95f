"""How much of what the MACs promise does the inference form give, and how much the form that trains?

    python benchmarks/inference.py [--networks 'resnet18;...'] [--runtimes eager,onnxruntime,openvino] [--rounds 30]

Every k x k convolution of a network (random weights, batch 1, the stem aside) becomes a pointwise ghost with s = 2 and
with s = 4.  The original, the ghosts as they train and their inference form take turns in one process on one thread;
times are the process's own, so that neighbours on the machine count little.  What is printed is the median of the
ratios within each turn, and in brackets its share of the ratio of MACs.  The inference form of the original (norms
folded, weights laid out anew) runs along, because in eager PyTorch that alone is a gain, which no ghost has earned.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision import models

from ghostify import convert, optimize
from ghostify.networks import resnet20, resnet56
from ghostify.runtimes import RUNTIMES, Session, runtime

NETWORKS = {
    "resnet18": (lambda: models.resnet18(weights=None), 224, 1),
    "vgg16_bn": (lambda: models.vgg16_bn(weights=None), 224, 1),
    "vgg16_bn, linear layers too": (lambda: models.vgg16_bn(weights=None), 224, 1),
    "cifar-resnet20": (resnet20, 32, 1),
    "cifar-resnet56": (resnet56, 32, 1),
    "cifar-resnet56 x16": (resnet56, 32, 16),
}
"""Who builds it, the size of its images and how many there are in a batch."""
WARM_UP = 3


@dataclass
class Form:
    """One form of a network: what it is called, and what it costs."""

    name: str
    module: nn.Module
    macs: int


def forms(network: nn.Module, example: Tensor, linear: bool = False) -> Iterator[Form]:
    """The original first, then its inference form, then ghosts in both forms; ``linear`` takes linear layers, too."""
    plain = optimize(network, example)
    yield Form("original", network, plain.before.cost.macs)
    yield Form("original, its inference form", plain.module, plain.inference.macs)
    for s in (2, 4):
        chosen = [name for name, layer in network.named_modules() if _is_chosen(layer, s, linear)]
        also = ["classifier"] if linear else []
        ghosted = convert(network, example, s=s, cheap="pointwise", min_saving=0, include=chosen, also=also)
        yield Form(f"s = {s}, as it trains", ghosted.module.eval(), ghosted.after.cost.macs)
        optimized = optimize(ghosted)
        yield Form(f"s = {s}, inference form", optimized.module, optimized.inference.macs)


def _is_chosen(layer: nn.Module, s: int, linear: bool) -> bool:
    """A k x k convolution that is no stem, or a linear layer that does not name the classes."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size[0] > 1 and layer.in_channels > 3 and layer.out_channels // s >= 4
    return linear and isinstance(layer, nn.Linear) and layer.out_features > 1000


def take_turns(runs: Mapping[str, Session], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run by round; the first rounds warm up and are not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(rounds + WARM_UP):
            for name, run in runs.items():
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
    return {name: times[WARM_UP:] for name, times in seconds.items()}


def rows(name: str, names: list[str], rounds: int) -> Iterator[str]:
    """A line for each form of a network."""
    build, size, batch = NETWORKS[name]
    torch.manual_seed(0)
    example = torch.randn(batch, 3, size, size)
    made = list(forms(build().eval(), example, linear="linear" in name))
    cells: dict[str, list[str]] = {form.name: [] for form in made}
    for chosen in map(runtime, names):
        runs = {form.name: chosen.session(form.module, (example,)) for form in made}
        seconds = take_turns(runs, rounds)
        first = seconds[made[0].name]
        for form in made:
            faster = statistics.median(a / b for a, b in zip(first, seconds[form.name], strict=True))
            promised = made[0].macs / form.macs
            shown = f"{1e3 * statistics.median(first):.2f} ms" if form is made[0] else f"{faster:.2f}x"
            cells[form.name].append(shown if promised == 1 else f"{shown} ({faster / promised:.2f})")
    for form in made:
        yield f"| {name} | {form.name} | {made[0].macs / form.macs:.2f}x | {' | '.join(cells[form.name])} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=";".join(NETWORKS), help="with semicolons, of " + "; ".join(NETWORKS))
    parser.add_argument("--runtimes", default="eager,onnxruntime,openvino", help="of " + ", ".join(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.runtimes.split(",")
    print(f"| network | form | MACs fewer | {' | '.join(names)} |")
    print(f"|---|---|--:|{'--:|' * len(names)}")
    for name in options.networks.split(";"):
        for row in rows(name, names, options.rounds):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
