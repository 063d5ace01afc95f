"""C-GhostNet: a network built of C-Ghost bottlenecks (IJCV paper, Table 1; s = 2, d = 3, primary kernel k = 1).

    stem         (N, 3, H, W) → (N, 16, H/2, W/2)                conv 3x3 /2, BN, ReLU
    bottlenecks  → (N, 160, H/32, W/32)                          the 16 rows of ``BOTTLENECKS``
    last         → (N, 960, H/32, W/32)                          conv 1x1, BN, ReLU
    head         → (N, 960, 1, 1) → (N, 1280, 1, 1) → (N, 1000)  average pool, conv 1x1, ReLU, linear layer

A bottleneck, y = ghost2(SE(down(ghost1(x)))) + shortcut(x): the first C-Ghost module expands, the second, without ReLU,
brings the width to #out; where the stride is 2, a depthwise convolution stands between them, and a depthwise and a 1x1
convolution are the shortcut.  A width factor α multiplies every width but the head's 1280.  The authors published two
ways to round the products, and they give two networks of every width:

                        "pytorch" (timm has it, too)              "tensorflow" (prints Tables 8 and 10)
    width c at α        v = α·c to the nearest multiple of 4,     ⌊α·c⌋, at least 8, to the nearest multiple
                        halves up, one more if that is < 0.9·v    of 4, halves to the even multiple
    hidden width of SE  E/4 rounded likewise                      ⌊E/4⌋
    the head's 1x1      with a bias, no BN                        with BN, no bias

At 3x224x224 they count, beside what the paper prints:

            parameters   MACs          |   parameters   MACs          |   paper
    0.5x    2,587,292    42,328,152    |   2,588,232    42,327,816    |   2.6M   42M
    1.0x    5,182,508    141,150,512   |   5,183,016    141,149,744   |   5.2M   141M
    1.1x    5,855,650    166,986,864   |   5,858,409    164,483,640   |   -      164M
    1.3x    7,358,820    227,003,256   |   7,352,622    226,995,784   |   7.3M   226M

Not in Table 1, and taken from the authors' code: the kernel sizes of the depthwise convolutions, a quarter as SE's
ratio, its hard sigmoid, and dropout of 0.2.  A departure: "tensorflow" stands for that code's widths and layers only;
padding (even on both sides) and the constants of batch norm are PyTorch's under both rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ghostify.ghosts.c_ghost import CGhost

BOTTLENECKS: tuple[tuple[int, int, int, bool, int], ...] = (
    # depthwise kernel, #exp, #out, SE, stride
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)
"""Table 1, row by row.  The kernel matters where a row strides or widens: elsewhere it has no depthwise convolution."""

RoundingName = Literal["pytorch", "tensorflow"]


@dataclass(frozen=True)
class Rounding:
    """What the authors' two codes do differently."""

    scaled: Callable[[int, float], int]
    """(a width of Table 1, factor) → width"""
    squeezed: Callable[[int], int]
    """Expanded width of a bottleneck → hidden width of its SE."""
    head_norm: bool
    """Whether the head's 1x1 convolution has BN (and no bias) or a bias (and no BN)."""


class SqueezeExcite(nn.Module):
    """Maps scaled by a gate that the pooled maps decide (Hu et al. 2018).  (N, C, H, W) → (N, C, H, W)"""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


class CGhostBottleneck(nn.Module):
    """The C-Ghost bottleneck (Fig. 3).  (N, in_channels, H, W) → (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)

    ``expanded`` is the width between the two ghost modules, ``squeezed`` the hidden width of its SE (0: no SE), and
    ``kernel_size``, an odd number, that of the depthwise convolutions, if there are any.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        squeezed: int = 0,
    ) -> None:
        super().__init__()
        self.ghost1 = CGhost(in_channels, expanded, 1, bias=False, norm=nn.BatchNorm2d, act=_relu)
        self.down = _conv_bn(expanded, expanded, kernel_size, stride, expanded) if stride > 1 else nn.Identity()
        self.se = SqueezeExcite(expanded, squeezed) if squeezed else nn.Identity()
        self.ghost2 = CGhost(expanded, out_channels, 1, bias=False, norm=nn.BatchNorm2d)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                *_conv_bn(in_channels, in_channels, kernel_size, stride, in_channels),
                *_conv_bn(in_channels, out_channels, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ghost2(self.se(self.down(self.ghost1(x))))
        return out + self.shortcut(x)


class CGhostNet(nn.Module):
    """C-GhostNet (Table 1), ``width`` times as wide, its widths rounded by one of ``ROUNDINGS``.

    (N, in_channels, H, W) → (N, num_classes), for images of any size.  Has PyTorch's own initial weights, and under the
    "pytorch" rule the tensors of timm's ``ghostnet_100`` in the same order.  Under the "tensorflow" rule the head
    normalises a pooled map, so training takes batches of two images or more.  Raises ValueError for another rounding
    and for a width that is not a positive number.
    """

    image_size = 224
    """Side of the images it is meant for."""

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        rounding: RoundingName = "pytorch",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {', '.join(map(repr, ROUNDINGS))}, not {rounding!r}")
        if not 0 < width < float("inf"):
            raise ValueError(f"width must be a positive number, not {width}")
        rule = ROUNDINGS[rounding]
        stem, last = rule.scaled(16, width), rule.scaled(960, width)
        self.stem = nn.Sequential(*_conv_bn(in_channels, stem, 3, stride=2), _relu())
        self.bottlenecks = _bottlenecks(stem, width, rule)
        self.last = nn.Sequential(*_conv_bn(rule.scaled(BOTTLENECKS[-1][2], width), last, 1), _relu())
        self.head = nn.Sequential(*(_conv_bn(last, 1280, 1) if rule.head_norm else [nn.Conv2d(last, 1280, 1)]), _relu())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.bottlenecks(self.stem(x)))
        x = self.head(F.adaptive_avg_pool2d(x, 1)).flatten(1)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def c_ghostnet_0_5(num_classes: int = 1000, in_channels: int = 3, rounding: RoundingName = "pytorch") -> CGhostNet:
    """C-GhostNet 0.5x (Tables 8 and 9).  (N, in_channels, 224, 224) → (N, num_classes)"""
    return CGhostNet(0.5, num_classes, in_channels, rounding)


def c_ghostnet_1_0(num_classes: int = 1000, in_channels: int = 3, rounding: RoundingName = "pytorch") -> CGhostNet:
    """C-GhostNet 1.0x (Table 8).  (N, in_channels, 224, 224) → (N, num_classes)"""
    return CGhostNet(1.0, num_classes, in_channels, rounding)


def c_ghostnet_1_1(num_classes: int = 1000, in_channels: int = 3, rounding: RoundingName = "pytorch") -> CGhostNet:
    """C-GhostNet 1.1x (Table 10).  (N, in_channels, 224, 224) → (N, num_classes)"""
    return CGhostNet(1.1, num_classes, in_channels, rounding)


def c_ghostnet_1_3(num_classes: int = 1000, in_channels: int = 3, rounding: RoundingName = "pytorch") -> CGhostNet:
    """C-GhostNet 1.3x (Table 8).  (N, in_channels, 224, 224) → (N, num_classes)"""
    return CGhostNet(1.3, num_classes, in_channels, rounding)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "c_ghostnet": CGhostNet,
    "c_ghostnet_0_5": c_ghostnet_0_5,
    "c_ghostnet_1_0": c_ghostnet_1_0,
    "c_ghostnet_1_1": c_ghostnet_1_1,
    "c_ghostnet_1_3": c_ghostnet_1_3,
}
"""The networks of ghost modules a recipe names as ``ghostify:NAME``; ``c_ghostnet`` takes any width."""


# -- the two rounding rules, which share nothing on purpose --------------------------------------------------------


def _make_divisible(value: float) -> int:
    """The nearest multiple of 4 (at least 4), halves up, and the next one where that loses more than a tenth."""
    rounded = max(4, int(value + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * value else rounded


def _pytorch_scaled(channels: int, width: float) -> int:
    return _make_divisible(channels * width)


def _pytorch_squeezed(expanded: int) -> int:
    return _make_divisible(expanded / 4)


def _tensorflow_scaled(channels: int, width: float) -> int:
    return round(max(int(channels * width), 8) / 4) * 4  # Python's round, and so ties to even


def _tensorflow_squeezed(expanded: int) -> int:
    return expanded // 4


ROUNDINGS: dict[str, Rounding] = {
    "pytorch": Rounding(_pytorch_scaled, _pytorch_squeezed, head_norm=False),
    "tensorflow": Rounding(_tensorflow_scaled, _tensorflow_squeezed, head_norm=True),
}


# -- parts ---------------------------------------------------------------------------------------------------------


def _bottlenecks(channels: int, width: float, rule: Rounding) -> nn.Sequential:
    blocks = nn.Sequential()
    for kernel_size, exp, out, se, stride in BOTTLENECKS:
        expanded, out_channels = rule.scaled(exp, width), rule.scaled(out, width)
        squeezed = rule.squeezed(expanded) if se else 0
        blocks.append(CGhostBottleneck(channels, expanded, out_channels, kernel_size, stride, squeezed))
        channels = out_channels
    return blocks


def _conv_bn(channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)
