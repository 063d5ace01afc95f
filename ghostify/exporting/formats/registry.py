"""The formats by name."""

from __future__ import annotations

from ghostify.errors import RecipeError, did_you_mean
from ghostify.exporting.formats.aoti import Aoti
from ghostify.exporting.formats.executorch import ExecuTorch
from ghostify.exporting.formats.onnx import Onnx
from ghostify.exporting.formats.openvino import OpenVino
from ghostify.exporting.formats.protocol import Format
from ghostify.exporting.formats.torch_export import TorchExport
from ghostify.exporting.formats.torchscript import TorchScript

FORMATS: dict[str, Format] = {
    one.name: one for one in (Onnx(), OpenVino(), ExecuTorch(), TorchExport(), TorchScript(), Aoti())
}


def format_named(name: str) -> Format:
    """The format of that name, with all that it needs.

    Raises ``RecipeError`` when there is none of the name, or when a package that it needs is not installed.
    """
    if name not in FORMATS:
        raise RecipeError(
            f"There is no format {name!r}; give one of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
        )
    found = FORMATS[name]
    found.require_packages()
    return found
