"""OpenVINO, on the CPU."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ghostify.runtimes.exporting import Feeds, export
from ghostify.runtimes.protocol import Runtime, Session


class OpenVino(Runtime):
    """The module exported, and run by OpenVINO in 32-bit floats, for short latency."""

    name = "openvino"
    packages = ("onnx", "onnxscript", "openvino")

    def version(self) -> str:
        import openvino

        return str(openvino.__version__)

    def _session(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Session:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            feeds = export(module, args, kwargs, file)
            return session_of(open_file(file, threads), feeds)


def open_file(file: Path, threads: int) -> Any:
    """A ``CompiledModel`` of an ONNX file, or of OpenVINO's own (.xml beside .bin)."""
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else it takes 16-bit floats where the processor has them
        "PERFORMANCE_HINT": "LATENCY",
    }
    return _core().compile_model(_core().read_model(str(file)), "CPU", config)


@cache
def _core() -> Any:
    """OpenVINO's own state, made once: that takes ten times as long as reading a layer."""
    import openvino

    return openvino.Core()


def session_of(compiled: Any, feeds: Feeds) -> Session:
    """A pass of a ``CompiledModel`` on a copy of ``feeds``; inputs that it has dropped are not fed."""
    import openvino

    request = compiled.create_infer_request()
    for port in compiled.inputs:
        (array,) = (feeds[name] for name in port.names if name in feeds)
        request.set_tensor(port, openvino.Tensor(array))
    # Outputs are read where they lie, as a program that serves requests would.
    return partial(request.infer, share_outputs=True)
