"""Convolutions that standardise their filters: what they can have, and ghosts that are fitted within it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from zoo import CoveringConv, StandardConv

from ghostify import convert
from ghostify.ghosts.narrowing import prepared
from ghostify.leastsquares.standardised import gain_of, give, reach, standardises

KINDS: dict[str, Any] = {"with a gain": StandardConv, "scaled": ScaledStdConv2d, "without": StdConv2d}
each_kind = pytest.mark.parametrize("kind", KINDS)


def conv_of(kind: str, *size: int, **fields: Any) -> Any:
    torch.manual_seed(0)
    return KINDS[kind](*size, 3, padding=1, **fields)


@each_kind
def test_what_standardises_its_filters_is_known_by_runs(kind: str) -> None:
    conv = conv_of(kind, 5, 6)
    before = copy.deepcopy(conv.state_dict())
    assert standardises(conv) and (gain_of(conv) is None) == (kind == "without")
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    for other in (nn.Conv2d(5, 6, 3), CoveringConv(5, 6, 3), nn.Linear(5, 6)):
        assert not standardises(other)


@each_kind
def test_it_is_given_the_filters_within_its_reach(kind: str) -> None:
    conv, wanted = conv_of(kind, 5, 6), torch.randn(6, 45, dtype=torch.float64)
    wanted = wanted - wanted.mean(1, keepdim=True)
    reached = reach(conv, wanted)[:, None] * wanted
    give(conv, reached)
    torch.testing.assert_close(prepared(conv)[0].detach().flatten(1).double(), reached, rtol=1e-3, atol=1e-4)
    if kind != "without":
        assert torch.equal(reached, wanted)


def images(count: int, seed: int) -> Tensor:
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x + x.roll(1, 2) + x.roll(1, 3)


def between(conv: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), conv, nn.BatchNorm2d(16, momentum=None), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    with torch.no_grad():
        model.train()(images(64, 1))
    return model.eval()


def plain_twin(conv: Any) -> nn.Conv2d:
    """A plain convolution of the same filters."""
    filters, bias = prepared(conv)
    twin = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=bias is not None)
    with torch.no_grad():
        twin.weight.copy_(filters)
        if bias is not None and twin.bias is not None:
            twin.bias.copy_(bias)
    return twin


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cheap", ["pointwise", "depthwise 3", "depthwise 3 + pointwise"])
@each_kind
def test_ghosts_of_it_miss_little_more_than_those_of_a_plain_convolution(kind: str, cheap: str, bias: bool) -> None:
    conv = conv_of(kind, 12, 16, bias=bias)
    settings = {"include": ["2"], "min_saving": 0, "cheap": cheap}
    errors = []
    for model in (between(conv), between(plain_twin(conv))):
        found = convert(model, images(1, 0), settings, images=images(256, 0), fit={"arrange": "none"})
        assert found.fit is not None and not any("keeps its primary filters" in note for note in found.fit.notes)
        errors.append(next(layer.error for layer in found.fit.layers if layer.target == "2"))
    assert errors[0] <= 1.5 * errors[1]


def test_filters_of_it_that_are_wide_keep_a_mean_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostify.fitting.kinds.features.FULL", 20)
    monkeypatch.setattr("ghostify.fitting.kinds.features._FEW", 5)
    conv = conv_of("with a gain", 12, 16)
    settings = {"include": ["2"], "min_saving": 0, "cheap": "pointwise"}
    found = convert(between(conv), images(1, 0), settings, images=images(256, 0))
    made: Any = found.module.get_submodule("2")
    filters = prepared(made.primary)[0].detach()
    torch.testing.assert_close(filters.mean((1, 2, 3)), torch.zeros(8), rtol=0, atol=1e-5)
    assert found.fit is not None and found.fit.error < 0.5 * found.fit.unfitted
    assert F.cosine_similarity(filters.flatten(1), prepared(conv)[0].detach().flatten(1)[:8]).min() < 0.999
