"""The papers' CIFAR networks: their counts, their names, and the trained weights that must fit them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ghostify.networks import NETWORKS, CifarResNet, resnet20, resnet56, vgg16_cifar


def counted(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(parameters, MACs of convolutions and linear layers, convolution output elements), with hooks."""
    macs, elements = 0, 0

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal macs, elements
        taps = module.weight[0].numel()
        macs += out.numel() * taps
        elements += out.numel() if isinstance(module, nn.Conv2d) else 0

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in model.parameters()), macs, elements


@pytest.mark.parametrize(
    ("model", "expected"),
    [(resnet56(), (853_018, 125_485_696, 532_480)), (vgg16_cifar(), (14_987_722, 313_463_808, 276_480))],
    ids=["resnet56", "vgg16"],
)
def test_counts_are_those_of_the_papers(model: nn.Module, expected: tuple[int, int, int]) -> None:
    assert counted(model, (3, 32, 32)) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_its_channels_and_gives_its_classes(name: str) -> None:
    model = NETWORKS[name](num_classes=7, in_channels=1)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("name", "depth"), [("resnet8", 8), ("resnet14", 14), ("resnet20", 20), ("resnet56", 56)])
def test_a_resnet_has_the_depth_in_its_name(name: str, depth: int) -> None:
    layers = [m for m in NETWORKS[name]().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_width_scales_every_stage() -> None:
    model = resnet20(width=8)
    assert [model.layer1[0].conv1.out_channels, model.layer3[2].conv2.out_channels] == [8, 32]
    assert model.linear.in_features == 32


@pytest.mark.parametrize("width", [0, 1, 15, -2])
def test_a_width_that_cannot_be_padded_evenly_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="even"):
        CifarResNet(1, width=width)


def branch(block: nn.Module) -> nn.Module:
    return nn.Sequential(block.conv1, block.bn1, nn.ReLU(), block.conv2, block.bn2)


def test_a_block_is_the_sum_of_its_branches() -> None:
    block = resnet20().layer2[1].eval()
    x = torch.randn(1, 32, 8, 8)
    assert torch.equal(block(x), (branch(block)(x) + x).relu())


def test_a_widening_shortcut_is_every_second_pixel_between_zero_maps() -> None:
    block = resnet20().layer2[0].eval()
    x = torch.randn(1, 16, 8, 8)
    zeros = torch.zeros(1, 8, 4, 4)
    assert torch.equal(block(x), (branch(block)(x) + torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)).relu())


def test_a_fresh_network_keeps_the_scale_of_its_signal() -> None:
    torch.manual_seed(0)
    spread = resnet56()(torch.randn(2, 3, 32, 32)).std().item()
    assert 0.1 < spread < 10


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_trained_weights_fit_strictly(name: str) -> None:
    folder = os.environ.get("GHOSTIFY_DATA_DIR")
    if not folder:
        pytest.skip("GHOSTIFY_DATA_DIR is not set: no trained weights to load")
    state = torch.load(Path(folder) / f"{name}-cifar10.pt", weights_only=True)
    NETWORKS[name]().load_state_dict(state, strict=True)
