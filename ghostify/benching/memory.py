"""The most memory that a network takes while it runs, in a process of its own.

There the network is set up, what setting up needed is given back, the kernel's high-water mark of resident memory is
put down to what is in use, and the network runs.  What is told is that mark, less what the process holds without the
network, all code loaded: weights, maps and workspaces.  On a GPU it is what torch's allocator says.

The mark is Linux's; elsewhere nothing is told.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path

import torch

from ghostify.benching.sources import Source, contender_of
from ghostify.clock import Place
from ghostify.runtimes import pinned_threads

PASSES = 3
_PROCESS = Path("/proc/self")


def peak_bytes(source: Source, place: Place) -> int | None:
    """The memory of a network's passes at a place; None where nothing tells, or where it does not run by itself."""
    asked = json.dumps({"source": source.model_dump(), "place": place.model_dump()})
    command = [sys.executable, "-m", "ghostify.benching.memory"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    with suppress(ValueError, IndexError):
        found = json.loads(done.stdout.splitlines()[-1])
        return found if isinstance(found, int) else None
    return None


def main() -> None:
    """The process of its own: what is asked stands on stdin, the answer in the last line of stdout."""
    asked = json.load(sys.stdin)
    source, place = Source.model_validate(asked["source"]), Place.model_validate(asked["place"])
    print(f"\n{json.dumps(_measured(source, place))}")


def _measured(source: Source, place: Place) -> int | None:
    on_gpu = torch.device(place.device).type == "cuda"
    if not on_gpu and not (_PROCESS / "status").is_file():
        return None
    contender_of(source).session(place)  # once for nothing, which loads the code of the runtime and all others
    _give_back()
    before = _in_use()
    session = contender_of(source).session(place)
    _give_back()
    _put_mark_down(on_gpu)
    with pinned_threads(place.threads), torch.inference_mode():
        for _ in range(PASSES):
            session()
    return torch.cuda.max_memory_allocated() if on_gpu else _status("VmHWM") - before


def _give_back() -> None:
    """Memory that is free goes back to the system, or it would count as in use."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library has another way, or none
        CDLL("libc.so.6").malloc_trim(0)


def _put_mark_down(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        (_PROCESS / "clear_refs").write_text("5")  # see proc(5): the mark becomes what is resident now


def _in_use() -> int:
    return _status("VmRSS") if _PROCESS.is_dir() else 0


def _status(name: str) -> int:
    """A line of the process's status in bytes, which stands there in kibibytes."""
    lines = (_PROCESS / "status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
