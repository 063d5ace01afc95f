"""Which maps of a plain C-Ghost module are intrinsic, and which ghost is whose: by reordering the network's channels.

A module's outputs are ``[Y', Φ_1(Y'), …]``: output i is intrinsic and outputs i+m, i+2m, … are its ghosts.  Any other
choice is the same module in a network whose channels stand in another order, and a network can be reordered without
changing its function (``channels.Ordering``): weights of neighbours move along, and nothing is gathered at run time.
Layers that write into one residual stream share its order, so the choice is made for all layers at once:

    minimise   Σ_layers Σ_ghosts  w_j e_ij / Σ_j w_j var_j      e_ij = var_j − c_ijᵀ R_i⁻¹ c_ij,  w_j the norm's a_j²

e_ij is the error of map j as the best d x d filter of map i, R_i and c_ij are covariances over the original's maps.
The search exchanges two channels at a time wherever that lowers the sum, many disjoint exchanges in one sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ghostify.batches import Batch
from ghostify.channels import Ordering, Unreadable, follow
from ghostify.fitting.agenda.epilogue import epilogue, line
from ghostify.fitting.interpreter import Interpreter
from ghostify.fitting.kinds.ghosts import layout
from ghostify.ghosts.c_ghost import linear_maps
from ghostify.ghosts.narrowing import Conv
from ghostify.leastsquares.pairs import PairMoments, as_maps, pair_positions
from ghostify.leastsquares.splitting import split
from ghostify.module_calls import given_by, is_batched
from ghostify.processes import present
from ghostify.rules.base import Split
from ghostify.running import evaluating
from ghostify.scanning import network_nodes
from ghostify.tracing import Traced, sized_as

_SWEEPS, _LEAST_SWEEPS = 200, 6
_PAIRS = 2 * 10**7
"""Pairs of channels looked at in all sweeps: wide layers get fewer, and the first of them gain the most."""
_POSITIONS = 2048
"""Positions at which maps are compared: no filter stays that is fitted there, and fewer images need be run for them."""


@dataclass(eq=False)
class _Layer:
    """A layer whose order of outputs matters."""

    target: str
    roots: np.ndarray
    """The root of each output, (n,); below zero where it has none that could move."""
    classes: np.ndarray
    """The class of each output: those of one may be exchanged, -1 stays."""
    parts: np.ndarray
    """(s, m): the output that each map of each part becomes, -1 for none."""
    errors: np.ndarray
    """e (n, n), in shares of the layer's variance: of row i as the intrinsic map of column j."""
    selectable: bool = True
    """Whether it may select its channels at run time."""

    def __post_init__(self) -> None:
        self.place = {int(root): index for index, root in enumerate(self.roots)}
        self.content = np.arange(len(self.roots))
        """Which output's content stands at each place now."""

    def costs(self) -> np.ndarray:
        """(n, n): what place p costs with the content x in it, the others as they are."""
        n, content = len(self.roots), self.content
        costs = np.zeros((n, n))
        # A content counts at both ends: as the intrinsic map of what stands at j, and as the ghost of what stands at i.
        for ghosts in self.parts[1:]:
            there = ghosts >= 0
            i, j = self.parts[0][there], ghosts[there]
            costs[i] += self.errors[:, content[j]].T
            costs[j] += self.errors[content[i]]
        return costs

    def groups(self) -> np.ndarray:
        """By place, the intrinsic map it belongs to."""
        group = np.zeros(len(self.roots), dtype=int)
        for part in self.parts:
            group[part[part >= 0]] = np.flatnonzero(part >= 0)
        return group

    def gains(self, places: np.ndarray) -> np.ndarray:
        """By pair of ``places``, by how much the cost changes when their contents are exchanged."""
        costs, now = self.costs(), self.content[places]
        moved = costs[places][:, now]
        stays = moved.diagonal()
        gains = moved + moved.T - stays[:, None] - stays
        # Within one group the sum above counts terms twice: there all depends on who is intrinsic, and two ghosts that
        # are exchanged change nothing.
        group, first, whole = self.groups()[places], np.isin(places, self.parts[0]), self._whole()

        def inside(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            # How a group's cost changes when the content of the other place becomes its intrinsic map.
            change = whole[group[one], now[other]] - whole[group[one], now[one]]
            return np.where(first[one] & ~first[other], change, 0.0)

        # Groups are small: few pairs are of one, so these are put right one by one.
        one, other = np.nonzero(group[:, None] == group)
        gains[one, other] = inside(one, other) + inside(other, one)
        return gains

    def moved(self, order: Sequence[int], moves: Mapping[int, int]) -> list[int]:
        """An order of its own, for each output its place, once other channels have come to where outputs were."""
        return [order[self.place[moves.get(root, root)]] for root in self.roots.tolist()]

    def _whole(self) -> np.ndarray:
        """(m, n): the errors of all contents of a group as ghosts of x."""
        total = np.zeros((self.parts.shape[1], len(self.roots)))
        for part in self.parts:
            there = part >= 0
            total[there] += self.errors[:, self.content[part[there]]].T
        return total


@dataclass(frozen=True)
class Arrangement:
    """A network whose channels stand in the order chosen, and the orders that only a selection at run time gives."""

    traced: Traced
    orders: dict[str, list[int]]
    """By layer, for each output its place among the concatenated maps."""


def arranged(
    traced: Traced,
    splits: Sequence[Split],
    batches: Sequence[Batch],
    select: bool,
    kept: Callable[[str], bool] = lambda name: False,
) -> Arrangement:
    """The best arrangement found for the layers of ``splits``, from the original's maps for ``batches`` of images.

    Weights of layers that are to be ``kept``, by name, are not reordered.
    With ``select``, a layer that shares its order with others gets one of its own, by selecting channels.
    """
    try:
        ordering: Ordering | None = Ordering(follow(traced, *network_nodes(traced)))
    except Unreadable:
        ordering = None
    with evaluating(traced.module), torch.no_grad():
        walk = Interpreter(sized_as(traced, batches[0]), traced.module, batches, processes=present())
        layers = list(_layers(splits, walk, ordering))
    # A layer that shares its order with no other is given the best one by moving weights; only the others gain by
    # selecting at run time.
    shared = Counter(label for layer in layers for label in set(layer.classes.tolist()) if label >= 0)
    alone = [layer for layer in layers if (layer.classes >= 0).all() and all(shared[c] == 1 for c in layer.classes)]
    together = [layer for layer in layers if layer not in alone]
    orders = {layer.target: _own_order(layer) for layer in together if select and layer.selectable}
    moving = [layer for layer in layers if layer.target not in orders]
    moves = _search(moving) if ordering is not None else {}
    if moves and ordering is not None:
        try:
            module = ordering.permuted(moves)
            _require_kept(traced.module, module, kept)
            traced = traced.of(module)
            own = {layer.target: layer for layer in together}
            orders = {name: own[name].moved(order, moves) for name, order in orders.items()}
        except Unreadable:
            orders |= {layer.target: _own_order(layer) for layer in moving if select and layer.selectable}
    return Arrangement(traced, orders)


def _require_kept(original: nn.Module, module: nn.Module, kept: Callable[[str], bool]) -> None:
    """Raise ``Unreadable`` where another order would change a layer that is to stay as it is."""
    before = original.state_dict()
    for name, value in module.state_dict().items():
        if kept(name.rpartition(".")[0]) and isinstance(value, torch.Tensor) and not torch.equal(value, before[name]):
            raise Unreadable(name)


def _layers(splits: Sequence[Split], walk: Interpreter, ordering: Ordering | None) -> Iterator[_Layer]:
    wanted = {given[0]: split for split in splits if (given := given_by(walk.traced, split.target))}
    started: set[int] = set()
    for node in walk.nodes:
        wish = wanted.get(node)
        if wish is None:
            continue
        conv: Any = walk.root.get_submodule(wish.target)
        if not is_batched(conv, node):
            continue
        n, groups = len(conv.weight), getattr(conv, "groups", 1)
        roots = ordering.roots(wish.target) if ordering else None
        classes = ordering.movable(wish.target) if ordering else None
        if roots is None or classes is None or len(set(roots.tolist())) < n:
            # A layer whose channels cannot be followed moves with nobody: no root of the network, and no class.
            roots, classes = -1 - np.arange(n), np.full(n, -1)
        maps = linear_maps if isinstance(conv, nn.Linear) else as_maps
        shape = maps(torch.empty(node.meta["shapes"][0], device="meta")).shape
        positions = pair_positions(shape, wish.d, len(walk.values), walk.room(node), _POSITIONS)
        own = set(positions.batches) & set(walk.own)
        started |= own
        walk.keep(node)
        walk.advance(walk.index[node] + 1, started)
        pairs = PairMoments()
        for batch in sorted(own):
            pairs.add(positions.shifts(maps(walk.values[batch][node]), wish.d, batch))
        pairs = pairs.reduced()
        norm = epilogue(walk.traced, node).norm
        slope = line(walk.root.get_submodule(str(norm.target)) if norm else None, n, pairs.variances)[0]
        walk.drop(node)
        weights = slope.square()
        errors = pairs.errors() * weights / (weights * pairs.variances).sum().clamp_min(1e-30)
        selectable = groups == 1 and isinstance(conv, Conv)
        yield _Layer(
            wish.target, roots, classes, layout(n, wish.s, groups, wish.m).numpy(), errors.cpu().numpy(), selectable
        )


def own_split(errors: np.ndarray, parts: np.ndarray, classes: np.ndarray, pairs: int = _PAIRS) -> np.ndarray:
    """Whose map best stands at each place of one layer by itself, (n,); see ``splitting.split``.

    About so many ``pairs`` are looked at to improve on that.
    """
    n = len(errors)
    free = _Layer("", np.arange(n), classes, parts, errors)
    free.content = split(errors, parts, classes)
    _search([free], pairs)
    return free.content


def _own_order(layer: _Layer) -> list[int]:
    """The best order of one layer by itself: for each output its place."""
    content = own_split(layer.errors, layer.parts, np.zeros_like(layer.classes))
    order: list[int] = np.argsort(content).tolist()
    return order


def _search(layers: Sequence[_Layer], pairs: int = _PAIRS) -> dict[int, int]:
    """By root, the root whose content is best moved there."""
    classes: dict[int, np.ndarray] = {}
    for layer in layers:
        for label in np.unique(layer.classes[layer.classes >= 0]):
            classes[int(label)] = layer.roots[layer.classes == label]
    content = {int(root): int(root) for roots in classes.values() for root in roots}
    widest = max((len(layer.roots) for layer in layers), default=1)
    least = _LEAST_SWEEPS if pairs >= _PAIRS else 0
    for _ in range(min(_SWEEPS, max(least, pairs // widest**2))):
        if not sum(_sweep(layers, roots, content) for roots in classes.values()):
            break
    return {root: other for root, other in content.items() if root != other}


def _sweep(layers: Sequence[_Layer], roots: np.ndarray, content: dict[int, int]) -> int:
    """Exchange what lowers the cost, best first, each group of maps once; how many exchanges were made."""
    concerned = [layer for layer in layers if int(roots[0]) in layer.place]
    places = [np.array([layer.place[int(root)] for root in roots]) for layer in concerned]
    gains = np.sum([layer.gains(at) for layer, at in zip(concerned, places, strict=True)], 0)
    # A gain below rounding may be one in both directions, and the sweeps would never end.
    rows, columns = np.nonzero(np.triu(gains, 1) < -1e-9)
    order = np.argsort(gains[rows, columns])[: 4 * len(roots)]
    touched: list[set[int]] = [set() for _ in concerned]
    groups = [layer.groups() for layer in concerned]
    done = 0
    for a, b in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        # Gains were computed before the sweep: they hold for groups that nothing was exchanged in since.
        met = [{int(group[at[a]]), int(group[at[b]])} for group, at in zip(groups, places, strict=True)]
        if any(one & seen for one, seen in zip(met, touched, strict=True)):
            continue
        for layer, at, one, seen in zip(concerned, places, met, touched, strict=True):
            seen |= one
            p, q = at[a], at[b]
            layer.content[[p, q]] = layer.content[[q, p]]
        left, right = int(roots[a]), int(roots[b])
        content[left], content[right] = content[right], content[left]
        done += 1
    return done
