"""AOTInductor: a program compiled to machine code for this kind of processor, which needs no Python to run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ghostify.exporting.formats.programs import program
from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.portable import Portable
from ghostify.runtimes import pinned_threads
from ghostify.runtimes.in_torch import require_compiler


class Aoti(Format):
    """A package with a shared library and its weights, for PyTorch in Python or C++ on processors like this one."""

    name = "aoti"
    suffix = ".aoti.pt2"  # torch wants a package to end so
    runs_on = "AOTInductor"
    script = """
from pathlib import Path
import torch
network = torch._inductor.aoti_load_package(str(Path(__file__).with_name("{file}")))
outputs = network(*{tensors})
print([tuple(output.shape) for output in outputs])
"""

    def version(self) -> str:
        return torch.__version__

    def _write(self, network: Portable, file: Path) -> None:
        from torch._inductor import aoti_compile_and_package

        try:
            aoti_compile_and_package(program(network), package_path=str(file))
        except Exception as problem:
            require_compiler(problem)
            raise

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        from torch._inductor import aoti_load_package

        network = aoti_load_package(str(file), run_single_threaded=False)

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            # Its code takes it for granted that maps lie as those of the example did.
            rows = [tensor.contiguous() for tensor in tensors]
            with pinned_threads(threads), torch.no_grad():
                return tuple(network(*rows))

        return run
