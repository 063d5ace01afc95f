"""From where on is a C-Ghost module faster than the convolution it replaces?

    python benchmarks/break_even.py [--runtime eager|onnxruntime] [--norm-act] [--s 2] [--d 3] [--seconds 0.5]
    python benchmarks/break_even.py --whole resnet50 [--runtime eager|onnxruntime] [--pointwise auto]

The first form times the distinct convolutions of a few networks one by one, each beside its ghost, in turns and on one
thread, and prints the speed-up beside the figure the C-Ghost rule decides by (MACs saved per element moved more), then
the threshold that separates faster from slower best.  ``--norm-act`` lets batch norm and ReLU follow both, as they do
in a network.  The second form times a whole network, rewritten with several thresholds, beside the original
(thresholds that swap the same layers are timed once, at the lowest).  Ghosts are the papers' plain ones, unless
``--pointwise`` says otherwise.

The runtime ``onnxruntime`` needs ``pip install 'ghostify[onnxruntime]'``.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torchvision import models

from ghostify.errors import PlanError
from ghostify.measuring import compare, measure
from ghostify.planning import plan
from ghostify.rewriting import rewrite
from ghostify.rules import CGhostSwap
from ghostify.rules.c_ghost import build, saving_per_element
from ghostify.scanning import Site, scan
from ghostify.tracing import trace

NETWORKS = ("resnet50", "mobilenet_v2", "efficientnet_b0")
THRESHOLDS = (0.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)


@dataclass(frozen=True)
class Layer:
    """One convolution of a network, and what would take its place."""

    site: Site
    conv: nn.Conv2d
    input: tuple[int, ...]
    swap: CGhostSwap

    @property
    def saving(self) -> float:
        return saving_per_element(self.site, self.swap)


@dataclass(frozen=True)
class Measured:
    """A layer with the median of its speed-ups (above 1: the ghost is faster) and their 10th and 90th percentile."""

    layer: Layer
    speedup: float
    low: float
    high: float
    ms: float

    def __str__(self) -> str:
        site = self.layer.site
        where = f"{site.geometry:22s} {'x'.join(map(str, site.map)):>9s}"
        return (
            f"{where} {self.layer.saving:8.1f} {self.ms:8.2f} {self.speedup:7.2f}x  ({self.low:.2f} to {self.high:.2f})"
        )


def layers(s: int, d: int, networks: Iterable[str] = NETWORKS) -> Iterator[Layer]:
    """The distinct convolutions (geometry and map) of the networks that a ghost could replace."""
    seen = set()
    for name in networks:
        with torch.device("meta"):
            model, example = models.get_model(name, weights=None), torch.empty(1, 3, 224, 224)
        traced = trace(model, example)
        scanned = scan(traced)
        proposed = plan(scanned, s=s, d=d, pointwise="none", min_saving=0, also=("stem",)).swaps
        shapes = {node.target: node.all_input_nodes[0].meta["shapes"][0] for node in traced.graph.nodes if node.args}
        for swap in proposed:
            site = scanned.site(swap.target)
            assert site is not None
            if (site.geometry, site.map) not in seen:
                seen.add((site.geometry, site.map))
                conv = traced.module.get_submodule(site.name).to_empty(device="cpu")
                yield Layer(site, _filled(conv), shapes[site.name], swap)


def _filled(conv: nn.Module) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)
    conv.reset_parameters()
    return conv


def measured(layer: Layer, runtime: str, norm_act: bool, seconds: float) -> Measured:
    example = torch.randn(layer.input)
    pair = [copy.deepcopy(layer.conv), build(layer.conv, layer.swap)]
    if norm_act:
        pair = [nn.Sequential(part, nn.BatchNorm2d(layer.site.out_channels), nn.ReLU()) for part in pair]
    before, after = pair
    found = compare(before, after, example, seconds=seconds, runtime=runtime)
    return Measured(layer, found.speedup, found.low, found.high, found.before.median_ms)


def threshold(rows: list[Measured]) -> tuple[float, int]:
    """(the value that leaves the least on its wrong side, weighed by how much faster or slower; layers on that side).

    A layer is on the wrong side when it is slower at or above the value, or faster below it.
    """
    savings = sorted({0.0, *(row.layer.saving for row in rows)})
    between = [*((a + b) / 2 for a, b in pairwise(savings)), savings[-1] + 1]
    best = min([0.0, *between], key=lambda value: sum(abs(math.log(row.speedup)) for row in misplaced(rows, value)))
    return best, len(misplaced(rows, best))


def misplaced(rows: list[Measured], value: float) -> list[Measured]:
    return [row for row in rows if (row.layer.saving >= value) != (row.speedup > 1)]


def report(rows: list[Measured]) -> Iterator[str]:
    yield f"{'layer':22s} {'map':>9s} {'saving':>8s} {'ms':>8s} {'speed-up':>8s}  (10th to 90th percentile)"
    yield from map(str, sorted(rows, key=lambda row: row.layer.saving))
    best, wrong = threshold(rows)
    yield f"best threshold: {best:.1f} MACs saved per element moved; {wrong} of {len(rows)} layers on its wrong side"
    for value in THRESHOLDS:
        swapped = [row for row in rows if row.layer.saving >= value]
        mean = statistics.geometric_mean([row.speedup for row in swapped]) if swapped else 1.0
        before = sum(row.ms for row in rows)
        after = sum(row.ms / (row.speedup if row in swapped else 1) for row in rows)
        yield (
            f"  at {value:4.0f}: {len(misplaced(rows, value)):3d} on the wrong side, {len(swapped):3d} swapped at "
            f"{mean:.2f}x (geometric mean), all layers once {before / after:.2f}x"
        )


def whole(name: str, runtime: str, s: int, d: int, pointwise: str, seconds: float) -> Iterator[str]:
    """The speed-up of a whole network at each threshold, all versions in turns."""
    torch.manual_seed(0)
    size = models.get_model_weights(name).DEFAULT.transforms.keywords["crop_size"]
    example = torch.randn(1, 3, size, size)
    traced = trace(models.get_model(name, weights=None).eval(), example)
    versions = {"original": traced.module}
    labels = {"original": ""}
    for value in THRESHOLDS:
        try:
            ghosted = rewrite(traced, plan(scan(traced), s=s, d=d, pointwise=pointwise, min_saving=value))
        except PlanError:
            continue
        swaps = ghosted.plan.swaps
        label = f"{len(swaps)} swaps, MACs / {ghosted.plan.before.macs / ghosted.plan.after.macs:.2f}"
        if label not in labels.values():
            versions[f"min_saving {value:g}"] = ghosted.module
            labels[f"min_saving {value:g}"] = label
    timings = measure(versions, example, seconds=seconds * len(versions), runtime=runtime)
    for version, label in labels.items():
        yield f"{version:15s} {label:24s} {timings.compare('original', version)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runtime", choices=("eager", "onnxruntime"), default="eager")
    parser.add_argument("--norm-act", action="store_true", help="batch norm and ReLU follow the layer and its ghost")
    parser.add_argument("--whole", metavar="NAME", help="a whole torchvision network instead of single layers")
    parser.add_argument("--s", type=int, default=2)
    parser.add_argument("--d", type=int, default=3)
    parser.add_argument("--pointwise", default="none", help="with --whole: none, auto, full or a rank")
    parser.add_argument("--seconds", type=float, default=0.5, help="per layer; ten times that per version with --whole")
    options = parser.parse_args()
    if options.whole:
        for line in whole(
            options.whole, options.runtime, options.s, options.d, options.pointwise, 10 * options.seconds
        ):
            print(line, flush=True)
        return 0
    torch.manual_seed(0)
    rows = []
    for layer in layers(options.s, options.d):
        rows.append(measured(layer, options.runtime, options.norm_act, options.seconds))
        print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(report(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
