"""Sizes that a network's own code is told, as in ``x.view(-1, 256)``: their channels stay, or it does not run.

A recorded graph holds a size that was written and one that was read off a tensor alike, as a number.  A narrower copy
that is run tells them apart.  Sizes that are read off may need numbers of channels that plans do not keep to: a shuffle
of two groups cuts its channels in the middle, wherever the halves were.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, fx

from ghostify.channels import Channels, Unreadable, follow, narrowed
from ghostify.running import Failed, attempt, op_name, quiet
from ghostify.tracing import Traced

_SIZED = frozenset({"Unflatten", "expand", "narrow", "reshape", "split", "split_with_sizes", "unflatten", "view"})
"""Operations that are told sizes."""
_SHARES = (0.5, 0.75, 0.25)
"""Of the channels, at which a copy is tried: where they must divide by groups, what is left of one of these does."""


class _Names(NamedTuple):
    """The names of nodes whose channels stay; nodes themselves would keep their graph alive."""

    written: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    """All that are told sizes, where parts of their tensors have to stay as long as they are; else none."""


_names: WeakKeyDictionary[fx.Graph, _Names] = WeakKeyDictionary()
"""What was found, by graph."""


def written(traced: Traced, inside: bool = False) -> list[fx.Node]:
    """The nodes whose tensors have a size that the code writes out, and that channels are a part of.

    Where only what lies ``inside`` blocks is to become narrower, those that the code cuts in parts, too.
    """
    names = _names_in(traced)
    wanted = (inside and names.cut) or names.written
    return [node for node in traced.graph.nodes if node.name in wanted]


def written_layers(traced: Traced, channels: Channels, inside: bool = False) -> dict[str, str]:
    """By layer that makes channels of such a size, why it keeps them, as the end of a sentence."""
    cut = inside and _names_in(traced).cut
    does = "cuts them in parts that go together" if cut else "writes out how many there are"
    return {
        layer: f"keeps its outputs, because {_place(node)} {does} ({_call(traced, node)})"
        for node in written(traced, inside)
        for layer in _makers(channels, node)
    }


def nodes_and_outputs(traced: Traced) -> tuple[list[fx.Node], list[fx.Node]]:
    """All nodes but the output, and those whose values the network gives."""
    *nodes, output = traced.graph.nodes
    return nodes, output.all_input_nodes


def _names_in(traced: Traced) -> _Names:
    if traced.graph not in _names:
        _names[traced.graph] = _found(traced)
    return _names[traced.graph]


def _found(traced: Traced) -> _Names:
    nodes, outputs = nodes_and_outputs(traced)
    sized = [node for node in nodes if node.op != "get_attr" and op_name(traced, node) in _SIZED]
    if not sized:
        return _Names()
    try:
        channels = follow(traced, [nodes], None, outputs)
        # Nearly always all of it runs at once, and nothing is written; what does not run as it is tells nothing.
        if _runs(channels, _shares(channels, set(channels.segment_of.values()), _SHARES[0])):
            found = []
        elif _runs(channels, _shares(channels, (), 1)):
            found = [node for node in sized if _cannot_change(channels, node)]
        else:
            return _Names()
        cut = not _runs_unevenly(traced, found) and _runs_unevenly(traced, sized)
        return _Names(tuple(node.name for node in found), tuple(node.name for node in sized if cut))
    except Unreadable:
        return _Names()


def _cannot_change(channels: Channels, node: fx.Node) -> bool:
    """Whether the network runs at no smaller number of the channels in a node's tensor, all others as they are."""
    components = channels.components[_numbers(channels, node)]
    segments = {channels.segment_of[one] for one in components.tolist() if one in channels.segment_of}
    return bool(segments) and not any(_runs(channels, _shares(channels, segments, share)) for share in _SHARES)


def _runs_unevenly(traced: Traced, fixed: Sequence[fx.Node]) -> bool:
    """Whether the network runs where some segments inside its blocks are halved and others not, with the channels of
    some nodes kept: what plans choose for one does not depend on what they choose for another.

    Any two segments differ in a bit of their numbers, so in one of the runs one of them is halved and the other is not.
    """
    nodes, outputs = nodes_and_outputs(traced)
    try:
        channels = follow(traced, [nodes], None, list(dict.fromkeys([*outputs, *fixed])), sums=True)
    except Unreadable:  # no plan goes inside its blocks, and what is written out is known all the same
        return False
    segments = range(len(channels.members))
    chosen = ({one for one in segments if one >> bit & 1} for bit in range(len(segments).bit_length()))
    return all(_runs(channels, _shares(channels, some, _SHARES[0])) for some in chosen)


def _shares(channels: Channels, segments: Collection[int], share: float) -> list[int]:
    """How many components stay of each segment, with a share of those of some segments."""
    return [
        max(1, int(share * len(members))) if segment in segments else len(members)
        for segment, members in enumerate(channels.members)
    ]


def _runs(channels: Channels, counts: Sequence[int]) -> bool:
    """Whether the network runs with so many components of each segment."""
    traced = channels.traced
    module = copy.deepcopy(traced.module, narrowed(channels, channels.kept(counts)))
    with quiet(module):
        module.train(traced.training)
        try:
            attempt(module, *copy.deepcopy((traced.args, traced.kwargs)))
        except Failed:
            return False
    return True


def _numbers(channels: Channels, node: fx.Node) -> np.ndarray:
    """Those of the channels in a node's tensor, or tensors, without places that belong to no channel."""
    ids = channels.ids.get(node)
    tensors = [one for one in (ids if isinstance(ids, list) else [ids]) if isinstance(one, Tensor)]
    numbers = [np.unique(tensor.numpy()) for tensor in tensors]
    return np.array([one for own in numbers for one in own if one >= 0], dtype=int)


def _makers(channels: Channels, node: fx.Node) -> Iterator[str]:
    """The layers that make channels in a node's tensor."""
    roots = channels.roots[_numbers(channels, node)]
    for use in channels.uses:
        layer, _, name = use.name.rpartition(".")
        filters = use.dim == 0 and getattr(channels.traced.part(layer), name).dim() > 1
        if filters and np.isin(channels.roots[use.channels], roots).any():
            yield layer


def _place(node: fx.Node) -> str:
    module = str(node.meta.get("module", ""))
    return f"the code of {module!r}" if module else "the network's own code"


def _call(traced: Traced, node: fx.Node) -> str:
    """The operation with the sizes that it was told: ``reshape -1, 256``."""
    if node.op == "call_module":
        return op_name(traced, node)
    told = [str(one) for one in (*node.args[1:], *node.kwargs.values())]
    return f"{op_name(traced, node)} {', '.join(told)}"
