"""What an analysis costs: time and peak memory over the model and the images, beside forward passes over the same ones.

    python benchmarks/analysis_cost.py [--network resnet50] [--images 64] [--size 224] [--threads 2] [--scaling]

With ``--scaling``, a plain network of growing width, and the network with a growing number of images.  Weights are
random and the images are noise, so the cost is real and the redundancy says nothing.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torchvision
from fit_cost import Peak, forward_seconds, with_statistics
from torch import Tensor, nn

from ghostify.analysis import Camera, analyze
from ghostify.tables import Table

WIDTHS = (64, 128, 256, 512, 1024, 2048)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randn(options.images, 3, options.size, options.size)
    network = with_statistics(getattr(torchvision.models, options.network)(weights=None), images[:32])
    rows = [_row(options.network, network, images)]
    if options.scaling:
        rows += [_row(options.network, network, images[:count]) for count in (16, 32) if count < len(images)]
        rows += [_row(f"{width} maps wide", _plain(width), images[:, :, :14, :14]) for width in WIDTHS]
    columns = ["network", "images", "forward, s", "analysis, s", "ratio", "peak, GiB"]
    print(Table(f"{options.threads} threads, {options.size} pixels where not said", columns, rows))


def _row(name: str, network: nn.Module, images: Tensor) -> list[str]:
    forward = forward_seconds(network, images)
    with Peak() as peak:
        began = time.perf_counter()
        analyze(network, images, camera=Camera(np.zeros((*images.shape[2:], 3), np.uint8)))
        seconds = time.perf_counter() - began
    times = f"{seconds / forward:.1f}"
    return [name, str(len(images)), f"{forward:.2f}", f"{seconds:.1f}", times, f"{peak.over / 2**30:.2f}"]


def _plain(width: int) -> nn.Module:
    """Three layers of a width, the last two 1x1, on a map of 14x14."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1), nn.AdaptiveAvgPool2d(1)).eval()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scaling", action="store_true", help="also other widths and numbers of images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
