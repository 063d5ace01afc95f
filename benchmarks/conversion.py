"""How long does a whole conversion take, beside another checkout of ghostify?

    python benchmarks/conversion.py --beside ../ghostify-before [--networks resnet18 resnet50] [--methods c-ghost]
        [--images 0 64] [--rounds 9] [--size 224]

Each checkout has a process of its own, and the two take turns, so that whatever else the machine does meets both.
Times are CPU seconds of one thread; a ratio is the median, over the rounds, of the other checkout's time by this one's:
more than 1 is faster than the other.  ``--images 0`` converts without a fit, any other number fits to as many.
Networks are torchvision's and the papers' for CIFAR (``resnet20 --size 32``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


class Checkout:
    """A process that converts networks with the ghostify of one checkout."""

    def __init__(self, path: Path) -> None:
        own = {"PYTHONPATH": str(path.resolve()), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, **task: Any) -> float:
        """CPU seconds of one conversion."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(task), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("The other process ended; its error stands above.")
        return float(answer)

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Convert what each line of the input asks for, and write how long it took."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(_one(**json.loads(line)), flush=True)


def _one(network: str, method: str, images: int, size: int) -> float:
    import torch
    from torchvision import models

    import ghostify
    from ghostify import networks

    torch.manual_seed(0)
    own = getattr(networks, network, None)
    model = (own() if own else getattr(models, network)(weights=None)).eval()
    example = torch.randn(1, 3, size, size)
    fit = {"images": torch.randn(images, 3, size, size)} if images else {}
    began = time.process_time()
    ghostify.convert(model, example, method=method, **fit)
    return time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--beside", type=Path, help="another checkout")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--methods", nargs="+", default=["c-ghost"])
    parser.add_argument("--images", nargs="+", type=int, default=[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args(arguments)
    if given.serve:
        serve()
        return
    if given.beside is None or not (given.beside / "ghostify").is_dir():
        parser.error("--beside names no checkout of ghostify: a folder with the folder ghostify in it")
    this, other = Checkout(HERE), Checkout(given.beside)
    print("| conversion | this, s | the other, s | times faster |\n|---|--:|--:|--:|")
    for network, method, images in product(given.networks, given.methods, given.images):
        task = {"network": network, "method": method, "images": images, "size": given.size}
        pairs = [(this.seconds(**task), other.seconds(**task)) for _ in range(given.rounds + 1)]
        print(_row(f"{network}, {method}, {f'fitted to {images}' if images else 'no fit'}", pairs[1:]), flush=True)
    this.close()
    other.close()


def _row(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    """The first round is left out, because it imports and warms up."""
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(other / own for own, other in pairs)
    return f"| {name} | {mine:.3f} | {theirs:.3f} | {ratio:.2f} |"


if __name__ == "__main__":
    main()
