"""ExecuTorch, whose XNNPACK delegate runs networks on phones and other small machines.

XNNPACK runs as many operations in one piece as it knows; each one that it does not know between them ends a piece, and
ExecuTorch's portable kernels run that one, slowly.  So a file tells of how many pieces it is, and what lies between.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.export import ExportedProgram

from ghostify.exporting.formats.programs import program
from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.portable import Portable
from ghostify.exporting.quantizing import by_torchao

_OWN = ("executorch_prim::",)
"""Operations on numbers that ExecuTorch itself runs, such as what a size is."""


class Pieces(NamedTuple):
    """What runs the operations of a file."""

    delegated: int
    """Pieces that XNNPACK runs."""
    others: dict[str, int]
    """Operations that portable kernels run, with how many there are of each."""

    def __str__(self) -> str:
        count = f"{self.delegated} {'piece' if self.delegated == 1 else 'pieces'}"
        if not self.others:
            return f"XNNPACK runs all of it in {count}"
        others = ", ".join(f"{name} ({count})" for name, count in self.others.items())
        return f"XNNPACK runs it in {count}; what it does not run: {others}"


class ExecuTorch(Format):
    """One file for ExecuTorch with XNNPACK."""

    name = "executorch"
    suffix = ".pte"
    runs_on = "ExecuTorch"
    extra = "executorch"
    packages = ("executorch", "torchao")
    precisions = ("fp32", "int8")
    dynamics = ("",)
    script = """
from pathlib import Path
import torch, executorch.runtime
network = executorch.runtime.Runtime.get().load_program(Path(__file__).with_name("{file}")).load_method("forward")
outputs = network.execute({tensors})
print([tuple(output.shape) for output in outputs])
"""

    def version(self) -> str:
        return version("executorch")

    def notes(self, file: Path) -> tuple[str, ...]:
        return (str(pieces(file)),)

    def _write(self, network: Portable, file: Path) -> None:
        file.write_bytes(_lowered(_in_int8(network) if network.calibration else program(network)))

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime, Verification

        portable_lib._unsafe_reset_threadpool(threads)
        network = Runtime.get().load_program(file, verification=Verification.Minimal).load_method("forward")

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(output.clone() for output in network.execute([tensor.contiguous() for tensor in tensors]))

        return run


def pieces(file: Path) -> Pieces:
    """What runs the operations of a .pte file, counted in the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.exir._serialize._program import deserialize_pte_binary

    (plan,) = deserialize_pte_binary(file.read_bytes()).program.execution_plan
    calls = [one.instr_args for chain in plan.chains for one in chain.instructions]
    delegated = sum(hasattr(call, "delegate_index") for call in calls)
    names = [plan.operators[call.op_index].name for call in calls if hasattr(call, "op_index")]
    return Pieces(delegated, dict(Counter(name for name in names if not name.startswith(_OWN))))


def _in_int8(network: Portable) -> ExportedProgram:
    assert network.calibration is not None, "prepared with it"
    made = by_torchao.quantized(program(network), network.calibration.batches(), network.kept)
    return program(replace(network, module=made))


def _lowered(made: ExportedProgram) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations, when it is imported, too
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered: Any = to_edge_transform_and_lower(made, partitioner=[XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)
