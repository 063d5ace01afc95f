"""A module's parameters and buffers ⇄ one safetensors file.

Every tensor is kept under each of its names, those that a state dict leaves out (non-persistent buffers) among them.
What is one and the same is written once, under the first of its names.  What a table of tensors cannot say stands in
the file's metadata:

    <other name>   the first name of the same tensor, as safetensors' own ``save_model`` writes it
    ghostify       as JSON: ``layout``, where in memory tensors lie that share it or are not contiguous, as name →
                   [number of the memory, offset, strides]; ``complex``, names of tensors written as pairs of real
                   numbers; ``loose``, names of non-persistent buffers; ``frozen``, names of what does not learn

Strides are kept because kernels go by them: a network whose weights lie in another order gives other last bits.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ghostify.errors import RunError

KEY = "ghostify"
Place = tuple[int, int, list[int]]
"""Number of a memory, offset in it, strides; in elements."""


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds."""

    tensors: Mapping[str, Tensor]
    """By the first of its names, each tensor."""
    first: Mapping[str, str]
    """By each name of a tensor, the first."""
    loose: frozenset[str] = frozenset()
    """Names of buffers that no state dict holds."""
    frozen: frozenset[str] | None = frozenset()
    """Names of parameters that do not learn; None where the file cannot tell."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.first[name]]


@dataclass
class _Notes:
    layout: dict[str, Place] = field(default_factory=dict)
    complex: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)


# -- writing ---------------------------------------------------------------------------------------------------


def write_weights(module: nn.Module, path: Path) -> None:
    """Write all tensors of a module.  Raises ``RunError`` for what is no plain tensor, and ``OSError``."""
    named = named_tensors(module)
    require_plain(module)
    first = _first_names(named)
    own = {name: tensor for name, tensor in named.items() if first[name] == name}
    notes = _Notes(
        layout=_layout(own),
        complex=[name for name, tensor in own.items() if tensor.is_complex()],
        loose=sorted(_loose_names(module)),
        frozen=[name for name, parameter in _parameters(module) if not parameter.requires_grad],
    )
    aliases = {name: kept for name, kept in first.items() if name != kept}
    content = {name: _plain(tensor) for name, tensor in own.items()}
    save_file(content, str(path), {**aliases, KEY: json.dumps(vars(notes))})


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by each of its names."""
    return dict(chain(_parameters(module), module.named_buffers(remove_duplicate=False)))


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _loose_names(module: nn.Module) -> Iterator[str]:
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name in part._non_persistent_buffers_set:
            if part._buffers.get(name) is not None:
                yield f"{prefix}.{name}" if prefix else name


def weights_of(module: nn.Module) -> Weights:
    """A module's tensors as a file of them would hold them, without a file."""
    named = named_tensors(module)
    return Weights(named, {name: name for name in named}, frozenset(_loose_names(module)))


def require_plain(module: nn.Module) -> None:
    """Refuse a module that keeps what a file of weights cannot hold.  Raises ``RunError``."""
    for name, tensor in named_tensors(module).items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantized" if tensor.is_quantized else "on the meta device" if tensor.is_meta else "sparse"
            raise RunError(f"{name!r} of {type(module).__name__} is {kind}, and only plain tensors can be saved.")
    for name, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            raise RunError(
                f"{name or type(module).__name__!r} keeps state that is no tensor (get_extra_state), which is not "
                "saved; keep it in a buffer."
            )


def _first_names(named: Mapping[str, Tensor]) -> dict[str, str]:
    """By each name, the first name of the same numbers in memory, seen in the same way."""
    seen: dict[Any, str] = {}
    first = {}
    for name, tensor in named.items():
        view = (*_memory(tensor), tensor.storage_offset(), tensor.shape, tensor.stride())
        first[name] = seen.setdefault(view if tensor.numel() else name, name)
    return first


def _memory(tensor: Tensor) -> tuple[int, torch.dtype]:
    return tensor.untyped_storage().data_ptr(), tensor.dtype


def _layout(own: Mapping[str, Tensor]) -> dict[str, Place]:
    """Where those tensors lie that are more than contiguous numbers of their own."""
    sharing = defaultdict(list)
    for name, tensor in own.items():
        if tensor.numel():
            sharing[_memory(tensor)].append(name)
    places: dict[str, Place] = {}
    for number, names in enumerate(sharing.values()):
        if len(names) > 1 or not own[names[0]].is_contiguous():
            start = min(own[name].storage_offset() for name in names)
            for name in names:
                places[name] = (number, int(own[name].storage_offset() - start), [*map(int, own[name].stride())])
    return places


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous real numbers of its own on the CPU."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.clone(memory_format=torch.contiguous_format)


# -- reading ---------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> Weights:
    """What a file of weights holds, laid out in memory as it was.

    Raises ``SafetensorError``, ``OSError``, ``RuntimeError``, ``TypeError`` and ``ValueError`` for a damaged one.
    """
    with safe_open(path, "pt") as file:
        # cloned, because what safetensors gives is a map of the file, which may be replaced
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    notes = json.loads(metadata.pop(KEY, "null"))
    metadata.pop("format", None)
    first = {name: name for name in tensors} | {name: kept for name, kept in metadata.items() if kept in tensors}
    if notes is None:  # written by safetensors' own save_model
        return Weights(tensors, first, frozen=None)
    for name in notes["complex"]:
        tensors[name] = torch.view_as_complex(tensors[name])
    return Weights(
        tensors | _laid_out(tensors, notes["layout"]), first, frozenset(notes["loose"]), frozenset(notes["frozen"])
    )


def _laid_out(tensors: Mapping[str, Tensor], layout: Mapping[str, Place]) -> dict[str, Tensor]:
    """Tensors that share memory or are not contiguous, in memory as they were."""
    memories = defaultdict(list)
    for name, (number, _, _) in layout.items():
        memories[number].append(name)
    views = {}
    for names in memories.values():
        size = max(_end(tensors[name], layout[name]) for name in names)
        memory = tensors[names[0]].new_zeros(size)
        for name in names:
            _, offset, strides = layout[name]
            # by index, because a tensor may have several elements in one place of memory (expanded ones do)
            where = torch.arange(size).as_strided(tensors[name].shape, strides, offset)
            memory[where.reshape(-1)] = tensors[name].reshape(-1)
            views[name] = memory.as_strided(tensors[name].shape, strides, offset)
    return views


def _end(tensor: Tensor, place: Place) -> int:
    _, offset, strides = place
    return offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)) + 1


def put_weights(module: nn.Module, weights: Weights) -> None:
    """Give a module the tensors of a file: their numbers, types and strides, and which are one and the same.

    Raises ``ValueError``, with nothing changed, when the file was written from another network.
    """
    require_fit(module, weights)
    given: dict[int, str] = {}
    holders: dict[str, Tensor] = {}
    for name, first in weights.first.items():
        owner, leaf, present = _slot(module, name)
        held = holders.get(first)
        if present is not None and given.get(id(present)) == first:
            continue
        if held is not None and type(held) is type(present):
            setattr(owner, leaf, held)  # one tensor under two names, as it was
            continue
        if present is None or id(present) in given:  # two tensors where the new module has one
            present = _put_new(owner, leaf, weights.tensors[first], present)
        else:
            present.data = weights.tensors[first]
        given[id(present)] = first
        holders.setdefault(first, present)
    if weights.frozen is not None:
        for name, parameter in _parameters(module):
            if parameter.requires_grad == (name in weights.frozen):
                parameter.requires_grad_(name not in weights.frozen)


def _put_new(owner: nn.Module, leaf: str, value: Tensor, like: Tensor | None) -> Tensor:
    if isinstance(like, nn.Parameter):
        value = nn.Parameter(value, requires_grad=like.requires_grad)
        setattr(owner, leaf, value)
    elif leaf in owner._buffers:
        setattr(owner, leaf, value)
    else:
        owner.register_buffer(leaf, value, persistent=False)
    return value


def _slot(module: nn.Module, name: str) -> tuple[nn.Module, str, Tensor | None]:
    prefix, _, leaf = name.rpartition(".")
    owner = module.get_submodule(prefix)
    held = leaf in owner._parameters or leaf in owner._buffers
    return owner, leaf, getattr(owner, leaf) if held else None


def require_fit(module: nn.Module, weights: Weights) -> None:
    """Refuse another network's weights.  Buffers that no state dict holds may differ: code makes them as it runs."""
    there = named_tensors(module)
    loose = weights.loose | set(_loose_names(module))
    missing = [name for name in there if name not in weights.first and name not in loose]
    unexpected = [name for name in weights.first if name not in there and name not in loose]
    for what, names in (("is missing", missing), ("is not in it", unexpected)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{names[0]!r} {what}{more}")
    for name in weights.first:
        if name in there and name not in loose and there[name].shape != weights[name].shape:
            raise ValueError(
                f"{name!r} is {_shape(weights[name])} in the file and {_shape(there[name])} in the network"
            )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def differing(module: nn.Module, weights: Weights) -> str | None:
    """The first name whose numbers, type or shape are not those in a file; None where all are the same bits."""
    named = named_tensors(module)
    if wrong := next((name for name in sorted(named.keys() ^ weights.first.keys())), None):
        return wrong
    return next((name for name, tensor in named.items() if not _same_bits(tensor, weights[name])), None)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(_plain(tensor).reshape(-1).view(torch.uint8) for tensor in (one, other)))
