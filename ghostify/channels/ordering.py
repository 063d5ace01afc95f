"""Channels of a whole network in another order: every weight and statistic moves along, and the function stays.

    y = B · f(A x)   ⇒   y = (B Pᵀ) · f((P A) x)      for a permutation P of channels that f treats alike

Where a channel runs through a residual stream, or lies in several places of a dimension, all of it moves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.channels.grouping import NONE, Channels, Unreadable
from ghostify.channels.thinning import _sliced
from ghostify.running import REORDERED, agree, quiet, seed

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Ordering:
    """Which channels of a network may change places, and the network with some that did.

    ``channels`` are those of the whole network, as ``follow(traced, *network_nodes(traced))`` gives them.  A channel is
    told by its *root*, the smallest of the numbers tied to it: a residual stream has the same roots in every layer.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._classes = self._divided()

    def movable(self, name: str) -> np.ndarray | None:
        """For each output channel of the weight of module ``name``, its class: channels of one class may change places.

        (n,) of integers; -1 for a channel that stays: an output of the network, one of a group or of what is tied to a
        tensor that is no parameter, any in a network whose filters slide over the channels.  The classes are those of
        the whole network, so two layers that write into one stream show the same.  None where there is no such weight
        among those followed.  Raises ``AttributeError`` for no such module.
        """
        roots = self.roots(name)
        return None if roots is None else self._classes[roots]

    def roots(self, name: str) -> np.ndarray | None:
        """For each output channel of the weight of module ``name``, its root, (n,); None and errors as ``movable``."""
        owner = self.channels.traced.part(name)
        weight = getattr(owner, "weight", None)
        dim = 1 if isinstance(owner, _TRANSPOSED) else 0
        for use in self.channels.uses:
            if use.dim == dim and use.name in self._held and self._held[use.name] is weight:
                return self.channels.roots[use.channels]
        return None

    def permuted(self, moves: Mapping[int, int]) -> nn.Module:
        """A copy of the network in which the channel of root ``moves[r]`` stands where that of root r stood.

        Roots that are not in ``moves`` stay.  Raises ``ValueError`` when the moves do not map the roots of each class
        among themselves one to one, and ``Unreadable`` when the copy does not do what the network does.
        """
        source = self._source(moves)
        module = self.channels.traced.module
        memo = {id(self._held[name]): _sliced(self._held[name], dims) for name, dims in self._indices(source).items()}
        result = copy.deepcopy(module, memo)
        self._check(result)
        return result

    def _divided(self) -> np.ndarray:
        """By number, the class of its root: of one segment, alone in its component, and in the same weights as often.

        The last entry stands for ``NONE``.
        """
        channels = self.channels
        classes = np.full(len(channels.roots), NONE)
        everything = np.arange(len(channels.roots) - 1)
        roots = everything[channels.roots[:-1] == everything]
        components = channels.components[roots]
        segments = np.array([channels.segment_of.get(int(one), NONE) for one in components], dtype=int)
        # a channel that shares its component with others (of a group) would have to take them along
        free = (segments >= 0) & (np.bincount(components)[components] == 1) & ~np.isin(roots, self._bound())
        if channels.coupling.ordered or not free.any():
            return classes
        alike = np.stack([segments[free], self._signature()[roots[free]]])
        classes[roots[free]] = np.unique(alike, axis=1, return_inverse=True)[1].reshape(-1)
        return classes

    def _bound(self) -> np.ndarray:
        """Roots of grouped filters' inputs, of what is selected by index, and of what is tied to neither parameter nor
        buffer of the network.
        """
        uses = (use.channels for use in self.channels.uses if use.lanes or use.name not in self._held)
        selected = (selection.channels for selection in self.channels.selections)
        bound = (self.channels.roots[numbers] for numbers in (*uses, *selected))
        return np.concatenate([np.array([], dtype=int), *bound])

    @cached_property
    def _held(self) -> dict[str, Tensor]:
        """Parameters and buffers by all their names."""
        module = self.channels.traced.module
        buffers = dict(module.named_buffers(remove_duplicate=False))
        return buffers | dict(module.named_parameters(remove_duplicate=False))

    def _signature(self) -> np.ndarray:
        """By root, a number that tells in which weights it occurs how often."""
        signature = np.zeros(len(self.channels.roots), dtype=np.int64)
        random = np.random.default_rng(0)
        for use in self.channels.uses:
            np.add.at(signature, self.channels.roots[use.channels], random.integers(1, 2**40))
        return signature

    def _source(self, moves: Mapping[int, int]) -> np.ndarray:
        """By root, the root whose channel comes to its place; ``ValueError`` as for ``permuted``."""
        count = len(self.channels.roots) - 1
        source = np.arange(count + 1)
        for root, other in moves.items():
            if not (0 <= root < count and 0 <= other < count) or self._classes[root] < 0:
                raise ValueError(f"moves[{root}] = {other}: {root} is no channel that may move")
            if self._classes[root] != self._classes[other]:
                raise ValueError(f"moves[{root}] = {other}: {other} is not of the class of {root}")
            source[root] = other
        if set(moves) != set(moves.values()):
            lost = min(set(moves) - set(moves.values()))
            raise ValueError(f"moves bring the channel of {lost} nowhere")
        return source

    def _indices(self, source: np.ndarray) -> dict[str, dict[int, Tensor]]:
        """By parameter or buffer and dimension, where each element comes from; what occurs twice keeps its order."""
        indices: dict[str, dict[int, Tensor]] = {}
        for use in self.channels.uses:
            ids = self.channels.roots[use.channels]
            wanted = source[ids]
            if np.array_equal(ids, wanted):
                continue
            # Matched by rank: the k-th smallest of what is wanted takes the place of the k-th smallest of what is
            # there. Both sorts are stable, so a channel that stands in several places keeps their order.
            index = np.empty(len(ids), dtype=np.int64)
            index[np.argsort(wanted, kind="stable")] = np.argsort(ids, kind="stable")
            indices.setdefault(use.name, {})[use.dim] = torch.from_numpy(index)
        return indices

    def _check(self, result: nn.Module) -> None:
        """Refuse a copy that does something else than the network on the example, where that is not a shape alone."""
        traced = self.channels.traced
        inputs = [leaf for leaf in tree_leaves((traced.args, traced.kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in (*self._held.values(), *inputs)):
            return
        wanted, found = self._outputs(traced.module), self._outputs(result)
        if len(wanted) != len(found) or not all(agree(*pair, REORDERED) for pair in zip(wanted, found, strict=True)):
            raise Unreadable(f"{type(traced.module).__name__} does something else with its channels in another order")

    def _outputs(self, module: nn.Module) -> list[Tensor]:
        """What a copy of ``module`` gives on the example in evaluation."""
        args, kwargs = copy.deepcopy((self.channels.traced.args, self.channels.traced.kwargs))
        twin = copy.deepcopy(module)
        with quiet(twin):
            seed()
            given = twin(*args, **kwargs)
        return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
