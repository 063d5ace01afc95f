"""The examples run, and so do the commands and the Python of the README."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\n", README.read_text(encoding="utf-8")))))
def test_python_of_the_readme_runs(number: int, tmp_path: Path) -> None:
    block = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[number]
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_option_named_in_the_docs_exists() -> None:
    """Each ``ghostify VERB --option`` in README and docs is one the command line knows."""
    from typer.main import get_command

    from ghostify.cli.app import app

    verbs = get_command(app).commands  # type: ignore[attr-defined]
    seen = 0
    for page in (README, *sorted((ROOT / "docs").rglob("*.md"))):
        for line in re.findall(r"^\$? ?(ghostify .*)$", page.read_text(encoding="utf-8").replace("\\\n", " "), re.M):
            _, verb, *words = shlex.split(line, comments=True)
            known = {name for parameter in verbs[verb].params for name in parameter.opts}
            if hasattr(verbs[verb], "commands"):
                continue
            unknown = [word for word in words if word.startswith("--") and word not in known]
            assert not unknown, f"{page.name}: {line}"
            seen += 1
    assert seen
