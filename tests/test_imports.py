"""The house stands: imports run downwards, and what only asks for help does not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "timm", "sklearn", "matplotlib")


def modules_after(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded once it has run ``code``."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    script += "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("loaded: ").split())


def test_imports_run_downwards():
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["recipes", "list"]], ids=" ".join)
def test_help_does_not_wait_for_heavy_packages(arguments):
    loaded = modules_after(f"from ghostify.cli import main; sys.argv = {['ghostify', *arguments]!r}; main()")
    assert "ghostify" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_package_and_its_recipes_is_light():
    loaded = modules_after("import ghostify, ghostify.errors, ghostify.recipe, ghostify.tables")
    assert loaded.isdisjoint(HEAVY)


def test_a_network_without_torchvision_does_not_wait_for_it():
    """Importing it takes as long as importing torch."""
    loaded = modules_after("from ghostify.cli import main; sys.argv = ['ghostify', 'scan', 'ghostify:resnet8']; main()")
    assert "torch" in loaded and "torchvision" not in loaded
