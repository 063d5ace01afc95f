"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ghostify.runtimes.files import Feeds, FileRuntime, Port
from ghostify.runtimes.protocol import Session

ERRORS_ONLY = 3
"""Of its log: what it warns of (operations it runs on another path) is not for who times it."""
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
"""Those that NumPy has another name for."""


class OnnxRuntime(FileRuntime):
    """The network as ONNX Runtime runs it, with all its optimizations."""

    name = "onnxruntime"
    packages = ("onnx", "onnxruntime", "onnxscript")
    suffixes = (".onnx",)

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def _ports(self, file: Path) -> tuple[Port, ...]:
        return tuple(_port(one) for one in opened(file, 1).get_inputs())

    def _open(self, file: Path, feeds: Feeds, threads: int) -> Session:
        session = opened(file, threads)
        taken = {one.name for one in session.get_inputs()}
        return partial(session.run, None, {name: array for name, array in feeds.items() if name in taken})


def opened(file: Path, threads: int, optimized: bool = True) -> Any:
    """An ``InferenceSession`` of a file; with ``optimized=False`` its graph is run as it stands there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = ERRORS_ONLY
    return onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])


def _port(one: Any) -> Port:
    """An input as ONNX Runtime tells it: a size that is open has a name, or none."""
    sizes = tuple(size if isinstance(size, int) else None for size in one.shape)
    return Port(one.name, sizes, _DTYPES.get(one.type, one.type.removeprefix("tensor(").removesuffix(")")))
