"""A program of ``torch.export``: a graph of torch's own operations, for torch of the same version or a later one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ghostify.exporting.formats.programs import program
from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.portable import Portable
from ghostify.runtimes import pinned_threads


class TorchExport(Format):
    """One file, run by PyTorch, operation by operation or through ``torch.compile``."""

    name = "torch-export"
    suffix = ".pt2"
    runs_on = "PyTorch"
    script = """
from pathlib import Path
import torch
network = torch.export.load(Path(__file__).with_name("{file}")).module()
outputs = network(*{tensors})
print([tuple(output.shape) for output in outputs])
"""

    def version(self) -> str:
        return torch.__version__

    def _write(self, network: Portable, file: Path) -> None:
        torch.export.save(program(network), file)

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        network = torch.export.load(file).module()

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            with pinned_threads(threads), torch.no_grad():
                return tuple(network(*tensors))

        return run
