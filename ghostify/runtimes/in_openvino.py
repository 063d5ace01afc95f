"""OpenVINO, on the CPU."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

from ghostify.runtimes.files import Feeds, FileRuntime, Port
from ghostify.runtimes.protocol import Session


class OpenVino(FileRuntime):
    """The network as OpenVINO runs it, in 32-bit floats and for short latency."""

    name = "openvino"
    packages = ("onnx", "onnxscript", "openvino")
    suffixes = (".xml", ".onnx")

    def version(self) -> str:
        import openvino

        return str(openvino.__version__)

    def _ports(self, file: Path) -> tuple[Port, ...]:
        return tuple(_port(one) for one in _core().read_model(str(file)).inputs)

    def _open(self, file: Path, feeds: Feeds, threads: int) -> Session:
        network = _core().read_model(str(file))
        given = {port: feeds[name] for port in network.inputs for name in port.names if name in feeds}
        if any(port.partial_shape.is_dynamic for port in given):
            network.reshape({port: array.shape for port, array in given.items()})  # open sizes are slow
        return _pass(_core().compile_model(network, "CPU", _config(threads)), feeds)


@cache
def _core() -> Any:
    """OpenVINO's own state, made once: that takes ten times as long as reading a layer."""
    import openvino

    return openvino.Core()


def compiled(file: Path, threads: int) -> Any:
    """A ``CompiledModel`` of a file, its open sizes left open."""
    return _core().compile_model(str(file), "CPU", _config(threads))


def _config(threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # else it takes 16-bit floats where the processor has them
        "PERFORMANCE_HINT": "LATENCY",
    }


def _pass(compiled: Any, feeds: Feeds) -> Session:
    """A pass of a ``CompiledModel`` on a copy of ``feeds``, handed over once."""
    import openvino

    request = compiled.create_infer_request()
    for port in compiled.inputs:
        (array,) = (feeds[name] for name in port.names if name in feeds)
        request.set_tensor(port, openvino.Tensor(array))
    # Outputs are read where they lie, as a program that serves requests would.
    return partial(request.infer, share_outputs=True)


def _port(one: Any) -> Port:
    sizes = tuple(size.get_length() if size.is_static else None for size in one.partial_shape)
    return Port(one.any_name, sizes, str(one.element_type.to_dtype()))
