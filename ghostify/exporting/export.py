"""``export``: a network → a file that its own runtime runs, and the proof that it is the same network."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.arguments import example_input, network, or_none, takes
from ghostify.batches import Batch, count
from ghostify.errors import ExportError, GhostifyError
from ghostify.exporting import parity
from ghostify.exporting.formats import Format, format_named
from ghostify.exporting.parity import Parity
from ghostify.exporting.portable import Portable, portable
from ghostify.exporting.result import Exported
from ghostify.inference import Optimized, example_for_network, optimize
from ghostify.rewriting import Ghosted
from ghostify.running import evaluating, undisturbed
from ghostify.runtimes.exporting import Flat
from ghostify.tracing import call_arguments, tensors_of_call

BATCHES = (1, 2, 7)
"""Sizes of batches that a file whose batch is open is run at."""
NOISE = 32
"""Samples of noise that stand in for images."""


def _rewritten_or_network(value: Any) -> Any:
    return value if isinstance(value, Ghosted) else network(value)


@takes(model=_rewritten_or_network, example=or_none(example_input))
@undisturbed()
def export(
    model: nn.Module | Ghosted,
    file: str | Path,
    *,
    to: str = "onnx",
    example: Any = None,
    images: Batch | None = None,
    dynamic: str = "",
    precision: str = "fp32",
    opset: int | None = None,
) -> Exported:
    """Write a network to a file of the format ``to``, in its inference form, and check that it gives the same.

    ``images`` are samples that outputs are compared on; without them noise is.  The network itself stays as it is.
    Raises ``ExportError`` where the file would not be the same network; then no file is left.
    """
    format, file = format_named(to), Path(file)
    module = network(model)
    ghosted = model if isinstance(model, Ghosted) else None
    example = example_for_network(ghosted, module) if example is None else example
    ready = portable(_to_run(model, example), example, dynamic=dynamic, precision=precision, opset=opset)
    with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        written = Path(folder) / file.name
        format.write(ready, written)
        found = _checked(format, written, module, ready, example, images)
        if not found.passed:
            raise ExportError(f"{file.name!r} was not kept, because it is not the same network: {found}.")
        size = sum(one.stat().st_size for one in Path(folder).iterdir())
        for one in Path(folder).iterdir():
            one.replace(file.parent / one.name)
    return Exported(
        file=file,
        format=format.name,
        precision=precision,
        dynamic=dynamic,
        inputs=ready.inputs,
        outputs=ready.outputs,
        bytes=size,
        parity=found,
    )


def _to_run(model: nn.Module | Ghosted, example: Any) -> nn.Module:
    """The network in its inference form; as it is where it cannot be brought into it."""
    if isinstance(model, Optimized):
        return model.module
    try:
        return optimize(model, example).module
    except GhostifyError:
        return network(model)


def _checked(
    format: Format, file: Path, module: nn.Module, ready: Portable, example: Any, images: Batch | None
) -> Parity:
    """The file beside the network as it was handed over, in eval mode."""
    args, kwargs = call_arguments(example)
    samples = tuple(tensors_of_call(images)) if images is not None else _noise(ready, example)
    batches = BATCHES if ready.dynamic else (max(count(example), 1),)
    switches = (True, False) if format.can_leave_unoptimized else (True,)
    runners = {optimized: format.open(file, optimized=optimized) for optimized in switches}
    with evaluating(module):
        return parity.check(
            Flat(module, args, kwargs),
            runners,
            samples,
            precision=ready.precision,
            batches=batches,
            real=images is not None,
        )


def _noise(ready: Portable, example: Any) -> tuple[Tensor, ...]:
    """Normal noise, and of whole numbers the example's own."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for tensor in ready.example:
        many = (NOISE, *tensor.shape[1:])
        floats = tensor.is_floating_point()
        made.append(torch.randn(many, generator=generator) if floats else tensor[:1].expand(many))
    return tuple(made)
