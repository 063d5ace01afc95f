"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ghostify.runtimes.exporting import Feeds, export
from ghostify.runtimes.protocol import Runtime, Session

ERRORS_ONLY = 3
"""Of its log: what it warns of (operations it runs on another path) is not for who times it."""


class OnnxRuntime(Runtime):
    """The module exported, and run by ONNX Runtime with all its optimizations."""

    name = "onnxruntime"
    packages = ("onnx", "onnxruntime", "onnxscript")

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def _session(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Session:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            feeds = export(module, args, kwargs, file)
            return session_of(open_file(file, threads), feeds)


def open_file(file: Path, threads: int) -> Any:
    """An ``InferenceSession`` of an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = ERRORS_ONLY
    return onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])


def session_of(opened: Any, feeds: Feeds) -> Session:
    """A pass of an ``InferenceSession`` on ``feeds``; inputs that the file has dropped are not fed."""
    taken = {one.name for one in opened.get_inputs()}
    return partial(opened.run, None, {name: array for name, array in feeds.items() if name in taken})
