"""Within a layer: how well its maps are made of fewer, by a depthwise filter of one map or a combination of several.

    y_j ≈ k ∗ y_i + b        error_j = min over i, k, b of E(y_j − k ∗ y_i − b)² / var(y_j)      (C-GhostNet, Table 3)
    y ≈ P_m y + b            carried(m) = 1 − min over P of rank m of E|y − P y − b|² / var(y)   (``rank_curve``)

The first is what C-Ghost has to do with depthwise filters: with a ratio s it keeps n/s intrinsic maps and makes each of
the others so, at most s−1 of one intrinsic map.  The second is what it can do with a pointwise convolution, which reads
all intrinsic maps: m of these carry what the best m linear combinations of all n maps carry.

Processes that look at a network together have its maps for their own batches each; what they sum up is reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghostify.analysis.findings import FilterError, MapPair, SplitError
from ghostify.fitting.channel_order import own_split
from ghostify.fitting.kinds.ghosts import layout
from ghostify.leastsquares.moments import Moments
from ghostify.leastsquares.pairs import PairMoments, as_maps
from ghostify.leastsquares.principal import carried
from ghostify.leastsquares.sampling import Positions, positions_wanted
from ghostify.processes import present

SIZES = (1, 3, 5, 7)
"""Sizes d of filters that are compared."""
RATIOS = (2, 3, 4, 5)
PAIRS = 6
_SHOWN = 48
"""Maps that stand for all where filters of several sizes are compared."""
_EXCHANGES = 10**6
"""Pairs of maps that are looked at to improve how a layer is divided."""
_SILENT = 1e-12
"""A map whose variance is below this share of the largest does not vary."""
_LOAD = 1e-11


@dataclass(frozen=True)
class Found:
    """What was measured of one layer."""

    similarity: float
    filters: tuple[FilterError, ...]
    splits: tuple[SplitError, ...]
    best: tuple[float, ...]
    pairs: tuple[MapPair, ...]
    silent: int


def compare_maps(maps: Callable[[int], Tensor], positions: Positions, d: int, groups: int) -> Found:
    """Compare the maps of one layer at ``positions``; ``maps`` gives the output of a batch, (B, n, …).

    Maps of different ``groups`` are not made of each other.
    """
    halves = _halves(maps, positions, d)
    both = halves[0] if len(halves) == 1 else halves[0].plus(halves[1])
    variances = both.variances.cpu()
    varies = variances > _SILENT * variances.max().clamp_min(1e-30)
    shares = torch.where(varies, 1 / variances.clamp_min(1e-300), 0.0)
    errors = (both.errors().cpu() * shares).clamp_max(1)
    allowed = _allowed(len(errors), groups, varies)
    sources = torch.where(allowed, errors, torch.inf).min(0).indices
    best = errors[sources, torch.arange(len(errors))]
    best = torch.where(allowed.any(0), best, 1.0)
    made = [j for j in best.argsort().tolist() if varies[j] and allowed[:, j].any()]
    chosen = _apart(made, sources.tolist())
    # filters of several sizes cost most: evenly chosen maps stand for all, and those of pairs are always among them
    looked = sorted({*made[:: -(-len(made) // _SHOWN) or 1], *chosen})
    of_sizes = _of_sizes(maps, positions, sources[looked], torch.tensor(looked))
    correlations = both.correlations().cpu()
    return Found(
        similarity=_similarity(correlations, allowed, varies),
        filters=tuple(
            FilterError(d=size, error=float((mse * shares[looked]).clamp_max(1).mean()), mse=float(mse.mean()))
            for size, mse in of_sizes.items()
            if looked
        ),
        splits=tuple(_split(s, errors, halves, shares, groups) for s in RATIOS if s <= len(errors) // groups),
        best=tuple(best[varies].tolist()),
        pairs=tuple(_pair(both, correlations, int(sources[j]), j, of_sizes, looked, shares) for j in chosen),
        silent=int((~varies).sum()),
    )


def rank_positions(shape: Sequence[int], batches: int, most: float) -> Positions:
    """Where the covariance of a layer's maps is taken, in no more than ``most`` of the batches.

    Several positions for each map at least: of fewer, some combinations would seem to carry nothing.  ``shape``: of a
    batch's output, (B, n) or (B, n, …).
    """
    shape = shape if len(shape) > 2 else (*shape, 1, 1)
    return Positions(shape, positions_wanted(shape[1], shape[1]), batches, 0, 1, most=most)


def rank_curve(maps: Callable[[int], Tensor], positions: Positions, weights: Tensor) -> tuple[float, ...]:
    """By m = 1 … n, the share of the variance that the best m combinations of a layer's maps carry.

    ``maps`` gives the output of a batch, (B, n, …); errors in them count by ``weights`` (n,).
    """
    moments = Moments()
    for batch in present().share(positions.batches):
        y = positions.values(as_maps(maps(batch)), batch)[:, None]
        moments.add(y, y[:, :, :0])  # nothing is predicted: the covariance of the maps says all
    return tuple(carried(moments.reduced().features()[0], weights).tolist())


def _halves(maps: Callable[[int], Tensor], positions: Positions, d: int) -> list[PairMoments]:
    """Sums over every second batch and over the others; over all of them where there is one."""
    # an error that is another in each half of the batches may be as far off as the halves are apart
    halves = [PairMoments() for _ in positions.batches[:2]]
    own = present().share(positions.batches)
    for index, batch in enumerate(positions.batches):
        if batch in own:
            halves[index % 2].add(positions.shifts(as_maps(maps(batch)), d, batch))
    return [half.reduced() for half in halves]


def _allowed(n: int, groups: int, varies: Tensor) -> Tensor:
    """(n, n): whether map i may make map j."""
    group = torch.arange(n) // max(1, n // groups)
    # a ghost reads the intrinsic maps of its own group, and a silent map makes nothing
    allowed = (group[:, None] == group[None]) & varies[:, None]
    return allowed.fill_diagonal_(False)


def _apart(made: Sequence[int], sources: Sequence[int]) -> list[int]:
    """The first maps that with their sources make pairs no map is in twice."""
    chosen: list[int] = []
    seen: set[int] = set()
    for j in made:
        if len(chosen) < PAIRS and not seen & {j, sources[j]}:
            chosen.append(j)
            seen |= {j, sources[j]}
    return chosen


def _of_sizes(maps: Callable[[int], Tensor], positions: Positions, sources: Tensor, made: Tensor) -> dict[int, Tensor]:
    """By size d, the mean squared errors (k,) of maps ``made`` as filters of maps ``sources``."""
    if not len(made):
        return {}
    largest = max(SIZES)
    moments = Moments()
    for batch in present().share(positions.batches):
        y = as_maps(maps(batch))
        v = positions.shifts(y[:, sources], largest, batch)
        moments.add(v, positions.values(y[:, made], batch)[:, :, None])
    moments = moments.reduced()
    s, c, variances = moments.features().cpu(), moments.crossed()[:, 0].cpu(), moments.tt[:, 0].cpu() / moments.count
    # The normal equations of the largest filter hold those of each smaller one: its taps are the inner square, so one
    # pass over the images is enough for all sizes.
    square = torch.arange(largest**2).unflatten(0, (largest, largest))
    found = {}
    for d in SIZES:
        edge = (largest - d) // 2
        taps = square[edge : edge + d, edge : edge + d].flatten()
        inner, crossed = s[:, taps][:, :, taps], c[:, taps]
        load = _LOAD * inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        # a hair of a ridge, because a smooth map's neighbouring taps are nearly the same
        inner = inner + load[:, None, None] * torch.eye(len(taps), dtype=inner.dtype)
        # var(y) - c' S^-1 c, the residual variance of a least squares fit; rounding may take it below zero
        found[d] = (variances - (crossed * torch.linalg.solve(inner, crossed)).sum(1)).clamp_min(0)
    return found


def _similarity(correlations: Tensor, allowed: Tensor, varies: Tensor) -> float:
    """The mean over maps of the largest |correlation| with another."""
    largest = torch.where(allowed, correlations.abs(), 0.0).max(0).values
    return float(largest[varies].mean()) if varies.any() else 0.0


def _split(s: int, errors: Tensor, halves: Sequence[PairMoments], shares: Tensor, groups: int) -> SplitError:
    n = len(errors)
    parts = layout(n, s, groups).numpy()
    place = torch.arange(n) // max(1, n // groups)
    content = torch.from_numpy(own_split(errors.numpy(), parts, place.numpy(), _EXCHANGES))
    heads, ghosts = content[parts[0]], [content[part[part >= 0]] for part in parts[1:]]
    sources = torch.cat([heads[part >= 0] for part in parts[1:]])
    made = torch.cat(ghosts)
    each = [float((half.filters(sources, made)[1].cpu() * shares[made]).clamp_max(1).mean()) for half in halves]
    owned: dict[int, list[int]] = {int(head): [] for head in heads}
    for head, ghost in zip(sources.tolist(), made.tolist(), strict=True):
        owned[head].append(ghost)
    return SplitError(
        s=s,
        error=float(errors[sources, made].mean()),
        spread=abs(each[0] - each[-1]) / 2,
        intrinsic=tuple(owned),
        ghosts=tuple(map(tuple, owned.values())),
    )


def _pair(
    both: PairMoments,
    correlations: Tensor,
    source: int,
    made: int,
    of_sizes: dict[int, Tensor],
    looked: Sequence[int],
    shares: Tensor,
) -> MapPair:
    taps, error = both.filters(torch.tensor([source]), torch.tensor([made]))
    side = round(taps.shape[1] ** 0.5)
    taps, error = taps.cpu(), error.cpu()
    return MapPair(
        source=source,
        made=made,
        correlation=float(correlations[source, made]),
        error=min(1.0, float(error[0] * shares[made])),
        mse={size: float(mse[looked.index(made)]) for size, mse in of_sizes.items()},
        taps=tuple(map(tuple, taps[0].reshape(side, side).tolist())),
    )
