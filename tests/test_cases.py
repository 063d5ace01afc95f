"""The case studies: the smallest runs from end to end where its packages can be had; all ask for what there is."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command import Cli, refused

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


class Noted:
    """Stands for a scratch folder: notes the commands of a case, and runs none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[str] = []
        self.scripts: list[str] = []

    def ghostify(self, command: str) -> None:
        self.commands.append(command)

    def python(self, script: str, *_: str) -> None:
        self.scripts.append(script)

    def npm(self, package: str) -> Path:
        return self.folder / package


def _pitch(size: str) -> Callable[[Any, Noted], None]:
    def study(case: Any, noted: Noted) -> None:
        case.study(noted, size)
        case.beside(noted, size)

    return study


@pytest.mark.parametrize(
    ("script", "study"),
    [
        pytest.param("pitch", _pitch("tiny"), id="pitch, tiny"),
        pytest.param("pitch", _pitch("full"), id="pitch, full"),
        pytest.param("faces", lambda case, noted: case.study(noted), id="faces"),
        pytest.param("lite0", lambda case, noted: case.study(noted), id="lite0"),
    ],
)
def test_each_command_of_a_case_lacks_nothing_but_its_network(
    script: str, study: Callable[[Any, Noted], None], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verbs, options and settings are such as there are: a case that takes an hour must not end by a misspelling."""
    monkeypatch.delenv("GHOSTIFY_MEASURE", raising=False)  # as a person's shell is; no command gets so far as to time
    noted = Noted(tmp_path)
    # For the import alone, so that no network of a case is found, whatever is installed.
    with monkeypatch.context() as importing:
        importing.syspath_prepend(str(ROOT / "examples" / "cases"))
        study(import_module(script), noted)
    assert all((ROOT / "examples" / "cases" / name).is_file() for name in noted.scripts)
    assert len(noted.commands) > 5
    for command in noted.commands:
        answer = cli(*shlex.split(command))
        refused(answer)
        assert "there is no Python module" in answer.err or "does not exist" in answer.err, command
