"""The span of what calibration images make a network's layers read, and which inputs lead it out of that.

    p (N, C)    what a layer reads of N inputs, a mean over the positions of its maps
    r (N,)      |(I − V Vᵀ)(p − μ)|² / ρ     μ: the mean over calibration images
                                             V (C, k): leading directions of their covariance, which carry 99 % of it
                                             ρ: the median of |…|² over images that gave neither

A layer fitted by least squares gives what the original does where calibration images reached; beyond, nothing holds it.
The residual of a principal subspace is the usual measure of that (the Q statistic of Jackson and Mudholkar 1979).  An
input's distance is the largest r of any layer.  It lies outside where that is larger than of each of the m images held
out.  An input of the same kind as these is the farthest of m + 1 with a chance of 1/(m + 1), whatever the distribution
is (conformal prediction: Vovk, Gammerman and Shafer 2005).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ghostify.batches import Batch, call, count, move, split
from ghostify.ghosts import CGhostLinear
from ghostify.measuring.borrowing import on_device
from ghostify.running import evaluating, first_argument

HELD = 8
"""One image of so many is held out of the span, to say how far one of its kind may lie."""
LEAST = 64
"""Fewer images tell no span: eight held out would call one input of nine an outsider by chance."""
_CARRIED = 0.99
_MOST = 64
"""Directions that are kept of a layer, and a run folder holds."""
_AT_ONCE = 64
_TENTH = 0.1

Told = Callable[[str, Tensor], None]
"""Who is told what a layer reads, pooled (N, C)."""


class Outside(BaseModel):
    """How many test inputs made a network read what calibration images never did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outside: int
    total: int
    held: int
    """Calibration images that said how far is too far."""
    layer: str
    """The layer that most of them, or of all where none are, lie farthest out in."""

    @property
    def by_chance(self) -> float:
        """How many there would be, of inputs of the same kind as the calibration images."""
        return self.total / (self.held + 1)

    @property
    def alarming(self) -> bool:
        """Whether that is more than a tenth, and twice what chance gives."""
        return self.outside > max(_TENTH * self.total, 2 * self.by_chance)

    @property
    def warning(self) -> str:
        return (
            f"{self.outside:,} of {self.total:,} test inputs lie outside what the weights were fitted to (by chance "
            f"about {self.by_chance:.0f} would), most clearly in what {self.layer!r} reads. What the network gives for "
            "such inputs is not vouched for: calibrate it with inputs like them (docs/fitting.md)."
        )


@dataclass(frozen=True)
class LayerSpan:
    """What one layer read: ``mean`` (C,), ``directions`` (k, C), and ``scale``, the usual squared residual."""

    mean: Tensor
    directions: Tensor
    scale: Tensor

    @staticmethod
    def of(seen: Tensor, held: Tensor) -> LayerSpan | None:
        """The span of what was ``seen`` (N, C), measured on what was ``held`` out (m, C); None of what never varies."""
        seen, mean = seen.double(), seen.double().mean(0)
        # Of N inputs and C channels, N is mostly the smaller, so directions come of the N x N products.
        centred = seen - mean
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        if not values.sum() > 0:
            return None
        carried = values.cumsum(0) / values.sum()
        rank = min(_MOST, int((carried < _CARRIED).sum()) + 1)
        directions = (vectors[:, :rank].T @ centred) / values[:rank, None].sqrt()
        span = LayerSpan(mean.float(), directions.float(), torch.ones(()))
        scale = span.distances(held).median()
        return LayerSpan(span.mean, span.directions, scale) if scale > 0 else None

    def distances(self, read: Tensor) -> Tensor:
        """r (N,) of what the layer reads, (N, C)."""
        centred = read - self.mean.to(read)
        directions = self.directions.to(read)
        beyond = centred - centred @ directions.T @ directions
        return beyond.square().sum(1) / self.scale.to(read)


@dataclass(frozen=True)
class Span:
    """The spans of a network's layers, by name, and the largest distance of an image held out of them."""

    layers: Mapping[str, LayerSpan]
    limit: float
    held: int

    @staticmethod
    def of(module: nn.Module, names: Sequence[str], images: Batch, device: torch.device) -> Span | None:
        """The span of what the layers of these names read of calibration images.

        None where the images are few, or no layer reads once of each image what varies.
        """
        total = count(images)
        if total < LEAST:
            return None
        there = dict(module.named_modules(remove_duplicate=False))
        read: dict[str, list[Tensor]] = {name: [] for name in names if name in there}

        def told(name: str, p: Tensor) -> None:
            read[name].append(p)

        borrowed = on_device(module, device)
        with evaluating(borrowed), torch.no_grad(), _telling(borrowed, list(read), told):
            for part in split(images, _AT_ONCE):
                call(borrowed, move(part, device))
        whole = {name: torch.cat(parts) for name, parts in read.items() if sum(map(len, parts)) == total}
        held = torch.arange(total) % HELD == 0
        found = {name: LayerSpan.of(p[~held], p[held]) for name, p in whole.items()}
        layers = {name: span for name, span in found.items() if span is not None}
        if not layers:
            return None
        distances = torch.stack([span.distances(whole[name][held]) for name, span in layers.items()])
        return Span(layers, float(distances.max()), int(held.sum()))

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[Watch]:
        """Whatever the network is called with inside is looked at."""
        watch = Watch(self)
        with _telling(module, list(self.layers), watch.add):
            yield watch

    def tensors(self) -> dict[str, Tensor]:
        """All of it as named tensors, for a file."""
        found = {"limit": torch.tensor(self.limit, dtype=torch.float64), "held": torch.tensor(self.held)}
        for name, span in self.layers.items():
            found |= {f"{part}/{name}": tensor.contiguous() for part, tensor in vars(span).items()}
        return found

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Span:
        """What ``tensors`` gave."""
        names = [key.removeprefix("mean/") for key in tensors if key.startswith("mean/")]
        layers = {name: LayerSpan(*(tensors[f"{part}/{name}"] for part in _PARTS)) for name in names}
        return Span(layers, float(tensors["limit"]), int(tensors["held"]))


_PARTS = ("mean", "directions", "scale")


class Watch:
    """The distances of inputs that a network was called with."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._distances: dict[str, list[Tensor]] = {name: [] for name in span.layers}

    def add(self, name: str, read: Tensor) -> None:
        self._distances[name].append(self.span.layers[name].distances(read))

    def outside(self, total: int) -> Outside | None:
        """How many of ``total`` inputs lie outside; None where no layer read each of them once."""
        found = {name: torch.cat(parts) for name, parts in self._distances.items() if sum(map(len, parts)) == total}
        if not found:
            return None
        farthest, layer = torch.stack(list(found.values())).max(0)
        beyond = farthest > self.span.limit
        named = Counter((layer[beyond] if beyond.any() else layer).tolist())
        most = named.most_common(1)[0][0]
        return Outside(outside=int(beyond.sum()), total=total, held=self.span.held, layer=list(found)[most])


@contextmanager
def _telling(module: nn.Module, names: Sequence[str], told: Told) -> Iterator[None]:
    """Somebody is told what layers read whenever they are called, also in copies of the module."""
    handles = [_hooked(module.get_submodule(name), name, told) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(layer: nn.Module, name: str, told: Told) -> Any:
    # A plain function, because a copy of the module must tell the same listener, and copies share functions alone.
    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = first_argument(args, kwargs)
        if isinstance(given, Tensor) and given.is_floating_point() and given.dim() > 1:
            told(name, _pooled(module, given.detach()))

    return layer.register_forward_pre_hook(read, with_kwargs=True)


def _pooled(layer: nn.Module, given: Tensor) -> Tensor:
    """(N, C, H, W), or (N, …, C) of what works on the last dimension → (N, C), on the CPU."""
    channels = -1 if isinstance(layer, nn.Linear | CGhostLinear) else 1
    rows = given.movedim(channels, -1)
    return rows.reshape(len(rows), -1, rows.shape[-1]).mean(1).float().cpu()
