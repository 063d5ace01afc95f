"""The whole detector with its networks replaced: which faces it finds, and how long that takes beside the original."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Mapping

import torch
from facenet_pytorch import MTCNN
from faces_data import agreement, cascade, scenes

import ghostify

ROUNDS = 5


def with_networks(runs: Mapping[str, str]) -> MTCNN:
    """The detector with the networks of some run folders in their places, in the form that runs fastest."""
    changed = copy.deepcopy(cascade())
    for name, run in runs.items():
        setattr(changed, name, ghostify.optimize(ghostify.load(run)).module)
    return changed


def seconds(detectors: Mapping[str, MTCNN]) -> dict[str, float]:
    """The median time of each over the test scenes, one after the other in turns."""
    images = list(scenes("test", each=2))
    taken: dict[str, list[float]] = {name: [] for name in detectors}
    for _ in range(ROUNDS):
        for name, detector in detectors.items():
            began = time.perf_counter()
            for image in images:
                detector.detect(image, landmarks=True)
            taken[name].append((time.perf_counter() - began) / len(images))
    return {name: statistics.median(times) for name, times in taken.items()}


def main(forms: list[str]) -> None:
    torch.set_num_threads(1)
    detectors = {"original": cascade()}
    detectors |= {form: with_networks({net: f"runs/{net}-{form}" for net in ("onet", "rnet")}) for form in forms}
    times = seconds(detectors)
    print("detector    ms an image  faster  faces  found  missed  besides  overlap  landmarks apart")
    for name, detector in detectors.items():
        found = agreement(cascade(), detector)
        print(
            f"{name:10}  {1000 * times[name]:11.1f}  {times['original'] / times[name]:5.2f}x"
            f"  {found['faces of the original']:5}  {found['found']:5}  {found['missed']:6}  {found['found besides']:7}"
            f"  {found['overlap']:7.3f}  {100 * found['landmarks']:5.1f} % of a side"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
