"""Case study: a face detector made of three small networks (docs/cases/faces.md).

    python examples/cases/faces.py FOLDER

Into FOLDER go facenet-pytorch and scikit-image, and what ghostify makes of two of the three networks; then the detector
is measured as a whole.  Some 15 minutes of one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scratch import Scratch

PACKAGES = ("scikit-image", "torch-pruning", "matplotlib")
ALONE = ("facenet-pytorch",)  # it asks for torch < 2.3
SIZES = {"onet": "3,48,48", "rnet": "3,24,24"}
FORMS = {
    "thin": "--method thin --width 0.6 --no-measure",
    "c-ghost": "--method c-ghost --s 4 --no-measure",
    "width": "--method width --width 0.6 --no-measure",
    "chosen": "--target macs=0.4x --no-measure",
    "timed": "--target latency=0.5x --batch 64 --runtime onnxruntime",
}
"""Ways to make a network smaller: one kind of change everywhere, and what a budget chooses for about as many
multiply-adds and for half the time."""
BOUNDED = "--runtime eager,onnxruntime --batch 1,64 --seconds 1 --no-memory"
"""What is timed of all of them, for how long each."""


def study(scratch: Scratch) -> None:
    """The commands, one after the other."""
    for network, size in SIZES.items():
        scratch.ghostify(f"scan faces_data:{network} --input {size}")
        fed = f"faces_data:{network} --data faces_data:{network}_crops --metric faces_data:same_decisions"
        for form, settings in FORMS.items():
            scratch.ghostify(f"compress {fed} {settings} --output runs/{network}-{form}")
        runs = " ".join(f"runs/{network}-{form}" for form in FORMS)
        scratch.ghostify(f"bench faces_data:{network} {runs} --input {size} {BOUNDED}")
        scratch.python("compared.py", network, *runs.split())
    scratch.python("faces_together.py", *FORMS)
    scratch.python("faces_picture.py", "thin", "faces.png")


if __name__ == "__main__":
    study(Scratch(Path(sys.argv[1]), PACKAGES, ALONE))
