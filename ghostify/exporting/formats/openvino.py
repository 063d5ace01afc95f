"""OpenVINO's own format, run by OpenVINO: the graph in an .xml file, and the weights in a .bin file beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ghostify.exporting.formats.onnx import write_onnx
from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.portable import Portable
from ghostify.exporting.quantizing import by_nncf, by_onnxruntime
from ghostify.runtimes.in_openvino import compiled


class OpenVino(Format):
    """Made from ONNX, so that names and sizes are those of that file.  In fp16 weights are kept, not computed with:
    OpenVINO computes in what the device does best.
    """

    name = "openvino"
    suffix = ".xml"
    runs_on = "OpenVINO"
    extra = "openvino"
    packages = ("onnx", "onnxscript", "openvino")
    precisions = ("fp32", "fp16", "int8")
    script = """
from pathlib import Path
import numpy, openvino
network = openvino.compile_model(Path(__file__).with_name("{file}"), "CPU")
outputs = network({arrays})
print({{port.any_name: outputs[port].shape for port in network.outputs}})
"""

    def version(self) -> str:
        import openvino

        return str(openvino.__version__)

    def _write(self, network: Portable, file: Path) -> None:
        import openvino

        if network.calibration is not None:
            by_nncf.require_nncf()
        with TemporaryDirectory() as folder:
            onnx = Path(folder) / "network.onnx"
            write_onnx(replace(network, precision="fp32"), onnx)
            made = openvino.convert_model(onnx)
            if network.calibration is not None:
                kept = by_onnxruntime.nodes_of(onnx, network.kept)
                made = by_nncf.quantized(made, network.calibration.batches(), kept)
            # Unless told otherwise it makes 16-bit floats of all weights.
            openvino.save_model(made, file, compress_to_fp16=network.precision == "fp16")

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        network = compiled(file, threads)

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = network([tensor.detach().contiguous().numpy() for tensor in tensors])
            return tuple(torch.from_numpy(given[port].copy()) for port in network.outputs)

        return run
