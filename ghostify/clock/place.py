"""Where time is measured: a runtime on a device of this machine, and what its times depend on besides the network."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from ghostify.runtimes import runtime

_CPUINFO = Path("/proc/cpuinfo")


class Place(BaseModel):
    """A runtime on a device, with so many CPU threads and samples in a forward pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str = "eager"
    device: str = "cpu"
    threads: int = 1
    batch: int = 1

    def __str__(self) -> str:
        where = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else self.device
        return f"{self.runtime} on {where}"

    @property
    def depends_on(self) -> dict[str, str]:
        """What a time that is kept holds for, but for the piece: hardware, runtime, versions and threads."""
        return {
            "hardware": hardware(self.device),
            "runtime": self.runtime,
            "version": runtime(self.runtime).version(),
            "torch": torch.__version__,  # which exports a network, and lays out its weights
            "threads": str(self.threads),
        }


@cache
def hardware(device: str) -> str:
    """The processor or the GPU, by its model and, of a processor, a digest of what it can do."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    told = _cpuinfo()
    # a virtual machine may name its processor in two words, and hide from it what others of that name can do
    features = hashlib.sha256(told.get("flags", "").encode()).hexdigest()[:8]
    return f"{told.get('model name') or platform.processor() or platform.machine()}, features {features}"


def _cpuinfo() -> dict[str, str]:
    """What the system tells of its first processor; nothing where it tells in another way."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    parted = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in parted}
