"""The numbers of channels, as they are given out and tied on the way through a graph (``propagation.py``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ghostify.channels.grouping import NONE, Read, Selection, Unreadable, Use, along, constant_along
from ghostify.channels.operations import WEIGHT_AT
from ghostify.names import parent_of
from ghostify.running import op_name
from ghostify.tracing import Traced


class Numbering(ABC):
    """Numbers per node, what they tie, which weights use them, and what that costs."""

    def __init__(self, traced: Traced, entry: fx.Node | None, sums: bool) -> None:
        self.traced = self.whole = traced
        self.entry = entry
        self.sums = sums
        self.stays: list[np.ndarray] = []
        """Channels that are kept, because they are added to others or held where nothing can cut them."""
        self.constants: set[fx.Node] = set()
        self.count = 0
        self.ids: dict[fx.Node, Any] = {}
        self.uses: dict[tuple[str, int], Use] = {}
        self.selections: dict[str, Selection] = {}
        self.reads: list[Read] = []
        self.producers: list[np.ndarray] = []
        self.marks: list[np.ndarray] = []
        self.ties: list[tuple[np.ndarray, np.ndarray]] = []
        self.groups: list[tuple[np.ndarray, np.ndarray]] = []
        self.lanes: list[tuple[np.ndarray, np.ndarray]] = []
        self.block = 0
        self.block_entry: fx.Node | None = entry
        self.counted: set[str] = set()
        self.shortcuts: list[bool] = []
        self.ordered = False
        self.costs_count = True

    @abstractmethod
    def _step(self, node: fx.Node) -> None:
        """Give a node its numbers."""

    # -- numbers -----------------------------------------------------------------------------------------------

    def _fresh(self, n: int, chosen: bool = True) -> np.ndarray:
        """New numbers, of a tensor whose width may be ``chosen``, or that follows from others."""
        numbers = np.arange(self.count, self.count + n)
        self.count += n
        if n:
            (self.producers if chosen else self.marks).append(numbers)
        return numbers

    def _spread(self, channels: np.ndarray, shape: tuple[int, ...], dim: int) -> Tensor:
        """A tensor of ``shape`` that holds ``channels`` along ``dim``."""
        view = [1] * len(shape)
        view[dim] = len(channels)
        return torch.from_numpy(channels).view(view).expand(shape)

    def _tied(self, a: Tensor, b: Tensor) -> Tensor:
        """The numbers of ``a`` and ``b`` broadcast together, tied place by place.

        A side that is spread over the other's channels is tied to none of them.
        """
        size = max(a.dim(), b.dim())
        a, b = a.reshape((1,) * (size - a.dim()) + a.shape), b.reshape((1,) * (size - b.dim()) + b.shape)
        for dim in range(size):
            # one value for all channels of the other side (a gate for a whole map) belongs to none of them
            if a.shape[dim] == 1 < b.shape[dim] and not constant_along(b, dim):
                a = torch.full((1,) * size, NONE)
            elif b.shape[dim] == 1 < a.shape[dim] and not constant_along(a, dim):
                b = torch.full((1,) * size, NONE)
        a, b = torch.broadcast_tensors(a, b)
        small = tuple(
            # numbers are the same all over a map, which is held as one place with a stride of 0: compare that place
            # alone
            slice(0, 1) if a.stride(dim) == 0 and b.stride(dim) == 0 else slice(None)
            for dim in range(a.dim())
        )
        left, right = a[small].reshape(-1).numpy(), b[small].reshape(-1).numpy()
        both = (left >= 0) & (right >= 0) & (left != right)
        if both.any():
            pairs = np.unique(left[both] * self.count + right[both])  # each pair once, as one number
            self.ties.append((pairs // self.count, pairs % self.count))
        if (left < 0).any():
            # where one side is a constant, the result is the channel of the other side
            merged = torch.where(a[small] >= 0, a[small], b[small])
            return merged.expand(a.shape)
        return a

    def _ids(self, source: fx.Node, node: fx.Node) -> Tensor:
        found = self.ids.get(source)
        if found is None and source.op == "get_attr":
            return self._operand(source, node)
        if found is None and from_parameters(source):
            self._step(source)
            found = self.ids[source]
        if found is None:
            raise self._stop(node, "reads a value from outside the part")
        if isinstance(found, list):
            raise self._stop(node, "reads several tensors at once")
        return found

    def _all_ids(self, node: fx.Node) -> list[Tensor]:
        """The numbers of a node's tensor, or of each where it gives several."""
        found = self.ids.get(node)
        return [ids for ids in found if isinstance(ids, Tensor)] if isinstance(found, list) else [self._ids(node, node)]

    def _vector(self, source: fx.Node, node: fx.Node, dim: int) -> np.ndarray:
        """The numbers of a tensor along ``dim``; the only dimension they may vary along."""
        ids = self._ids(source, node)
        if not lies_along(ids, dim):
            raise self._scattered(source, node, dim)
        return along(ids, dim)

    def _scattered(self, source: fx.Node, node: fx.Node, dim: int) -> Unreadable:
        """What is wrong with channels that lie elsewhere than along ``dim``, by the operation that put them there."""
        reader = f"{op_name(self.traced, node)} in {_home(node)!r}"
        # go back to the first operation that spread the channels over several dimensions: it is to blame, not its
        # readers
        while moved := [one for one in source.all_input_nodes if len(self._varying(one)) > 1]:
            source = moved[0]
        if source.op == "placeholder":
            return self._stop(node, f"reads a tensor whose channels do not lie along dimension {dim} alone")
        places = " and ".join(map(str, self._varying(source)))
        return self._stop(source, f"puts channels into dimension {places}, where {reader} reads dimension {dim}")

    def _varying(self, node: fx.Node) -> list[int]:
        """The dimensions along which a tensor's channels lie."""
        ids = self.ids.get(node)
        return [dim for dim in range(ids.dim()) if not constant_along(ids, dim)] if isinstance(ids, Tensor) else []

    def _stop(self, node: fx.Node, why: str) -> Unreadable:
        return Unreadable(f"{op_name(self.traced, node)} in {_home(node)!r} {why}")

    # -- weights and parameters --------------------------------------------------------------------------------

    def _parameters(self, node: fx.Node) -> tuple[str, str]:
        """Qualified names of a node's weight and bias, empty where there is none."""
        if node.op == "call_module":
            own = dict(self.traced.leaf(node).named_parameters(recurse=False))
            if own.keys() - {"weight", "bias"}:
                raise self._stop(node, "computes its weight from other parameters")
            weight, bias = (
                self._first_name(f"{node.target}.{name}") if name in own else "" for name in ("weight", "bias")
            )
            return weight, bias
        found = []
        for place, key in ((WEIGHT_AT.get(op_name(self.traced, node), 1), "weight"), (None, "bias")):
            place = place if key == "weight" else WEIGHT_AT.get(op_name(self.traced, node), 1) + 1
            source = argument(node, place, key)
            if source is not None and not (isinstance(source, fx.Node) and source.op == "get_attr"):
                raise self._stop(node, f"has a {key} that is computed on the way")
            found.append(self._first_name(str(source.target)) if source is not None else "")
        return found[0], found[1]

    def _parameters_and_buffers(self, node: fx.Node, n: int) -> list[str]:
        """Names of all tensors of length n a norm works with."""
        if node.op == "call_module":
            module = self.traced.leaf(node)
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            named = (f"{node.target}.{name}" for name, tensor in own if tensor.dim() == 1 and len(tensor) == n)
            return [self._first_name(name) for name in named]
        return [self._first_name(str(source.target)) for source in node.all_input_nodes[1:] if source.op == "get_attr"]

    def _vector_parameter(self, node: fx.Node, name: str, channels: np.ndarray) -> None:
        """A parameter (or buffer) with one element per channel."""
        if not name:
            return
        self._use(name, 0, channels)
        if name not in self.counted:
            self.counted.add(name)
            if name in self._named:
                self._count(Read(self.block, channels, layer=self._layer(node, name)))

    def _made(self, weight: str, dim: int, n: int) -> np.ndarray:
        """New channels that ``weight`` makes, the same as before where it is used again."""
        if (weight, dim) in self.uses:
            return self.uses[weight, dim].channels
        out = self._fresh(n)
        self._use(weight, dim, out)
        return out

    def _operand(self, source: fx.Node, node: fx.Node) -> Tensor:
        """Numbers of an operand; a parameter's one long dimension gets new ones."""
        if source.op != "get_attr":
            return self._ids(source, node)
        shape = shape_of(source)
        long = [dim for dim, size in enumerate(shape) if size > 1]
        if len(long) > 1:
            raise self._stop(node, f"uses {source.target!r}, which has several long dimensions")
        name = self._first_name(str(source.target))
        if name in self.traced.constants:  # the code holds it in a list or the like, where nothing can cut it
            channels = self._fresh(shape[long[0]], chosen=False) if long else np.array([NONE])
            self.stays.append(channels)
        else:
            channels = self._made(name, long[0], shape[long[0]]) if long else np.array([NONE])
        if name not in self.counted:
            self.counted.add(name)
            params, layer = bool(source.meta.get("parameter")), self._layer(node, name)
            self._count(Read(self.block, channels, params=params, layer=layer))
        if not long:
            return torch.full(shape, NONE)
        return self._spread(channels, shape, long[0])

    def _use(self, name: str, dim: int, channels: np.ndarray, lanes: bool = False, entry: bool = False) -> None:
        known = self.uses.get((name, dim))
        if known is None:
            self.uses[name, dim] = Use(name, dim, channels, entry, lanes)
        elif not lanes:
            self._tied(torch.from_numpy(known.channels), torch.from_numpy(channels))

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset(self.traced.parameter_names.values())

    def _first_name(self, name: str) -> str:
        owner, _, last = name.rpartition(".")
        tensor = getattr(self.traced.part(owner), last, None)
        return self.traced.parameter_names.get(id(tensor), name)

    def _size(self, node: fx.Node, name: str) -> int:
        return self.traced.module.get_parameter(name).numel()

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether a value is a parameter or a buffer, or computed from those alone."""
        return node.op == "get_attr" or node in self.constants

    # -- costs -------------------------------------------------------------------------------------------------

    def _read(self, node: fx.Node, weight: str, out: np.ndarray, **sides: Any) -> None:
        entry = self.block_entry is not None and node.all_input_nodes[0] is self.block_entry
        first = weight not in self.counted
        self.counted.add(weight)
        layer = self._layer(node, weight)
        self._count(Read(self.block, out, entry=entry, params=first, layer=layer, **sides))

    def _layer(self, node: fx.Node, parameter: str) -> str:
        """The first name of the layer that a node calls, or else of the module that holds a parameter."""
        if node.op == "call_module":
            return str(self.traced.names[self.traced.leaf(node)][0])
        return parent_of(parameter) or parameter

    def _count(self, read: Read) -> None:
        """What runs on the example costs; the parameters that other runs alone use are there all the same."""
        if self.costs_count:
            self.reads.append(read)
        elif read.params:
            self.reads.append(replace(read, positions=0, outputs=0))


def lies_along(ids: Tensor, dim: int) -> bool:
    """Whether channels vary along no other dimension."""
    return all(constant_along(ids, other) for other in range(ids.dim()) if other != dim % ids.dim())


def _home(node: fx.Node) -> str:
    return node.meta.get("module") or "(root)"


def from_parameters(node: fx.Node) -> bool:
    """Whether a value is a parameter, or computed from parameters and constants alone."""
    computed = node.op in ("call_module", "call_function", "call_method")
    return node.op == "get_attr" or (computed and all(map(from_parameters, node.all_input_nodes)))


def unspread(ids: Tensor) -> np.ndarray:
    """All numbers of a tensor in a row, those that are spread along a dimension once."""
    return ids[tuple(slice(0, 1) if ids.stride(d) == 0 else slice(None) for d in range(ids.dim()))].reshape(-1).numpy()


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's value, of its first tensor where there are several."""
    return tuple(node.meta["shapes"][0])


def argument(node: fx.Node, place: int | None, name: str) -> Any:
    """What a node was given at that place or by that name; None where it was given nothing."""
    if place is not None and len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(name)
