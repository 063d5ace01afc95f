"""ONNX, run by ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.portable import Portable

OPSET = 18


class Onnx(Format):
    """One file, weights included; opset 18 unless another is asked for."""

    name = "onnx"
    suffix = ".onnx"
    runs_on = "ONNX Runtime"
    extra = "onnxruntime"
    packages = ("onnx", "onnxruntime", "onnxscript")
    can_leave_unoptimized = True

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def _write(self, network: Portable, file: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own deprecations
            torch.onnx.export(
                network.module,
                network.example,
                file,
                input_names=network.inputs,
                output_names=network.outputs,
                opset_version=network.opset or OPSET,
                dynamic_shapes=network.open_sizes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        opened = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        names = [one.name for one in opened.get_inputs()]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
            return tuple(map(torch.from_numpy, opened.run(None, dict(zip(names, arrays, strict=True)))))

        return run
