"""How fast are rewritten networks on a GPU, beside what their MACs promise?

    python benchmarks/gpu.py [--networks resnet34,...] [--modes eager-1,graph-1,...] [--seconds 2] [--device cuda]

Each network (random weights, 224x224) runs beside its rewritten copies, in turns: G-Ghost stages in the form of the
papers' tables (λ = 0.5), C-Ghost modules, thinner blocks, and a uniform width of about as many MACs as G-Ghost's.

    eager-1    one image in 32-bit floats, call by call: at this size, starting kernels is most of the time
    graph-1    one image in 16-bit floats, channels last, captured once and replayed, as engines for deployment do
    eager-64   64 images in 16-bit floats, channels last: arithmetic and memory are the time

The last column says how much of the MAC ratio is left on the clock.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from g_ghost import NETWORKS, rewritten
from torch import Tensor, nn
from torchvision import models

from ghostify.measuring import compare
from ghostify.rewriting import Ghosted
from ghostify.tracing import Traced, trace


@dataclass(frozen=True)
class Mode:
    """A way to run a network."""

    batch: int
    dtype: torch.dtype
    replayed: bool


MODES = {
    "eager-1": Mode(1, torch.float32, False),
    "graph-1": Mode(1, torch.float16, True),
    "eager-64": Mode(64, torch.float16, False),
}


class Replayed(nn.Module):
    """A network whose kernels were captured for one input, and are started all at once."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.given = example.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their kernels and workspaces before the capture
                module(self.given)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.made = module(self.given)

    def forward(self, x: Tensor) -> Tensor:
        self.given.copy_(x)
        self.graph.replay()
        return self.made


def variants(traced: Traced, preset: str) -> Iterator[tuple[str, Ghosted]]:
    with_mix = rewritten(traced, method="g-ghost", preset=preset)
    yield f"g-ghost {preset}", with_mix
    yield "g-ghost, no mix", rewritten(traced, method="g-ghost", preset=preset, mix=0)
    yield "c-ghost s=2", rewritten(traced, method="c-ghost")
    yield "thin 0.5", rewritten(traced, method="thin", width=0.5)
    narrower = (rewritten(traced, method="width", width=width / 100) for width in range(60, 96, 4))
    wide = next(ghosted for ghosted in narrower if ghosted.after.cost.macs >= with_mix.after.cost.macs)
    yield str(wide.plan.swaps[0].settings), wide


def ready(module: nn.Module, mode: Mode, device: str) -> tuple[nn.Module, Tensor]:
    """A network and its input as the mode runs them."""
    kind = torch.contiguous_format if mode.dtype == torch.float32 else torch.channels_last
    x = torch.randn(mode.batch, 3, 224, 224, device=device, dtype=mode.dtype).to(memory_format=kind)
    at = module.eval().to(device, mode.dtype).to(memory_format=kind)  # type: ignore[call-overload]
    return (Replayed(at, x) if mode.replayed else at), x


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of " + ", ".join(NETWORKS))
    parser.add_argument("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    parser.add_argument("--seconds", type=float, default=2.0, help="time per pair")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device != "cpu":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| network | variant | mode | MACs | theory | ms before | ms after | faster (10th to 90th) | of theory |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for name in options.networks.split(","):
        traced = trace(models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224))
        for variant, ghosted in variants(traced, NETWORKS[name]):
            for mode in options.modes.split(","):
                print(row(name, variant, mode, ghosted, options), flush=True)
    return 0


def row(name: str, variant: str, mode: str, ghosted: Ghosted, options: Any) -> str:
    original = models.get_model(name, weights=None)
    (before, x), (after, _) = (ready(module, MODES[mode], options.device) for module in (original, ghosted.module))
    # The device is named because a replayed network has no weights that would tell where it is.
    found = compare(before, after, x, seconds=options.seconds, device=options.device)
    ghosted.module.to("cpu", torch.float32)
    theory = ghosted.before.cost.macs / ghosted.after.cost.macs
    return (
        f"| {name} | {variant} | {mode} | {ghosted.after.cost.macs / 1e9:.2f} B | {theory:.2f}x "
        f"| {found.before.median_ms:.2f} | {found.after.median_ms:.2f} "
        f"| {found.speedup:.2f}x ({found.low:.2f} to {found.high:.2f}) | {found.speedup / theory:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
