"""Tensors in the values of a run, however they are nested, and what there is to know of each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


def call_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``example`` as (positional, keyword) arguments: a dict is keywords, a tuple positionals."""
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def tensors_of_call(example: Any) -> list[Tensor]:
    """The tensors that a call with ``example`` is given, in the order of a recording's placeholders."""
    return tensors_in(call_arguments(example))


def tensors_in(value: Any, seen: set[int] | None = None) -> list[Tensor]:
    """The tensors in a nested structure, in a fixed order; unknown containers and objects are looked into, once."""
    seen = set() if seen is None else seen
    found: list[Tensor] = []
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            found.extend(inner for part in _parts(leaf) for inner in tensors_in(part, seen))
    return found


def _parts(value: Any) -> list[Any]:
    """What an object that ``torch`` does not take for a container holds."""
    if isinstance(value, Mapping) and value:
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    # These hold tensors that are no values of the run: weights, and what functions enclose.
    if isinstance(value, (type, nn.Module)) or callable(value):
        return []
    if dataclasses.is_dataclass(value):
        return [getattr(value, item.name, None) for item in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).values())


def holds_tensor(value: Any) -> bool:
    """Whether a tensor is in a value's tuples, lists and mappings, which is where the graph can follow it."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(holds_tensor(item) for item in value.values())
    return isinstance(value, (tuple, list)) and any(holds_tensor(item) for item in value)


def cloned(value: Any) -> Any:
    """A structure with tensors of its own."""
    leaves, spec = tree_flatten(value)
    return tree_unflatten([_cloned_leaf(leaf) for leaf in leaves], spec)


def _cloned_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    # Tensors with a history refuse to be copied, so the copy finds clones of them in its memo.
    inner = tensors_in(leaf)
    return copy.deepcopy(leaf, {id(tensor): tensor.detach().clone() for tensor in inner}) if inner else leaf


Form = tuple[torch.Size, tuple[int, ...], torch.dtype]
Forms = Mapping[tuple[str, Form], Form]
"""By a layer's name and the form of what it is given, the form of what it gives."""


def form_of(tensor: Tensor) -> Form:
    """All there is to a tensor but its numbers: all, on the meta device."""
    return tensor.shape, tensor.stride(), tensor.dtype


def has_form(value: Tensor) -> bool:
    """Whether a tensor's numbers lie in its memory by strides."""
    return value.layout is torch.strided


def empty(form: Form) -> Tensor:
    """A tensor of that form, on the meta device."""
    return torch.empty_strided(*form[:2], dtype=form[2], device="meta")


def version_of(tensor: Tensor | None) -> int:
    """How often a tensor was written to."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int:
    """A number for the memory it lies in, which its views share."""
    return tensor.untyped_storage()._cdata
