"""A run that is killed anywhere goes on to the bits of one that was not: real processes, real signals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS, KILLS_OF_TWO = (int(os.environ.get(name, n)) for name, n in (("GHOSTIFY_KILLS", 100), ("GHOSTIFY_KILLS_2", 20)))


def killed(folder: Path, kills: int, processes: int, seed: int) -> dict[str, Any]:
    script = Path(__file__).with_name("killing.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(folder), str(kills), str(processes), str(seed)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize(("processes", "kills"), [(1, 4), (2, 1)])
def test_some_kills_change_nothing(tmp_path: Path, processes: int, kills: int) -> None:
    found = killed(tmp_path, kills, processes, seed=1)
    assert found["killed"] == kills and not found["different"], found


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, KILLS), (2, KILLS_OF_TWO)])
def test_no_kill_changes_anything(tmp_path: Path, processes: int, kills: int) -> None:
    """At all kinds of points, with 0, 2 and 4 loader processes in turn, in six ways of training."""
    found = killed(tmp_path, kills, processes, seed=2)
    assert found["killed"] >= kills and not found["different"], found
    assert set(found["at"]) >= {"forward", "update", "measure", "write", "flush", "rename", "sweep"}, found
