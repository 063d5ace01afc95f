"""``export``: a network → a file that its own runtime runs, and the proof that it is the same network."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ghostify.arguments import example_input, network, or_none, takes
from ghostify.batches import Batch
from ghostify.errors import ExportError, GhostifyError
from ghostify.exporting.diverging import first_divergence
from ghostify.exporting.formats import Format, format_named
from ghostify.exporting.parity import OPEN_BATCHES, Parity, check
from ghostify.exporting.portable import AsFile, Portable, portable
from ghostify.exporting.result import Exported
from ghostify.exporting.samples import LEAST, Samples, noise, samples_in
from ghostify.inference import Optimized, example_for_network, optimize
from ghostify.rewriting import Ghosted
from ghostify.running import undisturbed
from ghostify.tracing import tensors_of_call


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
            raise ExportError(f"{file.name!r} was not kept, because it is not the same network: {found.reason}.")
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
    """The file beside the network as it was handed over; with the first layer that differs, where they do."""
    samples = Samples(tuple(tensors_of_call(images)), "images", True) if images is not None else noise(ready.example)
    batches = OPEN_BATCHES if ready.dynamic else (max(samples_in(ready.example), 1),)
    switches = (True, False) if format.can_leave_unoptimized else (True,)
    runners = {optimized: format.open(file, optimized=optimized) for optimized in switches}
    as_file = AsFile(module, example)
    found = check(
        as_file,
        runners,
        samples,
        precision=ready.precision,
        batches=batches,
        open_size=ready.dynamic == "size",
        exact=as_file.exact,
    )
    if found.failed is None:
        return found
    first = first_divergence(ready, format, samples.first(LEAST), found.failed, found.precision)
    return found.model_copy(update={"first": first})
