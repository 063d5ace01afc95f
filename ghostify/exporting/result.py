"""``Exported``: a file that a network was written to, as a value."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ghostify.exporting.parity import Parity


class Exported(BaseModel):
    """A file that holds a network, and how near it is to the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    format: str
    precision: str
    dynamic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    parity: Parity

    def __str__(self) -> str:
        return f"{self.file} ({self.format}, {self.precision}, {self.bytes / 1e6:.1f} MB): {self.parity.told}"
