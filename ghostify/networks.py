"""The CIFAR networks of the papers, to be converted and measured as theirs are.

ResNets after He et al. 2016, section 4.2: a 3x3 stem, three stages of n basic blocks at 16, 32 and 64 channels,
option-A shortcuts without parameters; 6n + 2 layers.  VGG16 after Zagoruyko's CIFAR variant: 13 convolutions 3x3 with
batch norm and a head of two linear layers.  Counts at 3x32x32: ResNet56 853,018 parameters and 125,485,696 MACs; VGG16
14,987,722 parameters and 313,463,808 MACs (convolutions and linear layers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut.  (N, C_in, H, W) → (N, C_out, H / stride, W / stride)"""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.stride == 1 else _option_a(x, self.stride, out.shape[1])))


def _option_a(x: Tensor, stride: int, width: int) -> Tensor:
    """Every ``stride``-th pixel, and zero maps on either side up to the new width.

    (N, C, H, W) → (N, width, H / stride, W / stride)
    """
    pad = (width - x.shape[1]) // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, pad, pad))


class CifarResNet(nn.Module):
    """Three stages of ``blocks`` basic blocks, at ``width``, 2 and 4 times that.

    (N, in_channels, H, W) → (N, num_classes).  Raises ValueError for an odd ``width``: shortcuts pad evenly.
    """

    image_size = 32
    """Side of the images it is meant for."""

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width must be an even number from 2 on, not {width}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class CifarVGG(nn.Module):
    """Convolutions 3x3 with batch norm in groups that end in a 2x2 max pool, then two linear layers.

    (N, in_channels, H, W) → (N, num_classes), with H and W at least 32.
    """

    image_size = 32
    """Side of the images it is meant for."""

    def __init__(self, groups: tuple[tuple[int, ...], ...], num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(*_vgg_layers(groups, in_channels))
        width = groups[-1][-1]
        self.classifier = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, num_classes)
        )
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


def resnet8(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> CifarResNet:
    """CIFAR ResNet of one block per stage.  (N, in_channels, 32, 32) → (N, num_classes)"""
    return CifarResNet(1, num_classes, in_channels, width)


def resnet14(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> CifarResNet:
    """CIFAR ResNet of two blocks per stage.  (N, in_channels, 32, 32) → (N, num_classes)"""
    return CifarResNet(2, num_classes, in_channels, width)


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> CifarResNet:
    """CIFAR ResNet of three blocks per stage.  (N, in_channels, 32, 32) → (N, num_classes)"""
    return CifarResNet(3, num_classes, in_channels, width)


def resnet56(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> CifarResNet:
    """CIFAR ResNet of nine blocks per stage (IJCV, Tables 6 and 11).  (N, in_channels, 32, 32) → (N, num_classes)"""
    return CifarResNet(9, num_classes, in_channels, width)


def vgg16_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarVGG:
    """Zagoruyko's VGG16 for CIFAR (IJCV, Tables 4 to 6).  (N, in_channels, 32, 32) → (N, num_classes)"""
    return CifarVGG(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3), num_classes, in_channels)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg16_cifar": vgg16_cifar,
}
"""The networks a recipe names as ``ghostify:NAME``."""


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)


def _vgg_layers(groups: tuple[tuple[int, ...], ...], channels: int) -> Iterator[nn.Module]:
    for group in groups:
        for width in group:
            yield nn.Conv2d(channels, width, 3, padding=1, bias=False)
            yield nn.BatchNorm2d(width)
            yield nn.ReLU(inplace=True)
            channels = width
        yield nn.MaxPool2d(2)


def _initialise(network: nn.Module) -> None:
    """He initialisation of the convolutions, as the ResNet paper trains them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
