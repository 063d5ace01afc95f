"""Modules as other engines run them, each on one thread, behind ``nn.Module``'s call.

ONNX Runtime needs ``pip install onnx onnxruntime onnxscript``, OpenVINO ``pip install openvino``.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

ENGINES = ("eager", "onnxruntime", "openvino")


class OnnxRuntime(nn.Module):
    """A module as ONNX Runtime runs it."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(exported(module, example), options, ["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Any:
        return self.session.run(None, {self.input: x.numpy()})


class OpenVino(nn.Module):
    """A module as OpenVINO runs it, in 32-bit floats."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        super().__init__()
        import openvino

        core = openvino.Core()
        model = core.read_model(io.BytesIO(exported(module, example)))
        config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self.request = core.compile_model(model, "CPU", config).create_infer_request()

    def forward(self, x: Tensor) -> Any:
        return self.request.infer([x.numpy()], share_inputs=True, share_outputs=True)


def exported(module: nn.Module, example: Tensor) -> bytes:
    """``module`` as an ONNX file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (example,), file, dynamo=False)
    return file.getvalue()


def runnable(module: nn.Module, example: Tensor, engine: str) -> nn.Module:
    """``module`` as the engine of that name runs it."""
    if engine == "eager":
        return module
    return OnnxRuntime(module, example) if engine == "onnxruntime" else OpenVino(module, example)
