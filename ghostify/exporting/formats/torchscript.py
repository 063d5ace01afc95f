"""TorchScript, for programs in C++ and phones that load it; torch itself has moved on to ``torch.export``."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.portable import Portable
from ghostify.runtimes import pinned_threads


class TorchScript(Format):
    """One file: a recorded run with its weights as constants."""

    name = "torchscript"
    suffix = ".torchscript"
    runs_on = "PyTorch"
    can_leave_unoptimized = True
    script = """
from pathlib import Path
import torch
network = torch.jit.load(Path(__file__).with_name("{file}"))
outputs = network(*{tensors})
print([tuple(output.shape) for output in outputs])
"""

    def version(self) -> str:
        return torch.__version__

    def _write(self, network: Portable, file: Path) -> None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated, and of sizes that become constants
            # What it gives is compared by us, with other numbers and at other sizes.
            traced = torch.jit.trace(network.computing, network.arguments, check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), file)

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        from torch.jit import optimized_execution  # type: ignore[attr-defined]  # documented, and not in its stubs

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated
            network = torch.jit.load(file)

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            with pinned_threads(threads), torch.no_grad(), optimized_execution(optimized):
                return tuple(network(*tensors))

        return run
