"""Across a stage: how well its last block's output is made of its first block's (G-Ghost, Eq. 6-12).

    cheap   y_j ≈ c_j · Y1 + b_j                  a 1x1 convolution of all channels of the first block's output Y1
    mix     y_j ≈ c_j · Y1 + w_j · z + b_j        z: the averages over the maps of all blocks' outputs but the last

With a ghost ratio λ, the λ-share of channels that are made best are ghosts.  All errors are of images held out.  The
mix term is one number per image and channel, so it is fitted to what the cheap operation leaves on average in each
image, and judged by leaving out one image at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghostify.analysis.findings import CurvePoint, MapPair
from ghostify.analysis.layers import PAIRS
from ghostify.leastsquares.moments import RIDGES, Moments, Normal
from ghostify.leastsquares.sampling import Positions, positions_wanted
from ghostify.processes import Processes, present

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_RIDGES = tuple(10.0**power for power in range(-6, 4))
_TINY = 1e-30


@dataclass(frozen=True)
class Found:
    """What was measured of one stage."""

    curve: tuple[CurvePoint, ...]
    cheap: tuple[float, ...]
    mixed: tuple[float, ...]
    pairs: tuple[MapPair, ...]


def stage_positions(shape: Sequence[int], batches: int, held: int, most: float = math.inf) -> Positions:
    """Where the outputs of the first and the last block are compared, in no more than ``most`` of the batches.

    ``shape``: of a batch's output, (B, n, H, W).
    """
    return Positions(shape, positions_wanted(shape[1], shape[1]), batches, 0, 1, held, most)


def compare_blocks(
    first: Callable[[int], Tensor],
    last: Callable[[int], Tensor],
    blocks: Sequence[Callable[[int], Tensor]],
    positions: Positions,
    held: int,
    batches: int,
) -> Found:
    """Compare outputs of the first and the last block, batch by batch (B, n, H, W), at ``positions``.

    ``blocks`` give the outputs of all blocks but the last; the last ``held`` of all ``batches`` are held out.
    """
    seen, out = Moments(), Moments()
    for batch in present().share(positions.batches):
        x, y = positions.values(first(batch), batch)[:, None], positions.values(last(batch), batch)[:, None]
        (out if batch >= batches - held else seen).add(x, y)
    seen, out = seen.reduced(), out.reduced()
    judge = out if held else seen
    weight, error = _cheapest(seen, judge)
    variances = (judge.tt[0] / judge.count).cpu()
    cheap = error[0].cpu()
    gained = _gained(weight[0], first, last, blocks, positions)
    # errors as shares of each channel's variance; a channel that does not vary is made by its bias and has none
    shares = 1 / variances.clamp_min(_TINY)
    silent = variances <= 1e-12 * variances.max()
    cheap_shares = torch.where(silent, 0.0, cheap * shares).clamp_max(1)
    mixed_shares = torch.where(silent, 0.0, (cheap - gained) * shares).clamp(0, 1)
    # the mix operation may be zero, so it never does worse than the cheap operation alone
    mixed_shares = torch.minimum(cheap_shares, mixed_shares)
    return Found(
        curve=tuple(_point(ratio, cheap_shares, mixed_shares) for ratio in RATIOS),
        cheap=tuple(cheap_shares.tolist()),
        mixed=tuple(mixed_shares.tolist()),
        pairs=_pairs(seen),
    )


def _cheapest(seen: Moments, judge: Moments) -> tuple[Tensor, Tensor]:
    """The weights (1, n, D) that make each channel of the last block's output of the first's, and their errors (1, n).

    Each channel has the ridge that does best for it: one that nothing explains would ask for a strong ridge, which
    would spoil those that are there already.
    """
    shape = (1, seen.mean_t.shape[1], seen.mean_u.shape[1])
    start = torch.zeros(shape, dtype=torch.float64, device=seen.mean_t.device)
    weights = [Normal(seen.features(), start, ridge).solve(seen.crossed()) for ridge in RIDGES]
    errors = torch.stack([judge.error(weight, seen.intercept(weight)) for weight in weights])
    error, best = errors.min(0)
    weight = torch.stack(weights).gather(0, best[None, :, :, None].expand(1, *shape))[0]
    return weight, error


def _point(ratio: float, cheap: Tensor, mixed: Tensor) -> CurvePoint:
    count = max(1, round(ratio * len(cheap)))
    return CurvePoint(
        ratio=ratio, cheap=float(cheap.sort().values[:count].mean()), mix=float(mixed.sort().values[:count].mean())
    )


def _gained(
    weight: Tensor,
    first: Callable[[int], Tensor],
    last: Callable[[int], Tensor],
    blocks: Sequence[Callable[[int], Tensor]],
    positions: Positions,
) -> Tensor:
    """By how much the mix term lowers each channel's mean squared error, (n,)."""
    processes = present()
    left, pooled = [], []
    for batch in processes.share(positions.batches):
        y = last(batch).mean((2, 3)).double()
        # an average over a map goes through a 1x1 filter unchanged, so averages of the maps are enough here
        left.append(y - first(batch).mean((2, 3)).double() @ weight.T)
        pooled.append(torch.cat([block(batch).mean((2, 3)) for block in blocks], 1).double())
    width = len(weight)
    r, z = _of_all(processes, left, width).cpu(), _of_all(processes, pooled, width * len(blocks)).cpu()
    # of two images, leaving one out leaves nothing to fit to
    if len(r) < 3:
        return r.new_zeros(r.shape[1])
    r, z = r - r.mean(0), z - z.mean(0)
    z = z / z.std(0, unbiased=False).clamp_min(1e-12)
    # Ridge regression by the Gram matrix of the images, of which there are fewer than channels: one decomposition
    # serves every strength, and the hat matrix's diagonal gives the leave-one-out errors without fitting again.
    values, vectors = torch.linalg.eigh(z @ z.T)
    values, turned = values.clamp_min(0), vectors.T @ r
    best = torch.zeros(r.shape[1], dtype=r.dtype)
    for strength in _RIDGES:
        kept = values / (values + strength * z.shape[1])
        # the diagonal of the hat matrix; 1/N of it is the mean that was taken off
        inside = (vectors.square() * kept).sum(1) + 1 / len(r)
        # a residual over 1 - h_ii is the residual of a fit without that image
        wrong = (r - vectors @ (kept[:, None] * turned)) / (1 - inside).clamp_min(1e-6)[:, None]
        best = torch.maximum(best, (r.square() - wrong.square()).mean(0))
    return best


def _of_all(processes: Processes, rows: Sequence[Tensor], width: int) -> Tensor:
    """The rows (B, width) that the processes have by batch, as one matrix."""
    own = torch.cat(list(rows)) if rows else torch.zeros(0, width, dtype=torch.float64)
    return processes.joined(own, [width])


def _pairs(seen: Moments) -> tuple[MapPair, ...]:
    """Channels of the first block's output and those of the last block's most like them, no channel in two pairs."""
    covariances = (seen.tu[0] / seen.count).cpu()  # (n, D)
    first = (seen.uu[0].diagonal() / seen.count).cpu()
    last = (seen.tt[0] / seen.count).cpu()
    scale = (last[:, None] * first[None]).sqrt()
    correlations = torch.where(scale > _TINY, covariances / scale.clamp_min(_TINY), 0.0)
    pairs: list[MapPair] = []
    width = correlations.shape[1]
    # greedily, the strongest pair first; a map that is in a pair is not shown in another
    for place in correlations.abs().flatten().argsort(descending=True).tolist():
        made, source = divmod(place, width)
        if any(made == pair.made or source == pair.source for pair in pairs):
            continue
        r = float(correlations[made, source])
        error = 1 - r * r
        slope = float(covariances[made, source] / first[source].clamp_min(_TINY))
        mse = error * float(last[made])
        pairs.append(MapPair(source=source, made=made, correlation=r, error=error, mse={1: mse}, taps=((slope,),)))
        if len(pairs) == PAIRS:
            break
    return tuple(pairs)
