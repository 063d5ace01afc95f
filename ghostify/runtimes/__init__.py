"""What runs a network: PyTorch as it is or compiled, ONNX Runtime, OpenVINO, behind one way to call them."""

from ghostify.runtimes.files import FileRuntime, Port
from ghostify.runtimes.in_onnxruntime import OnnxRuntime
from ghostify.runtimes.in_openvino import OpenVino
from ghostify.runtimes.in_torch import Compiled, Eager
from ghostify.runtimes.protocol import Runtime, Session
from ghostify.runtimes.registry import RUNTIMES, runtime
from ghostify.runtimes.threads import pinned_threads

__all__ = [
    "RUNTIMES",
    "Compiled",
    "Eager",
    "FileRuntime",
    "OnnxRuntime",
    "OpenVino",
    "Port",
    "Runtime",
    "Session",
    "pinned_threads",
    "runtime",
]
