"""Images that are none: noise that a network's own norms take for what they were trained on; and a check of real ones.

Noise with a spectrum of 1/fᵅ is smooth as photographs are.  Of a few exponents α and gains, the noise is taken with
which the norms' inputs are nearest to the statistics the norms hold from training:

    d = mean over norms and channels of  (μ − μ*)²/σ*² + (σ/σ* − 1)²
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ghostify.batches import Batch, count, per_sample
from ghostify.fitting.agenda.epilogue import is_norm
from ghostify.fitting.interpreter import Interpreter
from ghostify.fitting.norms import Statistics
from ghostify.running import evaluating
from ghostify.tracing import Traced, sized_as

_EXPONENTS = (0.0, 0.5, 1.0, 1.5)
_GAINS = (0.5, 1.0, 2.0)
_TRIAL = 32
_FAR = 1.0
"""A first norm this far off has not been trained on such images."""


def noise(traced: Traced, images: int) -> Batch:
    """So many images of noise for a network, (N, C, …), the same every time; several inputs as its example has them.

    Whole numbers may be places in a table, of which nobody knows the size: they are drawn from those of the example.
    """
    example = traced.example
    maps = any(leaf.dim() > 2 and leaf.is_floating_point() for leaf in per_sample(example))
    ways = list(product(_EXPONENTS, _GAINS)) if maps else [(0.0, gain) for gain in _GAINS]
    distances = [distance(traced, [_like(example, _TRIAL, exponent, gain)]) for exponent, gain in ways]
    known = [value for value in distances if value is not None]
    # Without norms nothing tells one noise from another: 1/f is what photographs have.
    exponent, gain = ways[distances.index(min(known))] if known else (1.0 if maps else 0.0, 1.0)
    return _like(example, images, exponent, gain)


def looks(traced: Traced, batches: Sequence[Batch]) -> list[str]:
    """A sentence where images are not what the network's first norm was trained on: of another scale, say."""
    some = batches[: math.ceil(_TRIAL / count(batches[0]))]
    first = distance(traced, some, norms=1)
    floats = [leaf.flatten() for batch in batches for leaf in per_sample(batch) if leaf.is_floating_point()]
    if first is None or first < _FAR or not floats:
        return []
    values = torch.cat(floats)
    mean, deviation = values.mean(), values.std()
    return [
        f"The calibration images (mean {mean:.2f}, standard deviation {deviation:.2f}) are not what the network was "
        f"trained on: its first norm is off by {first**0.5:.1f} standard deviations. Are they scaled as in training?"
    ]


def distance(traced: Traced, batches: Sequence[Batch], norms: int | None = None) -> float | None:
    """d at the head of this file, over the first so many norms (None: all); None where there are none."""
    with evaluating(traced.module), torch.no_grad():
        found = _distances(sized_as(traced, batches[0]), traced.module, batches, norms)
    return float(torch.stack(found).mean()) if found else None


def _distances(traced: Traced, module: nn.Module, batches: Sequence[Batch], norms: int | None) -> list[Tensor]:
    walk = Interpreter(traced, module, batches)
    nodes = [node for node in walk.nodes if is_norm(traced, node)][:norms]
    for node in nodes:
        walk.watched[node] = Statistics()
    walk.advance(max((walk.index[node] for node in nodes), default=-1) + 1)
    return [_off(module.get_submodule(str(node.target)), walk, node) for node in nodes]


def _off(norm: nn.Module, walk: Interpreter, node: fx.Node) -> Tensor:
    found = walk.watched[node]
    assert isinstance(found, Statistics) and isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    # With eps on both sides, as the norm has it: a channel that is constant in both is no distance.
    var = norm.running_var.double() + norm.eps
    ratio = ((found.variance + norm.eps) / var).sqrt()
    return ((found.mean - norm.running_mean.double()).square() / var + (ratio - 1).square()).mean()


def _like(example: Batch, count: int, exponent: float, gain: float) -> Batch:
    """Noise in the structure of an example, every tensor of it from a seed of its own."""
    leaves, structure = tree_flatten(example)
    made = [_noise_for(leaf, seed, count, exponent, gain) for seed, leaf in enumerate(leaves)]
    return tree_unflatten(made, structure)


def _noise_for(leaf: Any, seed: int, count: int, exponent: float, gain: float) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.dim():
        return leaf
    shape = (count, *leaf.shape[1:])
    if leaf.is_floating_point():
        return _coloured(shape, exponent if len(shape) > 2 else 0.0, gain, seed).to(leaf.device)
    choices = leaf.flatten()
    chosen = torch.randint(len(choices), shape, generator=torch.Generator().manual_seed(seed))
    return choices[chosen.to(leaf.device)]


def _coloured(shape: tuple[int, ...], exponent: float, gain: float, seed: int = 0) -> Tensor:
    """Noise with an amplitude spectrum of 1/fᵅ, of standard deviation ``gain``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if exponent:
        *sizes, last = shape[2:]
        axes = torch.meshgrid(*map(torch.fft.fftfreq, sizes), torch.fft.rfftfreq(last), indexing="ij")
        # The lowest frequency stands in for zero, where 1/fᵅ would be infinite.
        f = torch.stack(axes).square().sum(0).sqrt().clamp_min(1 / max(shape[2:]))
        dims = tuple(range(2, len(shape)))
        x = torch.fft.irfftn(torch.fft.rfftn(x, dim=dims) * f**-exponent, s=shape[2:], dim=dims)
    return gain * x / x.std(correction=0).clamp_min(1e-12)
