"""Harm without images: what the weights alone suggest.  A proxy, which ranks candidates and promises nothing.

    missed(m) = 1 − Σ_{i≤m} σ_i² / Σ_i σ_i²      σ: singular values of the filters, each times its norm's slope γ/σ
    harm(m)   = missed(m) · MACs of the layer / MACs of the network

Filters read patches whose numbers are taken to be independent and equally large, so the covariance of a layer's outputs
is W Wᵀ.  Real patches are smooth, and real layers therefore miss less.  What a layer computes with many multiply-adds
is taken to matter more than what it does with few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ghostify.errors import PlanError
from ghostify.harm.pointwise import ranks
from ghostify.harm.result import FormHarm, Harms, LayerHarm, form_of, is_mixture
from ghostify.harm.rows import Call
from ghostify.leastsquares.principal import Principal
from ghostify.rules import Swap
from ghostify.running import undisturbed
from ghostify.scanning import Scan, Site, scan
from ghostify.tracing import Recording, Traced


@undisturbed()
def guessed_harms(recorded: Traced | Recording, candidates: Sequence[Swap]) -> Harms:
    """``measure_harms`` without images, by the weights alone; the unit is "proxy".

    Layers whose ghosts are mixtures are told by their singular values, other candidates by the share of multiply-adds
    that they take away.  Raises ``PlanError`` for a network that is recorded in parts.
    """
    traced = Recording.of(recorded).whole
    if traced is None:
        raise PlanError("Harm is told of a network that is recorded as a whole, and this one is recorded in parts.")
    seen = scan(traced)
    return Harms(
        network=type(traced.module).__name__,
        unit="proxy",
        images=0,
        fitted=0,
        layers=tuple(_mixtures(traced, seen, {swap.target for swap in candidates if is_mixture(swap)})),
        forms=tuple(_form(swap, seen) for swap in candidates if not is_mixture(swap)),
        notes=("No image was looked at: these are guesses by the weights alone.",),
    )


def _mixtures(traced: Traced, seen: Scan, targets: set[str]) -> Iterator[LayerHarm]:
    for site in seen.sites:
        calls = Call.all_of(traced, site) if site.name in targets else []
        if calls:
            yield _mixture(calls[0], site, seen)


def _mixture(call: Call, site: Site, seen: Scan) -> LayerHarm:
    weight: Tensor = call.module.weight.detach().double().flatten(1)  # type: ignore[operator]
    slopes = call.metric(weight.T, None)
    groups = zip(weight.chunk(site.groups), slopes.chunk(site.groups), strict=True)
    variances = torch.stack([Principal.of(own @ own.T, squares).variances for own, squares in groups]).sum(0)
    carried = variances.cumsum(0) / variances.sum().clamp_min(1e-300)
    layer = LayerHarm(
        target=site.name,
        maps=site.out_channels,
        groups=site.groups,
        carried=tuple(carried.clamp_max(1).tolist()),
        measured={},
        compensation=1.0,
    )
    share = site.cost.macs / max(1, seen.cost.macs)
    guessed = {m: layer.missed(m) * share for m in ranks(site.out_channels, site.groups)}
    return layer.model_copy(update={"measured": guessed})


def _form(swap: Swap, seen: Scan) -> FormHarm:
    """The share of the network's multiply-adds that a swap takes away."""
    saved = max(0, swap.before.macs - swap.after.macs) / max(1, seen.cost.macs)
    return FormHarm(target=swap.target, form=form_of(swap), measured=saved, compensation=1.0)
