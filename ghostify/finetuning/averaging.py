"""A moving average of the weights, which is mostly better than any of those it averages (Polyak and Juditsky, 1992).

    a ← a + (1 - d_t) (w - a),   d_t = min(decay, (1 + t) / (10 + t))

after update t of weights w.  A short run would else be the average of weights from its beginning: with d = 0.999 a
thousand steps do not forget the first.  Statistics of norms are averaged alike, so that they are those of the average;
whole numbers (batches counted) are taken as they are.  torch's ``AveragedModel`` does it, on a copy of the network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """The average of a network's weights, and the network with these weights, to be measured and delivered."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._moved, use_buffers=True)

    @property
    def module(self) -> nn.Module:
        """The network with the average's weights; the network itself is not touched."""
        module: nn.Module = self._average.module
        return module

    def update(self, model: nn.Module) -> None:
        """Take the present weights of the network in; the first ones are taken as they are."""
        self._average.update_parameters(model)

    def state(self) -> dict[str, Tensor]:
        """All that must be saved, as tensors by name."""
        state: dict[str, Tensor] = self._average.state_dict()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved ``state``."""
        self._average.load_state_dict(dict(state))

    @torch.no_grad()
    def _moved(self, averages: _Tensors, weights: _Tensors, updates: Tensor | int) -> None:
        """Move tensors of one kind, in place, towards the weights."""
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, weights)
            return
        count = int(updates)
        decay = min(self._decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(averages, weights, 1 - decay)
