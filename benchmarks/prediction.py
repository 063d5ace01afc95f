"""How true are the times of layers to the networks they are of?  Predicted speed-ups beside measured ones.

    python benchmarks/prediction.py [--networks 'resnet50;...'] [--runtimes eager,onnxruntime,openvino]

A network (random weights, batch 1, one thread) is rewritten as a whole in several forms, all layers alike.  By the
times of its layers, each measured in a frame of its own (docs/clock.md), it would become so many times faster; measured
beside the original, both in their inference form, it is.  The last number is the one over the other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torchvision import models

from ghostify.clock import Clock, Judge, Place, measured
from ghostify.networks import resnet20, resnet56
from ghostify.planning import scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting import rehearse
from ghostify.tracing import Recording, trace

NETWORKS = {
    "resnet18": (lambda: models.resnet18(weights=None), 224),
    "resnet50": (lambda: models.resnet50(weights=None), 224),
    "cifar-resnet20": (resnet20, 32),
    "cifar-resnet56": (resnet56, 32),
}
FORMS: dict[str, dict[str, Any]] = {
    "pointwise ghosts, s = 2": {"s": 2, "cheap": "pointwise", "min_saving": 0},
    "pointwise ghosts, s = 4": {"s": 4, "cheap": "pointwise", "min_saving": 0},
    "depthwise ghosts, s = 2": {"s": 2, "cheap": "depthwise 3", "min_saving": 0},
    "thin 0.5": {"method": "thin", "width": 0.5},
    "mixed 0.5, s = 2": {"method": "mixed", "width": 0.5, "s": 2, "min_saving": 0},
}


def rows(name: str, network: nn.Module, size: int, runtime: str) -> Iterator[str]:
    recording = Recording.of(trace(network.eval(), torch.randn(1, 3, size, size)))
    judge = Judge(recording, Clock(Place(runtime=runtime)))
    for form, values in FORMS.items():
        settings = GhostSettings(**values)
        plan = rehearse(recording, settings)
        found = measured(judge, plan, judge.times(plan, scan_for(recording, settings)))
        predicted, real = found.predicted, found.whole.speedup
        yield f"| {name} | {runtime} | {form} | {predicted:.2f}x | {real:.2f}x | {predicted / real:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=";".join(NETWORKS), help="with semicolons, of " + "; ".join(NETWORKS))
    parser.add_argument("--runtimes", default="eager,onnxruntime,openvino")
    options = parser.parse_args()
    print("| network | runtime | form | predicted | measured | ratio |")
    print("|---|---|---|--:|--:|--:|")
    for name in options.networks.split(";"):
        build, size = NETWORKS[name]
        for runtime in options.runtimes.split(","):
            for row in rows(name, build(), size, runtime):
                print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
