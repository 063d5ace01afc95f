"""Files that a network was exported to: ONNX's, OpenVINO's, programs of ``torch.export``, and torch's other files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from ghostify.batches import join, move, take
from ghostify.benching.contenders import Contender, Network
from ghostify.clock import Place
from ghostify.errors import ModelError, RecipeError
from ghostify.exporting import FORMATS, Format, read_manifest
from ghostify.files import near_path
from ghostify.inputs import Inputs, InputSpec
from ghostify.running import one_line
from ghostify.runtimes import RUNTIMES, FileRuntime, Port, Session, runtime

READERS = {name: one for name, one in RUNTIMES.items() if isinstance(one, FileRuntime)}
PROGRAM = ".pt2"
OF_TORCH = {FORMATS[name].suffix: FORMATS[name] for name in ("torchscript", "aoti")}
"""Files that torch runs and that do not say what they take; their manifests do."""
SUFFIXES = {suffix for one in READERS.values() for suffix in one.suffixes} | {PROGRAM, *OF_TORCH}


def is_exported(source: str) -> bool:
    """Whether a source is the name of a file that holds a whole network, whether it is there or not."""
    return source.lower().endswith(tuple(SUFFIXES))


def exported(name: str, inputs: Inputs = ()) -> Contender:
    """The network in a file; ``inputs`` say what sizes it takes where the file leaves them open.

    Raises ``ModelError`` where there is no such file, or nobody can read it.
    """
    file = Path(name)
    if not file.is_file():
        raise ModelError(f"File {name!r} does not exist.{near_path(file, whole=True)}")
    if format := next((one for suffix, one in OF_TORCH.items() if name.lower().endswith(suffix)), None):
        return TorchFile(name, file, inputs, format=format)
    return _program(name) if file.suffix.lower() == PROGRAM else File(name, file, inputs)


@dataclass
class File(Contender):
    """A file that runtimes read as it is."""

    name: str
    file: Path
    inputs: Inputs = ()
    params: int | None = None
    macs: int | None = None
    form: str = "file"

    @property
    def runtimes(self) -> tuple[str, ...]:
        suffix = self.file.suffix.lower()
        return tuple(name for name, one in READERS.items() if suffix in one.suffixes)

    def _session(self, place: Place) -> Session:
        reader = runtime(place.runtime)
        assert isinstance(reader, FileRuntime), "others are refused before"
        reader.require_device(torch.device(place.device))
        ports = reader.ports(self.file)
        feeds = {port.name: _array(self._shape(ports, port, place.batch), port.dtype) for port in ports}
        return reader.file_session(self.file, feeds, threads=place.threads)

    def _shape(self, ports: Sequence[Port], port: Port, batch: int) -> tuple[int, ...]:
        """The sizes of an input: as they stand in the file, or as they are given where it leaves them open."""
        if not port.shape:
            return ()
        if port.shape[0] not in (None, batch):
            raise RecipeError(
                f"{self.name!r} takes batches of {port.shape[0]} only, not of {batch}; give --batch {port.shape[0]}."
            )
        sizes: list[int | None] = [batch, *port.shape[1:]]
        given = self._given(ports, port)
        if given and len(given.shape) == len(sizes) - 1:
            sizes = [size or said for size, said in zip(sizes, (batch, *given.shape), strict=True)]
        if None in sizes:
            raise RecipeError(
                f"Input {port.name!r} of {self.name!r} is of any size; say which, as in --input {port.name}=3,224,224."
            )
        return tuple(size for size in sizes if size is not None)

    def _given(self, ports: Sequence[Port], port: Port) -> InputSpec | None:
        """What was said of an input, by its name, or by its place where no names were given."""
        named = {spec.name: spec for spec in self.inputs if spec.name}
        if named or len(self.inputs) != len(ports):
            return named.get(port.name)
        return self.inputs[list(ports).index(port)]


@dataclass
class TorchFile(File):
    """A file that torch runs and that does not say what it takes."""

    format: Format = field(kw_only=True)

    @property
    def runtimes(self) -> tuple[str, ...]:
        return ("eager",)

    def _session(self, place: Place) -> Session:
        ports = self._ports()
        arrays = [_array(self._shape(ports, port, place.batch), port.dtype) for port in ports]
        return partial(self.format.open(self.file, threads=place.threads), *map(torch.from_numpy, arrays))

    def _ports(self) -> tuple[Port, ...]:
        """What it takes, by the manifest beside it, or as it is given."""
        manifest = self.file.with_name(f"{self.file.name}.json")
        if manifest.is_file():
            return tuple(Port(one.name, _known(one.shape), one.dtype) for one in read_manifest(manifest).inputs)
        if not self.inputs:
            raise RecipeError(f"Nothing says what {self.name!r} takes; say it, as in --input 3,224,224.")
        return tuple(Port(spec.name, (None, *spec.shape), spec.dtype) for spec in self.inputs)


def _known(shape: Sequence[int | str]) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _array(shape: tuple[int, ...], dtype: str) -> Any:
    """Normal noise and, of whole numbers, ones, which are places in most tables."""
    kind = numpy.dtype(dtype)
    if kind.kind != "f":
        return numpy.ones(shape, kind)
    return numpy.random.default_rng(0).standard_normal(shape).astype(kind)


class Program(nn.Module):
    """A program of ``torch.export`` as a module that may be asked for eval mode: a program has one mode only."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> Program:
        return self


@dataclass
class Exported(Network):
    """A program; its ``example`` is all that it is called with: positional arguments, and those with a name."""

    form: str = "file"

    def arguments(self, batch: int, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = move(join([take(self.example, slice(0, 1))] * batch), device)
        return args, kwargs


def _program(name: str) -> Exported:
    log = logging.getLogger("torch.export")  # it would show a traceback of what is told in one line below
    before, log.disabled = log.disabled, True
    try:
        program = torch.export.load(name)
    except Exception as problem:  # it may be any file
        raise ModelError(f"{name!r} cannot be read as a program of torch.export: {one_line(problem)}") from problem
    finally:
        log.disabled = before
    module = Program(program.module())
    if program.example_inputs is None:
        raise ModelError(f"{name!r} holds no example of what it takes; export it again, by torch.export.save.")
    params = sum(parameter.numel() for parameter in module.parameters())
    return Exported(name, module, program.example_inputs, params=params)
