"""What convolutions read and gave in a run, so that its replay computes anew only those that read something else.

A convolution of torch's gives the same for the same numbers and settings, so a replay in which it has them again is as
strict with what it gave then as with what it would give now; and convolutions take nearly all the time of a replay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ghostify.tracing.values import form_of, version_of

MEMORY = 2**25
"""Bytes of tensors that are kept from being freed; later convolutions are computed again."""
LARGEST = 2**20
"""Bytes that one convolution may read and give to be kept.

Most networks make their maps smaller as they go and convolve each stage for about as many MACs, so that small maps save
the most time for their memory; and a run that holds large maps early has room for the small ones later.
"""
_CONVOLUTIONS = {
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
}


@dataclass(frozen=True)
class _Kept:
    """A tensor as it was: a write to it raises its version."""

    tensor: Tensor
    version: int

    @property
    def as_it_was(self) -> bool:
        return version_of(self.tensor) == self.version


_State = tuple[str, list[tuple[int, complex]]]


def _state_of(layer: nn.Module) -> _State:
    """Its settings and, of each parameter, which it is and the sum of its numbers: code may write to it unseen."""
    return repr(layer), [(id(parameter), parameter.sum().item()) for parameter in layer.parameters(recurse=False)]


class Convolved:
    """By node of a convolution, its input and its output."""

    def __init__(self) -> None:
        self._kept: dict[fx.Node, tuple[_Kept, _Kept, _State]] = {}
        self._room = MEMORY

    def note(self, node: fx.Node, layer: nn.Module, given: Tensor, result: Tensor) -> None:
        """Keep what a layer read and gave, if it is a convolution that no hook can make give something else."""
        size = given.nbytes + result.nbytes
        hooked = layer._forward_hooks or layer._forward_pre_hooks
        plain = type(layer) in _CONVOLUTIONS and not hooked and not given.is_meta
        fits = size <= min(LARGEST, self._room)
        if plain and fits and not torch.is_grad_enabled():  # gradients find no way back through it
            self._room -= size
            kept = _Kept(given, version_of(given)), _Kept(result, version_of(result))
            self._kept[node] = (*kept, _state_of(layer))

    def again(self, node: fx.Node, layer: nn.Module, given: Tensor) -> Tensor | None:
        """What a convolution gave, where it is as it was and reads now what it read then."""
        # A replay comes by each node once, so what was kept for it can be let go.
        read, gave, state = self._kept.pop(node, (None, None, None))
        if read is None or gave is None or not (read.as_it_was and gave.as_it_was):
            return None
        if torch.is_grad_enabled() or _state_of(layer) != state:
            return None
        alike = given is read.tensor or (form_of(given) == form_of(read.tensor) and torch.equal(given, read.tensor))
        return gave.tensor if alike else None
