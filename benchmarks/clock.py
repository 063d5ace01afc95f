"""How much faster is one network with one set of settings, beside what its MACs promise?

    python benchmarks/clock.py NETWORK [SETTING=VALUE ...] [--runtimes eager,onnxruntime,openvino] [--seconds 10]
    python benchmarks/clock.py torchvision:resnet50 method=thin width=0.5

The network (of any source, random weights, batch 1) runs beside its rewritten copy and that copy's inference form, in
turns and on one thread.  The settings are those of the group ``ghost`` of a recipe, the others at their defaults.  What
comes out is the MACs and, for each runtime, the speed-up of both forms with its 10th and 90th percentile.

The runtime ``onnxruntime`` needs ``pip install 'ghostify[onnxruntime]'``; ``openvino``, ``'ghostify[openvino]'``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
import yaml

import ghostify
from ghostify.measuring import measure
from ghostify.measuring.latency import Timings
from ghostify.recipe import ModelSettings
from ghostify.runtimes import RUNTIMES
from ghostify.subject import prepare
from ghostify.tables import quantity, ratio


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """``SETTING=VALUE`` as a recipe reads it: the value is YAML."""
    parted = [pair.partition("=") for pair in pairs]
    return {key: yaml.safe_load(value) for key, _, value in parted}


def told(form: str, timings: Timings) -> str:
    found = timings.compare("original", form)
    return f"{form} {found.speedup:.2f}x faster ({found.low:.2f} to {found.high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="as --model of a recipe has it: torchvision:NAME, ghostify:NAME, ...")
    parser.add_argument("settings", nargs="*", help="as in method=thin width=0.5")
    parser.add_argument("--runtimes", default="eager,onnxruntime", help="of " + ", ".join(RUNTIMES))
    parser.add_argument("--seconds", type=float, default=10.0, help="time per runtime")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = prepare(ModelSettings(source=options.network))
    network, example = subject.model.eval(), subject.example
    ghosted = ghostify.convert(network, example, settings_of(options.settings))
    optimized = ghostify.optimize(ghosted)
    before, after = ghosted.before.cost.macs, ghosted.after.cost.macs
    print(f"MACs {quantity(before)} → {quantity(after)} ({ratio(before, after)} fewer)")
    forms = {"original": network, "as it trains": ghosted.module.eval(), "as it runs": optimized.module}
    for runtime in options.runtimes.split(","):
        timings = measure(forms, example, seconds=options.seconds, runtime=runtime)
        print(f"{runtime:12s}", ", ".join(told(form, timings) for form in list(forms)[1:]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
