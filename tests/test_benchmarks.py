"""The benchmarks can be begun: each is loaded, and those that call the library most run on a few images to their end.

A benchmark is run by hand, once in a while, so that a change in the library could break one and nobody would know.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghostify.networks import NETWORKS

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
TINY = {
    "budget": "--data {data} --networks resnet20 --targets 0.6 --others c-ghost thin torch-pruning --images 16",
    "equal_latency": "--data {data} --network resnet20 --batches 1 --faster 1.2 --methods planned thin --images 16"
    " --epochs 1 --trained-on 64",
    "finetuning": "--data {data} --networks resnet20 --times 1.85 --methods thin torch-pruning --epochs 1"
    " --rates auto 0.01 --seeds 0 1 --images 16 --jobs 2",
    "fitting": "--data {data} --networks resnet20 --methods c-ghost mixed-2.4 torch-pruning --images 16 --epochs 1"
    " --seeds 0",
    "known_images": "--data {data} --made {data}/made --methods thin --times 1.85 --rates 0.01 --images 16",
    "rates": "--data {data} --networks resnet20 --times 1.85 --methods thin --epochs 1 --rates 0.005 0.01 0.02"
    " --seeds 0 --images 16",
    "harm": "--data {data} --network resnet20 --images 16 --tests 16 --targets 2",
    "gpu": "--device cpu --size 32 --seconds 0.01 --networks resnet34 --modes eager-1 --plan=",
    "fit_cost": "--network resnet18 --images 4 --size 32",
    "loop_overhead": "--batch 8 --steps 2 --turns 3",
    "never_slower": "--networks resnet18 --runtimes eager",
}
"""By its name, arguments with which a benchmark is soon done."""


def output_of(*arguments: str) -> str:
    """What a command prints that ends well."""
    found = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of made-up images of ten classes, beside weights that nobody trained."""
    folder = tmp_path_factory.mktemp("cifar")
    draw = np.random.default_rng(0)
    for split, count in (("train", 130), ("test", 4)):
        for label in range(10):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    torch.manual_seed(0)
    torch.save(NETWORKS["resnet20"]().state_dict(), folder / "resnet20-cifar10.pt")
    return folder


def test_every_benchmark_can_be_loaded() -> None:
    loading = (
        "import importlib, sys; sys.path.insert(0, 'benchmarks'); [importlib.import_module(n) for n in sys.argv[1:]]"
    )
    output_of("-c", loading, *(path.stem for path in BENCHMARKS))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_runs_to_its_end(name: str, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "GHOSTIFY_DATA_DIR", str(images))
    assert output_of(f"benchmarks/{name}.py", *TINY[name].format(data=images).split()).strip()
