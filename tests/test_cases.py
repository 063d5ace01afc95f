"""A case study runs from end to end where its packages can be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MISSING = (
    "No module named pip",
    "No matching distribution",
    "Could not find a version",
    "Connection",
    "ENOTFOUND",
    "E404",
    "EAI_AGAIN",
)
"""What pip and npm say where they reach no registry, or it has no such package."""


def run(folder: Path) -> str:
    """What the script printed; skipped where its packages cannot be had."""
    script = ROOT / "examples" / "cases" / "pitch.py"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    unreachable = next((word for word in MISSING if word in said), "")
    # once a command of ghostify has begun, whatever fails is a failure
    if done.returncode and unreachable and "$ ghostify " not in said:
        pytest.skip(f"packages of the case cannot be installed here: {unreachable}")
    assert done.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm brings the recordings")
def test_a_pitch_tracker_is_made_smaller_by_the_command_line_alone(tmp_path: Path) -> None:
    said = " ".join(run(tmp_path).split())
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert report["before"]["macs"] >= 1.8 * report["after"]["macs"]
    scores = {stage: score["value"] for stage, score in report["scores"].items()}
    assert scores["original"] > 0.7
    assert scores["converted"] > scores["original"] - 0.01, "one point may be lost"
    assert not _alarmed(report), "the notes that it is tested on are those it was fitted to"
    other = json.loads((tmp_path / "runs" / "tiny-half" / "report.json").read_text())
    assert _alarmed(other) and "test inputs lie outside what the weights were fitted to" in said


def _alarmed(report: dict[str, Any]) -> bool:
    return any("lie outside what the weights were fitted to" in note for note in report["notes"])
