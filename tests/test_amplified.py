"""Errors count by what the next layers make of a channel: a norm behind the activation amplifies quiet ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghostify import convert
from ghostify.fitting.agenda.epilogue import epilogue
from ghostify.tracing import trace


def images(count: int, seed: int) -> Tensor:
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x + x.roll(1, 2) + x.roll(1, 3)


def network(*behind: nn.Module) -> nn.Module:
    """conv → ReLU → ``behind`` → norm, where every other channel is a hundred times as quiet as the others."""
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 16, 3, padding=1)
    with torch.no_grad():
        conv.weight[::2] *= 0.01
        conv.bias[::2] *= 0.01
    first = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU()]
    last = [nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(*first, conv, nn.ReLU(), *behind, nn.BatchNorm2d(16, momentum=None, eps=1e-8), *last)
    with torch.no_grad():
        model.train()(images(64, 1))
    return model.eval()


@pytest.mark.parametrize("behind", [(), (nn.MaxPool2d(2), nn.Dropout())], ids=["at once", "behind a pool"])
def test_the_norm_behind_an_activation_is_found(behind: tuple[nn.Module, ...]) -> None:
    model = network(*behind)
    traced = trace(model, images(1, 0))
    nodes = {str(node.target): node for node in traced.graph.nodes if node.op == "call_module"}
    norm = next(name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))
    assert epilogue(traced, nodes["2"]).amplifier is nodes[norm]
    assert epilogue(traced, nodes["0"]).amplifier is None, "another layer reads what is rectified there"


def test_a_norm_that_is_not_alone_amplifies_nothing() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).relu()
            return self.norm(y) + y

    traced = trace(Twice().eval(), images(1, 0))
    conv = next(node for node in traced.graph.nodes if str(node.target) == "conv")
    assert epilogue(traced, conv).amplifier is None


@pytest.mark.parametrize("behind", [(), (nn.MaxPool2d(2),)], ids=["at once", "behind a pool"])
def test_quiet_channels_that_are_amplified_count_as_loud_ones(
    monkeypatch: pytest.MonkeyPatch, behind: tuple[nn.Module, ...]
) -> None:
    """With intrinsic maps chosen for the loud ones alone, the norm makes noise of the others."""
    settings = {"include": ["2"], "min_saving": 0, "cheap": "pointwise"}
    errors = []
    for weighed in (True, False):
        if not weighed:
            monkeypatch.setattr("ghostify.fitting.agenda.epilogue._amplifier", lambda traced, node: None)
        fit = convert(network(*behind), images(1, 0), settings, images=images(256, 0), fit={"kept": False}).fit
        assert fit is not None and fit.error is not None
        errors.append(fit.error)
    assert errors[0] < 0.7 * errors[1]
