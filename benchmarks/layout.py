"""What do channels last in memory make of the time of training on a CPU, of networks and of what was made of them?

Two trainings of one network on the same batches, by ``finetune`` with and without, take turns in one process and are
compared by their CPU time.  Told are the medians of the ratios within a turn.

    python benchmarks/layout.py [--networks torchvision:resnet18 ...] [--methods none c-ghost ...] [--turns 5]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator

import torch
from loop_overhead import Batches, Pairs
from torch import nn

import ghostify
from ghostify.errors import GhostifyError
from ghostify.finetuning import finetune
from ghostify.recipe import ModelSettings, TrainSettings
from ghostify.sources import build_model
from ghostify.tables import Table

NETWORKS = (
    "ghostify.networks:resnet20",
    "ghostify.networks:resnet56",
    "torchvision:resnet18",
    "torchvision:vgg11_bn",
    "torchvision:densenet121",
    "torchvision:regnet_y_400mf",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "timm:lcnet_100",
)
METHODS = ("none", "thin", "c-ghost", "g-ghost")


def seconds(network: nn.Module, pairs: Pairs, last: bool) -> float:
    """CPU time of the training of a copy."""
    model = copy.deepcopy(network)
    began = time.process_time()
    finetune(model, Batches(pairs), TrainSettings(epochs=1, lr=1e-4, channels_last=last))
    return time.process_time() - began


def made_of(source: str, methods: list[str], image: torch.Tensor) -> Iterator[tuple[str, nn.Module]]:
    """The network, and what those methods make of it that can."""
    torch.manual_seed(0)
    network = build_model(ModelSettings(source=source))
    for method in methods:
        try:
            made = network if method == "none" else ghostify.convert(network, image, method=method).module
        except GhostifyError:
            continue
        yield method, made


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", default=NETWORKS)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options.add_argument("--batch", type=int, default=8, help="images of 96x96 to a step")
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--turns", type=int, default=5)
    args = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for source in args.networks:
        size, batch = (32, 8 * args.batch) if source.startswith("ghostify") else (96, args.batch)
        images = [torch.randn(batch, 3, size, size) for _ in range(args.steps)]
        pairs = [(one, torch.randint(10, (batch,))) for one in images]
        for method, network in made_of(source, args.methods, images[0][:1]):
            seconds(network, pairs[:1], last=True)
            turns = [[seconds(network, pairs, last) for last in (False, True)] for _ in range(args.turns)]
            ratios = sorted(without / having for without, having in turns)
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            rows.append([source, method, f"{statistics.median(ratios):.2f}x", spread])
            print(*rows[-1], flush=True)
    columns = ["network", "method", "faster", "turns"]
    title = f"Channels last, {args.batch} images of 96x96 to a step, eight times as many of 32x32; one thread"
    print("", Table(title, columns, rows, left=frozenset({"method"})), sep="\n")


if __name__ == "__main__":
    main()
