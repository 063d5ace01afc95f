"""How fast are rewritten networks on a GPU, beside what their MACs promise?

    python benchmarks/gpu.py [--networks resnet34,...] [--modes eager-1,...] [--seconds 0.5] [--device cuda]
    python benchmarks/gpu.py --plan latency=0.5x [--plan-batch 64]      only the last part

Each network (random weights) runs beside its rewritten copies, all in turns, all in their inference form (norms folded,
pointwise ghosts merged into plain convolutions), so that none is faster by that alone: G-Ghost stages with λ = 0.5 in
the form of the papers' tables, C-Ghost modules with pointwise and with depthwise ghosts, blocks half as wide inside,
and a uniform width of about as many MACs as G-Ghost's.

    eager-1    one image in 32-bit floats, call by call: at this size, starting kernels is most of the time
    fp32-1     one image in 32-bit floats, captured once and replayed (CUDA graphs), as engines for deployment do
    bf16-1     the same in bfloat16, channels last
    fp32-64    64 images in 32-bit floats, channels last, replayed: arithmetic and memory are the time
    bf16-64    the same in bfloat16

What is replayed is replayed eight times before the queue is waited for, so that waiting is not what is timed.  Each
copy is set up three times; a verdict is told as ``ghostify bench`` tells it (docs/bench.md).  The last column says how
much of the MAC ratio is left on the clock.

At the end ResNet50 is planned for half of its latency on the same device, and measured.  On a CPU nothing can be
replayed, so there the modes run call by call; that is only for finding out whether this script runs:

    python benchmarks/gpu.py --device cpu --size 64 --seconds 0.01 --networks resnet34 --modes eager-1 --plan ''
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from g_ghost import NETWORKS, rewritten
from torch import Tensor, nn
from torchvision import models

import ghostify
from ghostify.benching.verdicts import Speedup, speedups
from ghostify.errors import PlanError
from ghostify.measuring import timed
from ghostify.rewriting import Ghosted
from ghostify.runtimes import Session
from ghostify.tracing import Traced, trace

ORIGINAL = "original"
SETUPS = 3
QUEUED = 8
"""Replays before the device is waited for."""


@dataclass(frozen=True)
class Mode:
    """A way to run a network."""

    batch: int
    dtype: torch.dtype
    replayed: bool
    layout: torch.memory_format


MODES = {
    "eager-1": Mode(1, torch.float32, False, torch.contiguous_format),
    "fp32-1": Mode(1, torch.float32, True, torch.contiguous_format),
    "bf16-1": Mode(1, torch.bfloat16, True, torch.channels_last),
    "fp32-64": Mode(64, torch.float32, True, torch.channels_last),
    "bf16-64": Mode(64, torch.bfloat16, True, torch.channels_last),
}


def variants(traced: Traced, preset: str) -> Iterator[tuple[str, Ghosted]]:
    """The network rewritten in each way, by a name for the table."""
    with_mix = rewritten(traced, method="g-ghost", preset=preset)
    yield f"g-ghost {preset}", with_mix
    yield "g-ghost, no mix", rewritten(traced, method="g-ghost", preset=preset, mix=0)
    yield "c-ghost pointwise", rewritten(traced, method="c-ghost", cheap="pointwise")
    yield "c-ghost depthwise", rewritten(traced, method="c-ghost", cheap="depthwise 3")
    yield "thin 0.5", rewritten(traced, method="thin", width=0.5)
    narrower = as_wide(traced, with_mix)
    yield str(narrower.plan.swaps[0].settings), narrower


def as_wide(traced: Traced, like: Ghosted) -> Ghosted:
    """The uniform width with at least as many MACs as ``like``; MACs go with the square of a width, so it is near."""
    share = like.after.cost.macs / like.before.cost.macs
    nearest = int(100 * share**0.5) // 4 * 4 - 4
    tried = (rewritten(traced, method="width", width=width / 100) for width in range(nearest, 100, 4))
    return next(one for one in tried if one.after.cost.macs >= like.after.cost.macs)


class Replayed:
    """A network whose kernels were captured for one input, and are started all at once, several times."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        self.module, self.given = module, example  # a graph reads and writes their memory, which must stay theirs
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their kernels and workspaces before the capture
                module(self.given)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.made = module(self.given)

    def __call__(self) -> None:
        for _ in range(QUEUED):
            self.graph.replay()


def session(module: nn.Module, mode: Mode, options: Any) -> Session:
    """A network set up as the mode runs it, with weights and maps of its own."""
    x = torch.randn(mode.batch, 3, options.size, options.size).to(options.device, mode.dtype)
    own: Any = copy.deepcopy(module).eval().to(options.device, mode.dtype)
    x, own = x.to(memory_format=mode.layout), own.to(memory_format=mode.layout)
    return Replayed(own, x) if replays(mode, options) else partial(own, x)


def replays(mode: Mode, options: Any) -> bool:
    return mode.replayed and options.device != "cpu"


def measured(modules: Mapping[str, nn.Module], mode: Mode, options: Any) -> dict[str, list[list[float]]]:
    """Of each network, the milliseconds of a pass by set-up and turn; all of them take turns."""
    keys = [(index, name) for index in range(SETUPS) for name in modules]
    sessions = {f"{index} {name}": session(modules[name], mode, options) for index, name in keys}
    found = timed(sessions, seconds=options.seconds * len(modules), device=options.device)
    passes = QUEUED if replays(mode, options) else 1
    return {name: [[ms / passes for ms in found.ms[f"{index} {name}"]] for index in range(SETUPS)] for name in modules}


def rows(name: str, options: Any) -> Iterator[str]:
    """A line for each rewritten copy in each mode."""
    example = torch.randn(1, 3, options.size, options.size)
    traced = trace(models.get_model(name, weights=None).eval(), example)
    ghosted = dict(variants(traced, NETWORKS[name]))
    modules = {ORIGINAL: ghostify.optimize(traced.module, example).module}
    modules |= {variant: ghostify.optimize(one).module for variant, one in ghosted.items()}
    for mode in options.modes.split(","):
        times = measured(modules, MODES[mode], options)
        found = speedups(times)
        for variant, one in ghosted.items():
            theory = one.before.cost.macs / one.after.cost.macs
            cells = [name, variant, mode, f"{one.after.cost.macs / 1e9:.2f} B", f"{theory:.2f}x"]
            cells += [f"{median(times[ORIGINAL]):.2f}", f"{median(times[variant]):.2f}"]
            cells += [told(found[variant]), f"{found[variant].ratio / theory:.2f}"]
            yield f"| {' | '.join(cells)} |"


def told(found: Speedup) -> str:
    return f"{found.ratio:.2f}x ({found.low:.2f} to {found.high:.2f}), {found.verdict}"


def median(setups: list[list[float]]) -> float:
    return float(torch.tensor(list(chain.from_iterable(setups)), dtype=torch.float64).median())


def planned(target: str, options: Any) -> Iterator[str]:
    """ResNet50 planned for a target on the device, and what came of it; the plan is of 32-bit floats, call by call."""
    network = models.resnet50(weights=None).eval().to(options.device)
    example = torch.randn(1, 3, options.size, options.size, device=options.device)
    start = time.perf_counter()
    try:
        ghosted = ghostify.convert(network, example, budget={"target": target, "batch": options.plan_batch})
    except PlanError as problem:  # which tells the least that it can be brought to
        yield f"ResNet50: {problem}"
        return
    yield f"ResNet50 planned for {target} of a batch of {options.plan_batch} in {time.perf_counter() - start:.0f} s:"
    yield str(ghosted)
    yield str(ghosted.budget)
    modules = {ORIGINAL: ghostify.optimize(network, example).module, "planned": ghostify.optimize(ghosted).module}
    mode = Mode(options.plan_batch, torch.float32, False, torch.channels_last)
    yield f"measured again: {told(speedups(measured(modules, mode, options))['planned'])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet34,regnet_x_3_2gf", help="of " + ", ".join(NETWORKS))
    parser.add_argument("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    parser.add_argument("--seconds", type=float, default=0.5, help="time per network in each mode")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--plan", default="latency=0.5x", help="what ResNet50 is planned for; nothing for no plan")
    parser.add_argument("--plan-batch", type=int, default=64)
    options = parser.parse_args()
    start = time.perf_counter()
    if options.device != "cpu":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| network | variant | mode | MACs | theory | ms before | ms after | faster (95 % between) | of theory |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for name in options.networks.split(",") if options.networks else ():
        for row in rows(name, options):
            print(row, flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s", flush=True)
    for line in planned(options.plan, options) if options.plan else ():
        print(line, flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
