"""Is a network ever slower for having been compressed by default?  Sixteen networks on eager PyTorch and ONNX Runtime.

    python benchmarks/never_slower.py [--networks 'mobilenet_v2;...'] [--runtimes eager,onnxruntime]

Each network (random weights, batch 1, one thread) is planned as ``ghostify compress`` does by default, method c-ghost,
and what the plan leaves of it is timed beside the original, both in their inference form, in sessions of their own.
What comes out for each runtime is the swaps that were kept of those proposed, the ratio of MACs, the speed-up by the
pieces' times and as it is measured, with the interval of the median ratio, or why the network was left alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from ghostify import GhostifyError, rewrite
from ghostify.cli.show import Watcher
from ghostify.clock import Place, ratio_between, side_by_side
from ghostify.clock.wholes import recorded
from ghostify.planned import Planned, planned
from ghostify.recipe import Recipe, make_recipe
from ghostify.subject import prepare
from ghostify.tables import ratio

NETWORKS = {
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "mobilenet_v3_large": "torchvision:mobilenet_v3_large",
    "efficientnet_b0": "torchvision:efficientnet_b0",
    "regnet_x_3_2gf": "torchvision:regnet_x_3_2gf",
    "densenet121": "torchvision:densenet121",
    "vgg16_bn": "torchvision:vgg16_bn",
    "convnext_tiny": "torchvision:convnext_tiny",
    "resnet18": "torchvision:resnet18",
    "resnet34": "torchvision:resnet34",
    "resnet50": "torchvision:resnet50",
    "shufflenet_v2": "torchvision:shufflenet_v2_x1_0",
    "squeezenet": "torchvision:squeezenet1_1",
    "googlenet": "torchvision:googlenet",
    "cifar-resnet20": "ghostify:resnet20",
    "cifar-resnet56": "ghostify:resnet56",
    "faster r-cnn": "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
}
SHAPES = {"faster r-cnn": [3, 320, 320]}
QUIET = Watcher(quiet=True)
ARGUMENTS = {"googlenet": {"init_weights": False}, "faster r-cnn": {"weights_backbone": None}}


class Row(NamedTuple):
    """What became of one network on one runtime."""

    swaps: str
    macs: str
    predicted: str
    measured: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.swaps} | {self.macs} | {self.predicted} | {self.measured} | {self.seconds:.0f} s"


def recipe_of(name: str, runtime: str) -> Recipe:
    model = {"source": NETWORKS[name], "args": ARGUMENTS.get(name, {}), "input": SHAPES.get(name)}
    return make_recipe({"model": model, "budget": {"runtime": runtime}, "device": "cpu"})


def row_of(name: str, runtime: str) -> Row:
    recipe = recipe_of(name, runtime)
    subject = prepare(recipe.model)
    start = time.perf_counter()
    proposed = len(planned(subject, unmeasured(recipe), None, QUIET).plan.swaps)
    try:
        found = planned(subject, recipe, None, QUIET)
    except GhostifyError as problem:
        return Row(f"0 of {proposed}", "1.00x", "", f"left alone: {problem}", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    assert found.clock is not None, "measured by default"
    plan = found.plan
    kept, saved = f"{len(plan.swaps)} of {proposed}", ratio(plan.before.macs, plan.after.macs)
    return Row(kept, saved, f"{found.clock.predicted:.2f}x", measured_again(found, found.clock.place), seconds)


def unmeasured(recipe: Recipe) -> Recipe:
    return make_recipe({**recipe.model_dump(exclude_unset=True, mode="json"), "budget": {"measure": False}})


def measured_again(found: Planned, place: Place) -> str:
    """The speed-up in sessions that the plan was not made by."""
    ghosted = rewrite(found.recording, found.plan)
    networks = {"original": found.recording, "rewritten": recorded(ghosted, found.recording)}
    timings = side_by_side(networks, place)
    low, high = ratio_between(timings.ms["original"], timings.ms["rewritten"])
    return f"{timings.compare('original', 'rewritten').speedup:.2f}x ({low:.2f} to {high:.2f})"


def rows(names: list[str], runtimes: list[str]) -> Iterator[str]:
    for runtime in runtimes:
        for name in names:
            yield f"| {name} | {runtime} | {row_of(name, runtime)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=";".join(NETWORKS), help="with semicolons, of " + "; ".join(NETWORKS))
    parser.add_argument("--runtimes", default="eager,onnxruntime", help="of eager, compile, onnxruntime, openvino")
    options = parser.parse_args()
    print("| network | runtime | swaps | MACs fewer | faster, predicted | faster, measured | planning took |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for row in rows(options.networks.split(";"), options.runtimes.split(",")):
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
