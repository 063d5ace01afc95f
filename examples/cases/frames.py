"""Recorded notes → frames.npz in the current folder, as torchcrepe hears them.

python frames.py FOLDER

FOLDER holds ``C#4v10.mp3`` and the like.  Notes outside of torchcrepe's range (32.7 to 1,976 Hz) are left out.  Of each
note, six seconds become frames of 1,024 samples at 16 kHz that do not overlap; of every sixteen frames in a row, eight
are for calibration and the next eight for the test.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE, LENGTH, SECONDS, TURN = 16_000, 1024, 6, 8
LOWEST, HIGHEST = 32.0, 2000.0
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def number(file: Path) -> int:
    """The MIDI number of the note that a file is named after."""
    found = re.match(r"([A-G]#?)(\d)v", file.name)
    assert found, f"{file.name} is not named after a note"
    return 12 * (int(found[2]) + 1) + NAMES.index(found[1])


def hertz(note: int) -> float:
    return float(440 * 2 ** ((note - 69) / 12))


def frames_of(file: Path) -> np.ndarray:
    """(N, 1024), each of mean 0 and deviation 1, as torchcrepe's own ``preprocess`` makes them."""
    samples, rate = soundfile.read(file, always_2d=True)
    heard = soxr.resample(samples.mean(1), rate, RATE)[: SECONDS * RATE]
    count = len(heard) // LENGTH
    frames = heard[: count * LENGTH].reshape(count, LENGTH)
    frames = frames - frames.mean(1, keepdims=True)
    return (frames / np.maximum(frames.std(1, keepdims=True), 1e-10)).astype(np.float32)


def main(folder: Path) -> None:
    files = [file for file in sorted(folder.glob("*.mp3")) if LOWEST < hertz(number(file)) < HIGHEST]
    frames = [frames_of(file) for file in files]
    notes = np.concatenate([np.full(len(own), number(file)) for file, own in zip(files, frames, strict=True)])
    test = np.concatenate([np.arange(len(own)) // TURN % 2 == 1 for own in frames])
    pitch = (440 * 2 ** ((notes - 69) / 12)).astype(np.float32)
    np.savez("frames.npz", frames=np.concatenate(frames), pitch=pitch, note=notes, test=test)
    print(f"{len(files)} notes, {(~test).sum():,} frames to calibrate with and {test.sum():,} to test with")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
