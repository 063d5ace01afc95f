"""A scratch folder for a case study: packages that ghostify itself never needs, and commands that run among them."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Scratch:
    """A folder with an environment of its own, which sees the packages of the one that runs the script, too."""

    def __init__(self, folder: Path, packages: Sequence[str], alone: Sequence[str] = ()) -> None:
        """Make the environment, unless it is there.

        ``packages`` are installed with what they depend on, ``alone`` without: what asks for an older torch than the
        one that is there, and runs with this one, too.
        """
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder / "environment"
        self._python = home / "bin" / "python"
        # Modules of the case are found beside this script.
        path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        if not self._python.exists():
            venv.create(home)
            self._see_outer(home)
            self._install(packages)
            self._install(alone, "--no-deps")

    def ghostify(self, command: str) -> float:
        """Run a command of ghostify in the folder; its seconds."""
        words = shlex.split(command)
        return self._step([str(self._python), "-m", "ghostify", *words], shown=["ghostify", *words])

    def python(self, script: str, *arguments: str) -> float:
        """Run a script that lies beside this one in the folder; its seconds."""
        return self._step([str(self._python), str(HERE / script), *arguments], shown=["python", script, *arguments])

    def npm(self, package: str) -> Path:
        """What a package of npm holds, in a folder of its name."""
        home = self.folder / package.replace("/", "-").lstrip("@")
        if not home.is_dir():
            self._step(["npm", "pack", "--silent", package])
            packed = next(self.folder.glob("*.tgz"))
            with tarfile.open(packed) as archive:
                archive.extractall(home, filter="data")
            packed.unlink()
        return home / "package"

    def _see_outer(self, home: Path) -> None:
        own = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
        outer = sysconfig.get_path("purelib")
        # By ``addsitedir``, so that what is installed there in editable form is seen, too.
        Path(own, "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")

    def _install(self, packages: Sequence[str], *options: str) -> None:
        if packages:
            pip = [sys.executable, "-m", "pip", "--python", str(self._python), "install", "-qq"]
            self._step([*pip, *options, *packages], shown=["pip", "install", *options, *packages])

    def _step(self, words: Sequence[str], shown: Sequence[str] = ()) -> float:
        """Run one command, printed before, its time behind it; it ends the script where it fails."""
        print(f"\n$ {shlex.join(shown or words)}", flush=True)
        began, worked = time.perf_counter(), _processor_seconds()
        done = subprocess.run(words, cwd=self.folder, env=self._variables, check=False)
        seconds, worked = time.perf_counter() - began, _processor_seconds() - worked
        print(f"({seconds:.0f} s, {worked:.0f} s of a processor)", flush=True)
        if done.returncode:
            raise SystemExit(done.returncode)
        return seconds


def _processor_seconds() -> float:
    """What all commands until now took of a processor, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
