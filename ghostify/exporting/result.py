"""``Exported``: a file that a network was written to, as a value, which is also what its manifest holds."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ghostify.exporting.parity import Parity
from ghostify.exporting.quantizing import Quantized
from ghostify.tables import Table, quantity


class TensorSpec(BaseModel):
    """An input or output of a file: its name, its sizes (a name for one that is open), and its type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape)) or 'scalar'} ({self.dtype})"


class Origin(BaseModel):
    """Where a network came from: its run folder or source, and the sha256 of the run's weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    weights: str = ""


class Exported(BaseModel):
    """A file that holds a network: where it came from, what it takes, and how near its outputs are to the network's.

    Printing it shows a table; its JSON lies beside the file as ``FILE.json``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    format: str
    runtime: str
    """What runs it, with its version."""
    precision: str
    dynamic: str
    opset: int | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    network: str
    """The class of the network."""
    form: str
    """``inference``, or ``training`` where it is written as it is."""
    params: int
    bytes: int
    sha256: dict[str, str]
    """Of the file, and of what belongs to it."""
    origin: Origin | None = None
    versions: dict[str, str]
    parity: Parity
    quantized: Quantized | None = None
    """What a file in int8 was made with."""
    notes: tuple[str, ...] = ()

    @property
    def script(self) -> Path:
        """The few lines beside the file that run it."""
        return self.file.with_name(f"{self.file.name}.py")

    @property
    def manifest(self) -> Path:
        """The JSON beside the file."""
        return self.file.with_name(f"{self.file.name}.json")

    def table(self) -> Table:
        """A line for each fact."""
        sizes = {"": "all fixed", "batch": "the batch is open", "size": "batch, height and width are open"}
        rows = [
            ["format", f"{self.format}, run by {self.runtime}"],
            ["network", f"{self.network} in its {self.form} form, {quantity(self.params)} parameters"],
            ["precision", self.precision],
            ["size", f"{self.bytes / 1e6:.2f} MB"],
            ["inputs", ", ".join(map(str, self.inputs))],
            ["outputs", ", ".join(map(str, self.outputs))],
            ["sizes", sizes[self.dynamic]],
            ["parity", self.parity.told],
        ]
        rows += [["int8", str(self.quantized)]] if self.quantized else []
        rows += [["accuracy", str(self.parity.accuracy)]] if self.parity.accuracy else []
        return Table(str(self.file), ["", "what it is"], rows, frozenset({"what it is"}), "\n".join(self.notes))

    def __str__(self) -> str:
        return str(self.table())


def exports_table(found: list[Exported]) -> Table:
    """Files of one run, a line for each."""
    rows = [
        [one.file.name, one.format, one.precision, one.dynamic or "-", f"{one.bytes / 1e6:.2f} MB", one.parity.told]
        for one in found
    ]
    columns = ["exported file", "format", "precision", "open sizes", "size", "parity"]
    return Table("Exported files", columns, rows, frozenset(columns))
