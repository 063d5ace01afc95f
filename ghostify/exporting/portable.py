"""``Portable``: a network ready for a file.

    network and example → a copy on the CPU, in eval mode, weights in the order of a file → tensors in, tensors out

A file's inputs and outputs are tensors with names, so the example's are taken out of whatever it holds them in, and
numbers go in and come out as 32-bit floats, whatever the network computes in.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.batches import Batch, join, move, take
from ghostify.errors import ModelError
from ghostify.exporting.naming import input_names, output_names
from ghostify.exporting.quantizing import Calibration, Quantized, calibration_of, prepared
from ghostify.running import quiet
from ghostify.runtimes.exporting import Flat, in_file_order
from ghostify.tracing import call_arguments

DYNAMICS = ("", "batch", "size")
PRECISIONS = ("fp32", "fp16", "int8")
_SMALLEST = 2
"""Samples in an example whose batch is open: torch takes a size of 1 for one that is always 1."""
_SIDES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""What the dimensions of maps are called, by how many there are."""


@dataclass(frozen=True)
class Portable:
    """A network that takes tensors in a row and gives tensors in a row, and what a file needs to know of it."""

    module: nn.Module
    """A copy: on the CPU, in eval mode, its numbers 32-bit floats, its weights contiguous."""
    example: tuple[Tensor, ...]
    """What it takes; two samples or more where the batch is open."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: str = ""
    """Which sizes the file leaves open: none, ``batch``, or ``size`` (height and width, and the batch with them)."""
    precision: str = "fp32"
    half_io: bool = False
    """Whether a file in fp16 takes and gives 16-bit floats, too."""
    opset: int | None = None
    """That of an ONNX file; None for the best known."""
    calibration: Calibration | None = None
    """What the scales of int8 are read off; None in other precisions."""
    kept: frozenset[str] = frozenset()
    """Weights, by their names in ``module``, whose layers stay in float in an int8 file."""

    @property
    def open_sizes(self) -> tuple[dict[int, str], ...]:
        """For each input the dimensions that the file leaves open, and what they are called."""
        return tuple(
            self._open(tensor, name) if tensor.dim() else {}
            for tensor, name in zip(self.example, self.inputs, strict=True)
        )

    def _open(self, tensor: Tensor, name: str) -> dict[int, str]:
        if not self.dynamic:
            return {}
        sides = _SIDES.get(tensor.dim() - 2, ()) if self.dynamic == "size" and tensor.is_floating_point() else ()
        of_input = "" if len(self.inputs) == 1 else f"{name}_"
        return {0: "batch"} | {place: f"{of_input}{side}" for place, side in enumerate(sides, start=2)}

    def calibrated(self, images: Batch | None) -> tuple[Portable, Quantized]:
        """The same, ready for int8: calibrated on ``images``, with the layers that stay in float, and what was found.

        Raises ``ExportError`` where the images are none to calibrate on.
        """
        size = None if self.dynamic else len(self.example[0])
        calibration = calibration_of(images, self.example, size)
        module = copy.deepcopy(self.module)
        found = prepared(module, calibration)
        kept = frozenset(f"{one.layer}.weight" for one in found.kept)
        return replace(self, module=module, calibration=calibration, kept=kept), found

    @property
    def computing(self) -> nn.Module:
        """The module as it computes in a file of its precision."""
        return Halved(self.module, self.half_io).eval() if self.precision == "fp16" else self.module

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The example, in the types that the file takes."""
        if self.precision == "fp16" and self.half_io:
            return tuple(in_type(tensor, torch.float16) for tensor in self.example)
        return self.example


class Halved(nn.Module):
    """A network in 16-bit floats that takes and, unless told otherwise (``half_io``), gives 32-bit ones."""

    def __init__(self, network: nn.Module, half_io: bool) -> None:
        super().__init__()
        self.network, self.half_io = copy.deepcopy(network).half(), half_io

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(*[in_type(tensor, torch.float16) for tensor in tensors])
        return tuple(outputs) if self.half_io else tuple([in_type(output, torch.float32) for output in outputs])


class AsFile(nn.Module):
    """A network as it is, called as its file is: tensors in a row, 32-bit floats in and out, on the CPU."""

    def __init__(self, network: nn.Module, example: Batch) -> None:
        super().__init__()
        self.flat = Flat(network, *call_arguments(example))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        own = [tensor.to(like.device, like.dtype) for tensor, like in zip(tensors, self.flat.example, strict=True)]
        return tuple([in_type(output, torch.float32).cpu() for output in self.flat(*own)])

    def exact(self) -> AsFile:
        """The same network in 64-bit floats, called alike."""
        twin = copy.deepcopy(self).double()
        twin.flat.leaves = [
            in_type(leaf, torch.float64) if isinstance(leaf, Tensor) else leaf for leaf in self.flat.leaves
        ]
        return twin


def portable(
    module: nn.Module,
    example: Batch,
    *,
    dynamic: str = "",
    precision: str = "fp32",
    half_io: bool = False,
    opset: int | None = None,
) -> Portable:
    """A network as a file holds it; ``module`` itself stays as it is.

    Raises ``ModelError`` where the example holds no tensor.
    """
    args, kwargs = call_arguments(move(_sized(example, dynamic), torch.device("cpu"), torch.float32))
    flat = Flat(_copied(module), args, kwargs).eval()
    if not flat.example:
        raise ModelError("The example holds no tensor, so there is nothing to feed to an exported network.")
    inputs = input_names(module, args, kwargs)
    with quiet(flat):
        output = flat.module(*args, **kwargs)
    outputs = output_names(output, inputs)
    flat.places = tuple(place for place, leaf in enumerate(tree_leaves(output)) if isinstance(leaf, Tensor))
    tensors = tuple(in_file_order(tensor.detach()) for tensor in flat.example)
    return Portable(flat, tensors, inputs, outputs, dynamic, precision, half_io, opset)


def _sized(example: Batch, dynamic: str) -> Batch:
    """The example; where the batch is open, some samples like its first."""
    return join([take(example, slice(0, 1))] * _SMALLEST) if dynamic else example


def _copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU with its numbers as 32-bit floats and its weights in the order of a file.

    Code that asks how its maps lie would write transpositions into a file, where maps lie in one order only.
    """
    copied = copy.deepcopy(module).eval().cpu().float()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = in_file_order(tensor.data)
    return copied


def in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of floats in another type; whole numbers stay so."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
