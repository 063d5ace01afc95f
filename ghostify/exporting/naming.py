"""What the inputs and outputs of a file are called."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path


def input_names(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """``input`` where there is one without a name; else those of the arguments that hold the tensors."""
    said = [name for name in inspect.signature(module.forward).parameters if name not in kwargs]
    named = {said[place] if place < len(said) else f"input_{place}": one for place, one in enumerate(args)}
    found = _names_of_tensors(named | dict(kwargs), "input")
    return ("input",) if len(found) == 1 and not kwargs else found


def output_names(output: Any, inputs: Iterable[str]) -> tuple[str, ...]:
    """``output`` where a network gives a tensor; else keys and places in what holds them, and none of ``inputs``."""
    if isinstance(output, Tensor):
        return ("output",)
    return tuple(f"{name}_output" if name in inputs else name for name in _names_of_tensors(output, "output"))


def _names_of_tensors(held: Any, otherwise: str) -> tuple[str, ...]:
    """A name for each tensor: the way to it, in letters, digits and underscores, and told apart."""
    found: list[str] = []
    for path, leaf in tree_flatten_with_path(held)[0]:
        if isinstance(leaf, Tensor):
            way = "_".join(re.findall(r"\w+", "".join(map(str, path))))
            name = f"{otherwise}_{way}".rstrip("_") if way[:1].isdigit() or not way else way
            found.append(name if name not in found else f"{name}_{len(found)}")
    return tuple(found)
