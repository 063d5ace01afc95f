"""A few lines that run a file where there is no ghostify: what its format has for that, with the file's own inputs."""

from __future__ import annotations

from ghostify.exporting.formats import Format
from ghostify.exporting.result import Exported, TensorSpec

_OPEN = {"batch": 1}
"""What a size that is open is in the example of a script; others are as in the example that was exported."""


def script_for(format: Format, exported: Exported, example: tuple[tuple[int, ...], ...]) -> str:
    """The script of a file; ``example`` has sizes of its inputs, for those that are open."""
    shapes = [_shape(spec, sizes) for spec, sizes in zip(exported.inputs, example, strict=True)]
    specs = list(zip(exported.inputs, shapes, strict=True))
    arrays = ", ".join(f'"{spec.name}": {_array(spec, shape)}' for spec, shape in specs)
    tensors = ", ".join(_tensor(spec, shape) for spec, shape in specs)
    lines = format.script.format(file=exported.file.name, arrays=f"{{{arrays}}}", tensors=f"[{tensors}]")
    return f"# Runs {exported.file.name} ({exported.runtime}) on made-up inputs.\n{lines.lstrip()}"


def _shape(spec: TensorSpec, sizes: tuple[int, ...]) -> tuple[int, ...]:
    told = zip(spec.shape, sizes, strict=True)
    return tuple(one if isinstance(one, int) else _OPEN.get(one, size) for one, size in told)


def _array(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    """Noise, or of whole numbers ones, which are places in most tables."""
    if spec.dtype.startswith("float"):
        return f'numpy.random.standard_normal({shape}).astype("{spec.dtype}")'
    return f'numpy.ones({shape}, "{spec.dtype}")'


def _tensor(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    make = "randn" if spec.dtype.startswith("float") else "ones"
    return f"torch.{make}({shape}, dtype=torch.{spec.dtype})"
