"""The tensors a module holds: by what names, and as they were before a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.tracing.values import holds_tensor, tensors_in

_OWN = frozenset(vars(nn.Module()))


class State:
    """What a run may change, kept for the replay to begin where the run began.

    That is buffers and plain tensors, with ``parameters`` these too, and the states of generators that are used.
    """

    def __init__(self, root: nn.Module, parameters: bool) -> None:
        self._tensors = [
            (holder, name, tensor, _saved(tensor)) for holder, name, tensor in _changeable(root, parameters)
        ]
        self._generators: dict[torch.Generator, Tensor] = {}

    def keep(self, generator: torch.Generator) -> None:
        """Keep the state of a generator that is about to be used, unless it was used before."""
        self._generators.setdefault(generator, generator.get_state())

    def restore(self) -> None:
        """Put back the tensors that were changed."""
        with torch.no_grad():
            for holder, name, tensor, before in self._tensors:
                # The very tensor first, since code may have put another one under its name.
                holder[name] = tensor
                if before is not None and not torch.equal(tensor, before):
                    tensor.detach().copy_(before)

    def restore_generators(self) -> None:
        """Apart from ``restore``, for a generator may be one that is not the copy's."""
        for generator, state in self._generators.items():
            generator.set_state(state)


def tensor_names(root: nn.Module) -> dict[int, str]:
    """By ``id``, the qualified name of every parameter, buffer and plain tensor attribute; plain ones lose."""
    return dict(_named_tensors(root))


def held_tensors(root: nn.Module) -> Iterator[int]:
    """Ids of the tensors that modules hold in plain lists and dicts."""
    for module in root.modules():
        for name, value in vars(module).items():
            if isinstance(value, (list, tuple, dict)) and name not in _OWN and holds_tensor(value):
                yield from map(id, tensors_in(value))


def _named_tensors(root: nn.Module) -> Iterator[tuple[int, str]]:
    for prefix, module in root.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield id(value), dot + name
        for name, tensor in [*module._buffers.items(), *module._parameters.items()]:
            if tensor is not None:
                yield id(tensor), dot + name


def _changeable(root: nn.Module, parameters: bool) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Every tensor that a module may change while it runs: where it is held, by what name, and itself."""
    for module in root.modules():
        for holder in (vars(module), module._buffers, *([module._parameters] if parameters else [])):
            yield from ((holder, name, value) for name, value in [*holder.items()] if isinstance(value, Tensor))


def _saved(tensor: Tensor) -> Tensor | None:
    """A copy of its values, where it has any that can be put back."""
    return tensor.detach().clone() if tensor.layout is torch.strided and not tensor.is_meta else None
