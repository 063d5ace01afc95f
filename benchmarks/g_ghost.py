"""How fast are G-Ghost networks, beside what their MACs promise?

    python benchmarks/g_ghost.py [--networks resnet34,...] [--runtimes eager,onnxruntime,openvino] [--seconds 5]

Each network (random weights, 224x224, batch 1) runs beside its rewritten copies, in turns and on one thread: all stages
as G-Ghost stages in the form of the papers' tables, with λ = 0.5, and the whole network at a uniform width of about as
many MACs.  The last column says how much of the MAC ratio is left on the clock.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torchvision import models

from ghostify.measuring import compare
from ghostify.planning import plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting import Ghosted, rewrite
from ghostify.runtimes import RUNTIMES
from ghostify.tracing import Traced, trace

NETWORKS = {"resnet34": "imagenet", "resnet50": "imagenet", "regnet_x_3_2gf": "regnet"}
"""Networks of Tables 15 to 18, and the form of their stages."""


def rewritten(traced: Traced, **settings: Any) -> Ghosted:
    asked = GhostSettings(**settings)
    return rewrite(traced, plan(scan_for(traced, asked), asked))


def variants(traced: Traced, preset: str) -> Iterator[tuple[str, Ghosted]]:
    """The G-Ghost forms of a network, and a uniform width with at least as many MACs as the one with mix."""
    with_mix = rewritten(traced, method="g-ghost", preset=preset)
    yield f"g-ghost {preset}", with_mix
    yield "g-ghost, no mix", rewritten(traced, method="g-ghost", preset=preset, mix=0)
    narrower = (rewritten(traced, method="width", width=width / 100) for width in range(60, 96, 2))
    width = next(ghosted for ghosted in narrower if ghosted.after.cost.macs >= with_mix.after.cost.macs)
    yield str(width.plan.swaps[0].settings), width


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of " + ", ".join(NETWORKS))
    parser.add_argument("--runtimes", default="eager,onnxruntime,openvino", help="of " + ", ".join(RUNTIMES))
    parser.add_argument("--seconds", type=float, default=5.0, help="time per pair")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | variant | runtime | MACs | theory | ms before | ms after | faster (10th to 90th) | of theory |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    example = torch.randn(1, 3, 224, 224)
    for name in options.networks.split(","):
        traced = trace(models.get_model(name, weights=None).eval(), example)
        for variant, ghosted in variants(traced, NETWORKS[name]):
            theory = ghosted.before.cost.macs / ghosted.after.cost.macs
            for runtime in options.runtimes.split(","):
                found = compare(traced.module, ghosted.module, example, seconds=options.seconds, runtime=runtime)
                print(
                    f"| {name} | {variant} | {runtime} | {ghosted.after.cost.macs / 1e9:.2f} B | {theory:.2f}x "
                    f"| {found.before.median_ms:.1f} | {found.after.median_ms:.1f} "
                    f"| {found.speedup:.2f}x ({found.low:.2f} to {found.high:.2f}) | {found.speedup / theory:.2f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
