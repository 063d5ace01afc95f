"""A network as an ONNX file, for the runtimes that read one.

    network and example → tensors in a row → tensors in a row → file

A file's inputs and outputs are tensors with names.  So the tensors are taken out of whatever the example holds them in
(tuples, dicts, keywords), the rest of it (numbers, flags, None) is written into the graph, and the outputs are
flattened likewise.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ghostify.errors import ModelError
from ghostify.running import evaluating


class Flat(nn.Module):
    """A network that takes the example's tensors in a row, and gives those of its output in a row."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.leaves, self.structure = tree_flatten((args, kwargs))
        self.places: tuple[int, ...] | None = None
        """Which of the things that it gives are tensors, where that is known: a tracer makes tensors of sizes, too."""

    @property
    def example(self) -> tuple[Tensor, ...]:
        """The tensors of the example."""
        return _tensors(self.leaves)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.structure)
        output = tree_leaves(self.module(*args, **kwargs))
        return _tensors(output if self.places is None else [output[place] for place in self.places])


def export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], file: Path) -> dict[str, Any]:
    """Write ``module`` to ``file``, for the shapes of the example.  Returns an array for each input's name.

    Raises ``ModelError`` where there is no tensor to feed; and what torch raises where it cannot export.
    """
    flat = Flat(module, args, kwargs)
    if not flat.example:
        raise ModelError("The example holds no tensor, so there is nothing to feed to an exported network.")
    names = [f"input_{index}" for index, _ in enumerate(flat.example)]
    # torch's exporter leaves all modules in the mode of the outermost, which is one made here
    with torch.no_grad(), warnings.catch_warnings(), evaluating(module), _as_in_a_file(module):
        warnings.simplefilter("ignore")  # an exporter's warnings are for who wants to keep the file
        _write(flat, names, file)
    return {name: _array(tensor) for name, tensor in zip(names, flat.example, strict=True)}


@contextmanager
def _as_in_a_file(module: nn.Module) -> Iterator[None]:
    """The weights in the order of a file inside, and as they were laid out afterwards.

    Code that asks how its maps lie would write transpositions into a file, where maps lie in one order only.
    """
    laid_out = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        for parameter, data in laid_out:
            parameter.data = in_file_order(data)
        yield
    finally:
        for parameter, data in laid_out:
            parameter.data = data


def in_file_order(tensor: Tensor) -> Tensor:
    """A tensor as a file has it: a copy, unless it lies so already.

    Not by ``contiguous``, to which a depthwise filter, (n, 1, k, k), is in that order with its channels last, too; but
    a convolution with it gives maps whose channels are.
    """
    usual = torch.empty(tensor.shape, device="meta").stride()
    return tensor if tensor.stride() == usual else tensor.clone(memory_format=torch.contiguous_format)


def _write(flat: Flat, names: list[str], file: Path) -> None:
    """By torch's older exporter, which writes one layer in 3 ms, where the newer takes 400 ms of every module.

    A table of layers is hundreds of such modules.  What the older cannot write the newer may; where neither can, it is
    the older one's reason that is told, which is shorter.
    """
    try:
        torch.onnx.export(flat, flat.example, file, input_names=names, dynamo=False)
    except Exception as problem:  # it raises anything, and may be gone from a torch to come
        try:
            torch.onnx.export(flat, flat.example, file, input_names=names, dynamo=True, verbose=False)
        except Exception:
            raise problem from None


def _tensors(leaves: list[Any]) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _array(tensor: Tensor) -> Any:
    """The tensor as NumPy has it, in the order that a file's inputs are read in."""
    if tensor.dtype == torch.bfloat16:
        raise ModelError("It is fed arrays, and NumPy has no bfloat16; give the network in float32 or float16.")
    return tensor.detach().contiguous().numpy()
