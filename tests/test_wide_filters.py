"""Filters that read too many numbers to solve for each: combinations of what known filters give."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostify.fitting.agenda.aims import Aim
from ghostify.fitting.kinds.features import unknowns
from ghostify.fitting.kinds.layers import LayerFit
from ghostify.fitting.kinds.targets import Targets
from ghostify.leastsquares.sampling import Positions, Samples

BATCHES, HELD = 8, 2


def images(count: int, seed: int) -> Tensor:
    """Smooth ones of eight channels, (N, 8, 6, 6)."""
    x = torch.randn(count, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(x, 3, 1) + 0.1 * x[:, :, 1:-1, 1:-1]


def spoilt(x: Tensor) -> Tensor:
    """What stands for x in a converted network: two of the channels are made of the others."""
    mix = torch.eye(8) + 0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(9))
    mix[6:] = 0.4 * torch.randn(2, 8, generator=torch.Generator().manual_seed(8))
    mix[:, 6:] = 0
    return torch.einsum("ab,nbhw->nahw", mix, x)


def convolution(groups: int = 1, bias: bool = False) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 6, 5, padding=2, groups=groups, bias=bias)


def fit_of(layer: nn.Conv2d | nn.Linear, x: Tensor, wanted: Tensor) -> LayerFit:
    """The fit of a layer to what is wanted of images or vectors, at all positions of these."""
    read, given = x.chunk(BATCHES), wanted.chunk(BATCHES)
    channels = -1 if isinstance(layer, nn.Linear) else 1
    samples = Samples([Positions(given[0].shape, 10**6, BATCHES, 0, channels, HELD)])
    walk = SimpleNamespace(values=[{"y": y} for y in given])
    networks: Any = SimpleNamespace(original=walk, is_held=lambda batch: batch >= BATCHES - HELD)
    side: Any = SimpleNamespace(sum="y", ceiling=None)
    targets = Targets(networks, [Aim(side, side, None, None, None)], samples, [None], True)
    return LayerFit([layer], lambda block: read[block.batch], targets)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred numbers are many."""
    monkeypatch.setattr("ghostify.fitting.kinds.features.FULL", 40)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.usefixtures("narrow")
def test_they_are_the_least_squares_on_what_known_filters_give(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """The truth by ``lstsq`` with a row for each ridge, on responses: of the trained filters, then of more of them."""
    monkeypatch.setattr("ghostify.fitting.kinds.features._GROWTHS", 1)
    layer, x = convolution(groups), images(64, 0)
    trained, wanted = layer.weight.detach().clone().double().flatten(1), layer(x).detach()
    fit = fit_of(layer, spoilt(x), wanted)
    ridge, each, found = fit.fit(), 6 // groups, layer.weight.detach().double().flatten(1)
    assert fit.basis.known.shape[:2] == (groups, 2 * each)
    for group, known in enumerate(fit.basis.known):
        u = F.unfold(spoilt(x), 5, padding=2).mT.flatten(0, 1).double().unflatten(1, (groups, -1))[:, group]
        rows = slice(group * each, (group + 1) * each)
        v, t = u @ known.T, wanted.movedim(1, -1).flatten(0, -2)[:, rows].double()
        held_to = (len(v) * ridge * v.square().mean(0).mean()) ** 0.5 * torch.eye(2 * each).double()
        truth = torch.linalg.lstsq(torch.cat([v, held_to]), torch.cat([t, held_to[:, :each]])).solution.T @ known
        torch.testing.assert_close(found[rows] @ u.T, truth @ u.T, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(known[:each], trained[rows])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.usefixtures("narrow")
def test_known_filters_grow_by_the_covariance_of_what_is_missed_with_what_is_read(groups: int) -> None:
    layer, x = convolution(groups), spoilt(images(16, 0))
    fit, missed = fit_of(layer, x, layer(x).detach()), torch.randn(16, 6, 6, 6)
    blocks, each = fit.targets.samples.blocks, 6 // groups
    given = {
        b: fit.targets.samples.values(missed.chunk(BATCHES)[b.batch], b).unflatten(1, (groups, -1)) for b in blocks
    }
    grown = fit.basis.grown(given.__getitem__, blocks, each).known[:, each:]
    u = F.unfold(x, 5, padding=2).mT.flatten(0, 1).unflatten(1, (groups, -1))
    truth = torch.einsum("pgn,pgd->gnd", missed.movedim(1, -1).flatten(0, -2).unflatten(1, (groups, -1)), u)
    similar = F.cosine_similarity(grown, truth.double(), dim=2)
    torch.testing.assert_close(similar, torch.ones_like(similar), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_they_miss_little_more_than_any_filters_would(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    """On images that nothing was fitted to, with a sixteenth of the numbers in covariances."""
    errors = {}
    for full in (40, 1000):
        monkeypatch.setattr("ghostify.fitting.kinds.features.FULL", full)
        layer, x, other = convolution(bias=bias), images(64, 0), images(64, 1)
        original = copy.deepcopy(layer).requires_grad_(False)
        fit_of(layer, spoilt(x), original(x)).fit()
        errors[full] = float((layer(spoilt(other)).detach() - original(other)).square().mean())
    unfitted = float((original(spoilt(other)) - original(other)).square().mean())
    assert errors[40] <= 1.1 * errors[1000] and errors[1000] < 0.8 * unfitted


@pytest.mark.usefixtures("narrow")
def test_more_known_filters_are_left_out_where_errors_do_not_fall_by_them() -> None:
    """What the trained filters can do by themselves needs no other."""
    layer, x = convolution(), images(16, 0)
    turned = torch.eye(6) + 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    fit = fit_of(layer, x, torch.einsum("ab,nbhw->nahw", turned, layer(x).detach()))
    found, _ = fit.solved()
    assert found.weight.shape[2] == fit.basis.known.shape[1] == 6
    torch.testing.assert_close(found.weight[0], turned.double(), rtol=0, atol=1e-3)


def test_wide_filters_alone_are_combinations() -> None:
    assert unknowns(576, 64) == 576 and unknowns(1024, 64) == 1024
    assert unknowns(4608, 512) == 1024 and unknowns(65536, 128) == 512
    assert unknowns(2048, 512) == 2048, "little would be won"


# -- fewer positions than unknowns -----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_filters_of_few_vectors_are_the_ridge_solution_among_all_filters(bias: bool) -> None:
    """With the filters as trained beyond the span of what is read, and no covariances of all the numbers read."""
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 6, bias), torch.randn(64, 10) @ torch.randn(10, 300) + torch.randn(64, 300) / 4
    trained, wanted = layer.weight.detach().double(), layer(x).detach() + 0.1 * torch.randn(64, 6)
    read = x * (torch.rand(300, generator=torch.Generator().manual_seed(1)) > 0.3)
    fit = fit_of(layer, read, wanted)
    ridge, found = fit.fit(), layer.weight.detach().double()
    assert fit.start.shape == (1, 6, 64) and 0 < ridge < float("inf")
    mean_u, mean_t = (values.double().mean(0) if bias else torch.zeros(()) for values in (read, wanted))
    u, t, v = read.double() - mean_u, wanted.double() - mean_t, read.double() @ fit.basis.known[0].T
    spread = v.var(0, correction=0) if bias else v.square().mean(0)
    held_to = (64 * ridge * spread.mean()) ** 0.5 * torch.eye(300).double()
    truth = torch.linalg.lstsq(torch.cat([u, held_to]), torch.cat([t, held_to @ trained.T])).solution.T
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
    beyond = torch.eye(300).double() - fit.basis.known[0].T @ fit.basis.known[0]
    torch.testing.assert_close(found @ beyond, trained @ beyond, rtol=1e-4, atol=1e-6)


def test_a_classifier_on_long_vectors_takes_no_more_memory_than_its_weights_and_rows() -> None:
    """VGG's reads 25,088 numbers, of which the covariances would take five gigabytes."""
    layer, x = nn.Linear(25088, 40), torch.randn(32, 25088)
    fit = fit_of(layer, x, layer(x).detach())
    fit.fit()
    assert fit.start.shape == (1, 40, 32) and fit.basis.known.shape == (1, 32, 25088)
