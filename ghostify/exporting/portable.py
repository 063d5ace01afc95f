"""``Portable``: a network ready for a file.

    network and example → a copy on the CPU, in eval mode, weights in the order of a file → tensors in, tensors out

A file's inputs and outputs are tensors with names, so the example's are taken out of whatever it holds them in.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from ghostify.batches import Batch, call, join, take
from ghostify.errors import ModelError
from ghostify.running import quiet
from ghostify.runtimes.exporting import Flat
from ghostify.tracing import call_arguments

DYNAMICS = ("", "batch", "size")
PRECISIONS = ("fp32", "fp16", "int8")
_SMALLEST = 2
"""Samples in an example whose batch is open: torch takes a size of 1 for one that is always 1."""


@dataclass(frozen=True)
class Portable:
    """A network that takes tensors in a row and gives tensors in a row, and what a file needs to know of it."""

    module: nn.Module
    """As ``Flat`` makes it of a copy: on the CPU, in eval mode, weights contiguous."""
    example: tuple[Tensor, ...]
    """What it takes; two samples or more where the batch is open."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: str = ""
    """Which sizes the file leaves open: none, ``batch``, or ``size`` (height and width, and the batch with them)."""
    precision: str = "fp32"
    opset: int | None = None
    """That of an ONNX file; None for the best known."""

    @property
    def open_sizes(self) -> tuple[dict[int, Any], ...] | None:
        """For each input the dimensions that are open, as ``torch.export`` takes them, within the row of all inputs."""
        if not self.dynamic:
            return None
        return (tuple(dict.fromkeys(self._open(one), torch.export.Dim.DYNAMIC) for one in self.example),)  # type: ignore[return-value]

    def _open(self, tensor: Tensor) -> Iterable[int]:
        if tensor.dim() < 1:
            return ()
        maps = range(2, tensor.dim()) if self.dynamic == "size" and tensor.is_floating_point() else ()
        return (0, *maps)


def portable(
    module: nn.Module, example: Batch, *, dynamic: str = "", precision: str = "fp32", opset: int | None = None
) -> Portable:
    """A network as a file holds it; ``module`` itself stays as it is.

    Raises ``ModelError`` where the example holds no tensor.
    """
    if dynamic:
        example = join([take(example, slice(0, 1))] * _SMALLEST)
    args, kwargs = call_arguments(example)
    flat = Flat(_copied(module), args, kwargs)
    if not flat.example:
        raise ModelError("The example holds no tensor, so there is nothing to feed to an exported network.")
    inputs = input_names(module, example)
    with quiet(flat):
        outputs = output_names(call(flat.module, example), taken=inputs)
    tensors = tuple(tensor.detach().cpu().contiguous() for tensor in flat.example)
    return Portable(flat.eval(), tensors, inputs, outputs, dynamic, precision, opset)


def _copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU with its weights in the order of a file.

    Code that asks how its maps lie would write transpositions into a file, where maps lie in one order only.
    """
    copied = copy.deepcopy(module).eval().cpu()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.contiguous()
    return copied


def input_names(module: nn.Module, example: Batch) -> tuple[str, ...]:
    """The names of a file's inputs: ``input`` where there is one, else those of the arguments that hold them."""
    args, kwargs = call_arguments(example)
    said = [name for name in inspect.signature(module.forward).parameters if name not in kwargs]
    named = {said[place] if place < len(said) else f"input_{place}": one for place, one in enumerate(args)} | kwargs
    found = _names_of_tensors(named)
    return ("input",) if len(found) == 1 and not kwargs else found


def output_names(output: Any, taken: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of a file's outputs: ``output`` where there is one, else keys and places in what holds them."""
    if isinstance(output, Tensor):
        return ("output",)
    return tuple(f"{name}_output" if name in taken else name for name in _names_of_tensors(output, "output"))


def _names_of_tensors(held: Any, otherwise: str = "input") -> tuple[str, ...]:
    """A name for each tensor: the way to it, in letters, digits and underscores, and told apart."""
    found: list[str] = []
    for path, leaf in tree_flatten_with_path(held)[0]:
        if isinstance(leaf, Tensor):
            way = "_".join(re.findall(r"\w+", "".join(map(str, path))))
            name = f"{otherwise}_{way}" if way.isdecimal() or not way else way
            found.append(name if name not in found else f"{name}_{len(found)}")
    return tuple(found)
