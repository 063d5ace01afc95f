"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ghostify.exporting.formats.programs import program
from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.portable import Portable
from ghostify.exporting.quantizing import by_onnxruntime
from ghostify.runtimes.in_onnxruntime import opened

OPSET = 18
"""The oldest that torch's exporter writes, which most runtimes read.  A newer one gains nothing: ONNX Runtime puts as
many reorders of maps into the graph (11 in that of a ghosted ResNet18) with 18, 20, 21 and 23.
"""
OLDEST, NEWEST = 18, 23
"""Between those that torch's exporter writes and the newest that it knows.  Below, it rewrites the file, and keeps 18
where that fails.
"""


class Onnx(Format):
    """One file, weights included."""

    name = "onnx"
    suffix = ".onnx"
    runs_on = "ONNX Runtime"
    extra = "onnxruntime"
    packages = ("onnx", "onnxruntime", "onnxscript")
    precisions = ("fp32", "fp16", "int8")
    can_leave_unoptimized = True
    opsets = range(OLDEST, NEWEST + 1)
    script = """
from pathlib import Path
import numpy, onnxruntime
network = onnxruntime.InferenceSession(Path(__file__).with_name("{file}"), providers=["CPUExecutionProvider"])
outputs = network.run(None, {arrays})
print({{port.name: output.shape for port, output in zip(network.get_outputs(), outputs)}})
"""

    def opset(self, asked: int | None) -> int | None:
        return asked or OPSET

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def _write(self, network: Portable, file: Path) -> None:
        if network.calibration is None:
            return write_onnx(network, file)
        with TemporaryDirectory() as folder:
            floats = Path(folder) / "floats.onnx"
            write_onnx(network, floats)
            by_onnxruntime.quantize(floats, file, network.inputs, network.calibration.batches(), network.kept)

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        session = opened(file, threads, optimized)
        names = [one.name for one in session.get_inputs()]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
            return tuple(map(torch.from_numpy, session.run(None, dict(zip(names, arrays, strict=True)))))

        return run


def write_onnx(network: Portable, file: Path) -> None:
    """By torch's newer exporter, from a program.

    The older one traces, so that whatever code computes from a size is a constant in its file, open size or not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        made: Any = torch.onnx.export(
            program(network),
            (),
            input_names=network.inputs,
            output_names=network.outputs,
            dynamic_shapes=(network.open_sizes,) if network.dynamic else None,
            opset_version=network.opset or OPSET,
            dynamo=True,
            verbose=False,
        )
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # of each node, the lines of code that it came of: more than small weights take
    made.save(file, external_data=False)
