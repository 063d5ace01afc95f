"""``export``: a network → a file that its own runtime runs, and the proof that it is the same network.

the network → its inference form → ready for a file → written under another name → run beside the network → its name
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.arguments import as_path, example_input, network, or_none, takes
from ghostify.batches import Batch
from ghostify.errors import ExportError, GhostifyError
from ghostify.exporting.diverging import first_divergence
from ghostify.exporting.formats import Runner
from ghostify.exporting.manifest import install, require_free
from ghostify.exporting.parity import OPEN_BATCHES, Parity, check
from ghostify.exporting.portable import AsFile, Portable, in_type, portable
from ghostify.exporting.quantizing import Quantized
from ghostify.exporting.result import Exported, Origin
from ghostify.exporting.samples import LEAST, Samples, noise, samples_in
from ghostify.exporting.script import script_for
from ghostify.exporting.specs import specs, specs_of_outputs
from ghostify.exporting.wanted import Wanted, wanted
from ghostify.ghosts import CGhost, GGhostStage
from ghostify.inference import Optimized, example_for_network, optimize
from ghostify.rewriting import Ghosted
from ghostify.running import undisturbed
from ghostify.tracing import tensors_of_call


def _rewritten_or_network(value: Any) -> Any:
    return value if isinstance(value, Ghosted) else network(value)


@takes(model=_rewritten_or_network, file=as_path("network.onnx", ExportError), example=or_none(example_input))
@undisturbed()
def export(
    model: nn.Module | Ghosted,
    file: str | Path,
    *,
    to: str = "onnx",
    example: Any = None,
    images: Batch | None = None,
    labels: Tensor | None = None,
    calibration: Batch | None = None,
    dynamic: str = "",
    precision: str = "fp32",
    half_io: bool = False,
    opset: int | None = None,
    form: str = "inference",
) -> Exported:
    """Write a network to a file of the format ``to``, and check in the file's own runtime that it is the same network.

    ``to`` is onnx, openvino, executorch, torch-export, torchscript or aoti.  The network is written in its inference
    form, or with ``form="training"`` layer by layer as it is, in eval mode both times; it itself stays as it is.
    ``example`` is one input, where nothing says what it takes.  ``images`` are samples that outputs are compared on
    (noise without), with ``labels`` by accuracy, too.  ``dynamic`` leaves sizes open: ``"batch"``, or ``"size"``
    (height and width, too).
    ``precision`` is that of the file, which takes and gives 32-bit floats all the same unless ``half_io``; int8 is
    calibrated on the samples of ``calibration``, training images.

    Beside the file come ``FILE.json``, which says what it is, and ``FILE.py``, a few lines that run it.  A file that is
    there is replaced if it is an export itself, as it was written.

    Raises ``RecipeError`` for what there is not, ``ExportError`` where the network cannot be written, where the file
    would not be the same network (then none is left under its name), or where something else has the name.
    """
    asked = wanted(to, dynamic, precision, half_io, opset)
    if example is None:
        example = example_for_network(model if isinstance(model, Ghosted) else None, network(model))
    samples = None if images is None else Samples(_in_order_of(example, images), "images", True, labels)
    trained = None if calibration is None else _in_order_of(example, calibration)
    return exported(model, Path(file), asked, example=example, samples=samples, calibration=trained, form=form)


def exported(
    model: nn.Module | Ghosted,
    file: Path,
    asked: Wanted,
    *,
    example: Any,
    samples: Samples | None = None,
    calibration: Batch | None = None,
    form: str = "inference",
    origin: Origin | None = None,
) -> Exported:
    """``export`` of what was checked already, with the samples and the origin of a run."""
    asked.require_ending(file)
    require_free(file)
    written, done, notes = _to_write(model, example, form)
    ready, quantized = _ready(written, example, asked, calibration)
    with _beside(file) as folder:
        asked.format.write(ready, folder / file.name)
        found = _checked(asked, folder / file.name, network(model), ready, example, samples or noise(ready.example))
        if not found.passed:
            raise ExportError(f"{file.name!r} was not kept, because it is not the same network: {found.reason}.")
        notes += (*_reordered(written), *asked.format.notes(folder / file.name))
        made = _told(file, folder, network(model), ready, asked, found).model_copy(
            update={"form": done, "notes": notes, "origin": origin, "quantized": quantized}
        )
        shapes = tuple(tuple(tensor.shape) for tensor in ready.example)
        return install(folder, made, script_for(asked.format, made, shapes))


def _in_order_of(example: Any, images: Batch) -> tuple[Tensor, ...]:
    """The tensors of ``images`` in the order of the example's, which those with names may stand in another."""
    if isinstance(example, Mapping) and isinstance(images, Mapping):
        if missing := [name for name in example if name not in images]:
            raise ExportError(f"The images lack the input {missing[0]!r}, which the example has.")
        images = {name: images[name] for name in example}
    return tuple(tensors_of_call(images))


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """A folder beside a file, which is gone afterwards: what is written there can take its name in one step."""
    try:
        with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
            yield Path(folder)
    except OSError as problem:
        raise ExportError(f"{str(file)!r} cannot be written: {problem.strerror}.") from None


def _to_write(model: nn.Module | Ghosted, example: Any, form: str) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The network in the form asked for, which form that is, and what there is to say of it."""
    if isinstance(model, Optimized):
        return model.module, "inference", ()
    if form == "training":
        return network(model), form, ()
    try:
        return optimize(model, example).module, form, ()
    except GhostifyError as problem:
        note = f"The network is written as it is, because it has no inference form: {problem}"
        return network(model), "training", (note,)


def _ready(
    module: nn.Module, example: Any, asked: Wanted, calibration: Batch | None
) -> tuple[Portable, Quantized | None]:
    """The network as a file holds it and, of one in int8, what was done for that."""
    ready = portable(
        module,
        example,
        dynamic=asked.dynamic,
        precision=asked.precision,
        half_io=asked.half_io,
        opset=asked.opset,
    )
    return ready.calibrated(calibration) if asked.precision == "int8" else (ready, None)


def _checked(asked: Wanted, file: Path, module: nn.Module, ready: Portable, example: Any, samples: Samples) -> Parity:
    """The file beside the network as it was handed over; with the first layer that differs, where they do."""
    batches = OPEN_BATCHES if ready.dynamic else (max(samples_in(ready.example), 1),)
    switches = (True, False) if asked.format.can_leave_unoptimized else (True,)
    runners = {optimized: _fed(asked.format.open(file, optimized=optimized), ready) for optimized in switches}
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
    if found.failed is None or ready.precision == "int8":  # in which every layer differs a little
        return found
    first = first_divergence(ready, asked.format, samples.first(LEAST), found.failed, found.precision)
    return found.model_copy(update={"first": first})


def _reordered(module: nn.Module) -> tuple[str, ...]:
    """What there is to say of maps that the file puts in order as it runs."""
    orders = [part for part in module.modules() if isinstance(part, CGhost | GGhostStage) and part.order is not None]
    if not orders:
        return ()
    which = "one layer puts its maps" if len(orders) == 1 else f"{len(orders)} layers put their maps"
    return (
        f"In this file {which} in order as it runs, by a gather, which accelerators may run apart from the rest; a "
        "network fitted with --set fit.arrange=reorder has none.",
    )


def _fed(run: Runner, ready: Portable) -> Runner:
    """The file, given 32-bit floats whatever it takes."""
    return run if not ready.half_io else lambda *tensors: run(*[in_type(one, torch.float16) for one in tensors])


def _told(file: Path, folder: Path, module: nn.Module, ready: Portable, asked: Wanted, found: Parity) -> Exported:
    format = asked.format
    return Exported(
        file=file,
        format=format.name,
        runtime=f"{format.runs_on} {format.version()}",
        precision=ready.precision,
        dynamic=ready.dynamic,
        opset=format.opset(asked.opset),
        inputs=specs(ready.inputs, ready.arguments, ready.open_sizes),
        outputs=specs_of_outputs(ready),
        network=type(module).__name__,
        form="inference",
        params=sum(parameter.numel() for parameter in ready.module.parameters()),
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        sha256={},
        versions={name: metadata.version(name) for name in ("ghostify", "torch", *format.packages)},
        parity=found,
    )
