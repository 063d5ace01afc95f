"""What fitting costs: time and peak memory over the model and the images, beside forward passes over the same images.

    python benchmarks/fit_cost.py [--network resnet50] [--images 256] [--size 224] [--threads 2] [--method c-ghost]

Weights are random and the images are noise, so the cost is real and the fit says nothing.  Norms are given statistics
of the images first.  Peak memory is this process's resident size while fitting, less that before.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import ghostify


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randn(options.images, 3, options.size, options.size)
    model = with_statistics(getattr(torchvision.models, options.network)(weights=None), images[:32])
    forward = forward_seconds(model, images)
    with Peak() as peak:
        began = time.perf_counter()
        ghosted = ghostify.convert(model, images[:1], method=options.method, images=images, fit={"images": len(images)})
        seconds = time.perf_counter() - began
    assert ghosted.fit is not None
    print(f"{options.network}, {options.method}, {options.images} images at {options.size}, {options.threads} threads")
    print(f"parts fitted        {len(ghosted.fit.layers)}")
    print(f"forward passes      {forward:.0f} s for all images")
    print(f"convert with a fit  {seconds:.0f} s ({seconds / forward:.1f} forward passes)")
    print(f"peak memory         {peak.over / 2**30:.2f} GiB over the model and the images")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--method", default="c-ghost")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def with_statistics(model: nn.Module, images: Tensor) -> nn.Module:
    """The model in eval mode, its norms' statistics those of the images."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def forward_seconds(model: nn.Module, images: Tensor) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(32):
            model(batch)
    return time.perf_counter() - began


class Peak:
    """The most memory this process holds at a time, over what it held when this began, as Linux keeps count of it."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.over = _status("VmHWM") - self._before
        """Bytes."""


def _status(what: str) -> int:
    """Bytes that a line of this process's status tells."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[what].split()[0])


if __name__ == "__main__":
    main()
