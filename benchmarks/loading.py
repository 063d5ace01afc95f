"""What images cost to read: decoded, framed, varied; from files and from shards; and what a loader costs to begin.

    python benchmarks/loading.py

Made-up JPEGs of 500x375, brought to 224x224 on one core.  Times per image are of the processor, so that a busy machine
does not change them; the others are by the clock, the median of some tries.
"""

from __future__ import annotations

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ghostify.recipe import DataSettings
from ghostify.sources import Data, load_data

IMAGES = 256
"""Of each split."""
SHAPE = (3, 224, 224)


def jpegs() -> list[bytes]:
    draws = np.random.default_rng(0)
    made = []
    for _ in range(IMAGES):
        pixels = draws.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(content, "jpeg", quality=90)
        made.append(content.getvalue())
    return made


def written(root: Path) -> None:
    """The same images as a folder and as shards."""
    images = jpegs()
    for split in ("train", "val"):
        (root / "folder" / split / "one").mkdir(parents=True)
        for number, content in enumerate(images):
            (root / "folder" / split / "one" / f"{number:04}.jpg").write_bytes(content)
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            for number, content in enumerate(images):
                for ending, data in (("jpg", content), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{number:04}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def loaded(source: str, **settings: Any) -> Data:
    return load_data(DataSettings(source=source, hold_out=0, **settings), SHAPE)


def per_image(loader: Iterable[Any]) -> float:
    """Milliseconds of the processor."""
    began = time.process_time()
    count = sum(len(labels) for _, labels in loader)
    return 1000 * (time.process_time() - began) / count


def median(act: Callable[[], Any], tries: int = 5) -> float:
    """Milliseconds by the clock."""
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        act()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def first_batch(data: Data, workers: int, start: int = 0) -> None:
    batches = iter(data.train_loader(1, 0, 0, workers, start=start))
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        written(root)
        sources = {"folder": f"folder:{root / 'folder'}", "shards": f"webdataset:{root}/*.tar"}
        for name, source in sources.items():
            data, varied = loaded(source), loaded(source, randaugment=(2, 9))
            first_batch(varied, 0)
            rows = {"test": data.test_loader(32), "train": data.train_loader(32, 0, 0)}
            rows["train with RandAugment"] = varied.train_loader(32, 0, 0)
            for what, loader in rows.items():
                print(f"{name}, {what}: {per_image(loader):.2f} ms of the processor for each image")
        data = loaded(sources["shards"])
        for start in (0, IMAGES - 1):
            print(f"the first batch from batch {start} on: {median(lambda at=start: first_batch(data, 0, at)):.1f} ms")
        for workers in (1, 2, 4):
            told = median(lambda n=workers: first_batch(data, n))
            print(f"with {workers} loader processes, begun and ended: {told:.0f} ms")
        began = time.process_time()
        loaded(sources["shards"])
        members = 4 * IMAGES
        print(f"headers: {1e6 * (time.process_time() - began) / members:.0f} µs of the processor for each member")


if __name__ == "__main__":
    main()
