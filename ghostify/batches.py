"""What a network is given, many samples at a time: a tensor, a tuple of positional or a dict of keyword arguments.

Tensors may lie deeper, in tuples, lists and dicts.  Each that has a dimension holds one entry per sample along its
first: ``(N, C, H, W)`` images, ``(N, L)`` tokens, ``(N,)`` scalars.  What has none, or is no tensor, is the same for
every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ghostify.inputs import Inputs, InputSpec
from ghostify.tracing import call_arguments

Batch = Any
"""A tensor, or a tuple, list or dict of batches."""


def call(module: nn.Module, batch: Batch) -> Any:
    """What a network gives for a batch."""
    args, kwargs = call_arguments(batch)
    return module(*args, **kwargs)


def per_sample(batch: Batch) -> list[Tensor]:
    """The tensors of a batch that hold an entry per sample, in their order."""
    return [leaf for leaf in tree_leaves(batch) if _is_per_sample(leaf)]


def count(batch: Batch) -> int:
    """How many samples a batch holds; 0 where no tensor tells, or they do not agree."""
    sizes = {len(leaf) for leaf in per_sample(batch)}
    return sizes.pop() if len(sizes) == 1 else 0


def take(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch, as views of its tensors."""
    return tree_map(lambda leaf: leaf[rows] if _is_per_sample(leaf) else leaf, batch)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of ``size`` samples, the last one smaller where it must be."""
    for start in range(0, count(batch), size):
        yield take(batch, slice(start, start + size))


def join(batches: Sequence[Batch]) -> Batch:
    """Batches of one structure, one behind the other; what is no tensor is taken from the first."""
    leaves = [tree_flatten(batch) for batch in batches]
    structure = leaves[0][1]
    together = [_joined(parts) for parts in zip(*(found for found, _ in leaves), strict=True)]
    return tree_unflatten(together, structure)


def move(batch: Batch, place: torch.device, floats: torch.dtype | None = None, non_blocking: bool = False) -> Batch:
    """A batch at a device, its floating tensors in the dtype ``floats`` (None: as they are); whole numbers stay so.

    What was made in inference mode is copied, because it cannot be trained with.
    """

    def moved(leaf: Tensor) -> Tensor:
        kind = floats if floats is not None and leaf.is_floating_point() else leaf.dtype
        leaf = leaf.clone() if leaf.is_inference() else leaf
        return leaf.to(place, kind, non_blocking=non_blocking)

    return map_tensors(moved, batch)


def map_tensors(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """A batch with every tensor changed, and all else as it is."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, batch)


def example_of(inputs: Inputs, seed: int) -> Batch:
    """One sample of what a network takes: normal noise and, of whole numbers, ones, which are places in most tables.

    A tensor, or of several inputs a tuple, or a dict where they have names.
    """
    generator = torch.Generator().manual_seed(seed)
    made = [_one(spec, generator) for spec in inputs]
    if inputs[0].name:
        return {spec.name: one for spec, one in zip(inputs, made, strict=True)}
    return made[0] if len(made) == 1 else tuple(made)


def inputs_in(batch: Batch) -> Inputs:
    """What a batch holds of each input.  Raises ``ValueError`` where it is no tensor, or tuple or dict of tensors."""
    args, kwargs = call_arguments(batch)
    leaves = [*(("", leaf) for leaf in args), *kwargs.items()]
    if not leaves or not all(_is_per_sample(leaf) for _, leaf in leaves):
        raise ValueError("it is no tensor with a dimension of samples, tuple of such tensors or dict of them")
    return tuple(InputSpec(tuple(leaf.shape[1:]), kind_of(leaf), name) for name, leaf in leaves)


def kind_of(tensor: Tensor) -> str:
    """The name of a tensor's dtype, as ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def _one(spec: InputSpec, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.ones(1, *spec.shape, dtype=dtype)
    kind = torch.complex64 if dtype.is_complex else torch.float32
    return torch.randn(1, *spec.shape, dtype=kind, generator=generator).to(dtype)


def describe(batch: Batch) -> str:
    """The shape of one sample, as a person writes it: ``3x224x224``, or ``128 (int64) and 3x32x32`` of several."""
    return " and ".join(_shape(leaf) for leaf in per_sample(batch)) or "no tensor"


def _is_per_sample(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


def _joined(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if _is_per_sample(parts[0]) else parts[0]


def _shape(leaf: Tensor) -> str:
    sizes = "x".join(map(str, leaf.shape[1:])) or "scalar"
    return sizes if leaf.is_floating_point() else f"{sizes} ({kind_of(leaf)})"
