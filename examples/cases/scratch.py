"""A scratch environment for packages that ghostify itself never needs, and the commands of a case study in it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


class Scratch:
    """A folder with packages of its own, besides those of the Python that runs the script, and what a case makes."""

    def __init__(self, folder: Path, packages: Sequence[str]) -> None:
        """Install ``packages`` (without what they depend on: torch is there) the first time."""
        self.folder = folder.resolve()
        libraries = self.folder / "packages"
        if not libraries.is_dir():
            libraries.parent.mkdir(parents=True, exist_ok=True)
            install = ["install", "--quiet", "--no-deps", "--target", str(libraries), *packages]
            subprocess.run([sys.executable, "-m", "pip", *install], check=True)
        path = [str(libraries), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def ghostify(self, command: str) -> float:
        """Run a command of ghostify in the folder, with all that it prints; its seconds."""
        print(f"\n$ ghostify {command}", flush=True)
        return self._run([sys.executable, "-m", "ghostify", *shlex.split(command)])

    def python(self, script: str, *arguments: str) -> float:
        """Run a script that lies beside this one in the folder; its seconds."""
        print(f"\n$ python {shlex.join([script, *arguments])}", flush=True)
        return self._run([sys.executable, str(HERE / script), *arguments])

    def _run(self, command: Sequence[str]) -> float:
        began = time.perf_counter()
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True)
        return time.perf_counter() - began
