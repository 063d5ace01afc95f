"""Operations that move values (views, permutations, splits, shuffles, selections) are run on the numbers themselves."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ghostify.channels.grouping import Selection, along, constant_along
from ghostify.channels.numbering import Numbering, argument, unspread
from ghostify.channels.operations import CUTS
from ghostify.running import run_node


class Moves(Numbering):
    """Numbers that are moved, selected and cut; nothing about the operations is encoded by hand."""

    def _moved(self, node: fx.Node, name: str) -> Any:
        if name == "index_select":
            return self._selected(node)
        args: Any = fx.node.map_arg(node.args, lambda source: self._moving(source, node))
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda source: self._moving(source, node))
        if name == "view":
            result = args[0].reshape(*args[1:], **kwargs)  # numbers that are spread have no view
        elif name == "channel_shuffle":
            result = _shuffled(args[0], args[1] if len(args) > 1 else kwargs["groups"])
        else:
            result = run_node(self.traced, node, args, kwargs)
        if name in CUTS or node.target is operator.getitem:
            self._mark(node, result)
        return [_compact(one) for one in result] if isinstance(result, (tuple, list)) else _compact(result)

    def _selected(self, node: fx.Node) -> Tensor:
        """Some channels, by a buffer of their places: it is cut with them."""
        source, dim, index = (argument(node, place, name) for place, name in enumerate(("input", "dim", "index")))
        ids = self._ids(source, node)
        if index.op != "get_attr":
            raise self._stop(node, "selects channels by indices that are computed on the way")
        # a buffer is the network's own in every run; a constant is held by the run that recorded it
        places = self.whole.tensor(index) if index.target not in self.traced.constants else self.traced.tensor(index)
        if places.is_meta:
            raise self._stop(node, "selects channels by indices that have no values on the meta device")
        if not constant_along(ids, dim):
            self._note_selection(str(index.target), along(ids, dim % ids.dim()))
        return _compact(ids.index_select(dim, places.cpu()))

    def _note_selection(self, name: str, channels: np.ndarray) -> None:
        known = self.selections.setdefault(name, Selection(name, channels))
        self._tied(torch.from_numpy(known.channels), torch.from_numpy(channels))

    def _moving(self, source: fx.Node, node: fx.Node) -> Any:
        return self.ids[source] if isinstance(self.ids.get(source), list) else self._ids(source, node)

    def _mark(self, node: fx.Node, result: Any) -> None:
        """Pieces cut from a tensor must lose as many channels each, because the code cuts by size: tell them apart."""
        pieces = result if isinstance(result, (tuple, list)) else [result]
        whole = node.all_input_nodes[0]
        total = self.ids[whole]
        if isinstance(total, list) or len(pieces) == 0:
            return
        everything = np.unique(unspread(total))
        for piece in pieces:
            # a piece that holds some numbers twice has cut through copies of a channel: those are told apart by how
            # often
            part, times = np.unique(unspread(piece), return_counts=True)
            if 0 < len(part) < len(everything):
                self.marks.append(part)
            if len(often := np.unique(times)) > 1:  # the cut took one of the places that some channels have
                self.marks += [part[times == one] for one in often]


def _compact(ids: Tensor) -> Tensor:
    """The same numbers, held once where they do not vary."""
    shape = ids.shape
    for dim in range(ids.dim()):
        if constant_along(ids, dim):
            ids = ids.narrow(dim, 0, 1)
    # a part of a larger tensor keeps all of it in memory, which of a shuffled map are its numbers at every position
    if ids.untyped_storage().nbytes() > ids.numel() * ids.element_size():
        ids = ids.clone()
    return ids.expand(shape)


def _shuffled(ids: Tensor, groups: int) -> Tensor:
    n, c, *rest = ids.shape
    return ids.reshape(n, groups, c // groups, *rest).transpose(1, 2).reshape(ids.shape)
