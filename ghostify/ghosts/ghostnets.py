"""The papers' own networks: C-GhostNet of C-Ghost bottlenecks, G-GhostNet of G-Ghost stages (IJCV paper).

C-GhostNet (Table 1; s = 2, d = 3, primary kernel k = 1)

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

G-GhostNet (Table 2; λ = 0.4, expansion 3, 1x1 cheap operations with mix)

    stem         (N, 3, H, W) → (N, 16, H/2, W/2)                conv 3x3 /2, BN, ReLU
    stages       → (N, 160, H/32, W/32)                          the 4 rows of ``STAGES``
    last         → (N, 960, H/32, W/32)                          conv 1x1, BN, ReLU
    head         → (N, 960, 1, 1) → (N, 1280, 1, 1) → (N, 1000)  average pool, conv 1x1, BN, ReLU, linear layer

A stage is a residual bottleneck /2 of full width, whose output Y1 a ``GGhostStage`` takes on.  A residual bottleneck,
y = ReLU(conv1x1(SE(conv3x3(conv1x1(x)))) + shortcut(x)), has BN after every convolution and ReLU after the first two.
At 3x224x224 it counts 11,187,724 parameters and 1,028,325,696 MACs.  **The paper prints no totals and there is no code
to check it by.**  Table 2 leaves open what follows; each other reading alone counts as said beside it:

                        chosen                             else        parameters   MACs
    3x3 convolution     dense                              depthwise   3,715,204    117,085,632
    inner width         3x the block's output              3x input    8,942,512    706,458,048
    after the concat    nothing                            a block     14,320,996   1,513,029,888
    intrinsic width     16, 24, 48, 96: 0.6c to 4s         14, not 16  11,182,428   1,012,068,588
    thin path reads     its part of Y1                     all of Y1   11,233,212   1,035,701,568
    cheap one reads     the other part of Y1               all of Y1   11,195,916   1,029,630,272
    mix pools           Y1 and the thin outputs            not Y1      11,174,092   1,028,312,064
    mix has             one layer                          two         11,193,524   1,028,331,136
    SE stands           on the inner maps                  on output   10,813,928   1,027,954,560
    SE's hidden width   a quarter, to multiples of 4       1/16        10,887,252   1,028,025,792
    the head's 1x1      with BN, no bias                   bias        11,186,444   1,028,325,696

Why these: section 4.4 builds the network to be rid of depthwise convolutions; Table 2 gives a block no width but #out,
and has no row after the concatenation; one layer is Eq. 12; the parts of Y1, and Y1 in the mix, are what the authors'
G-Ghost networks for ImageNet count by (Tables 15 to 18); SE, its hard sigmoid, dropout and the rounding of widths are
C-GhostNet's, whose basic structure it is to follow, and BN in the head that of its "tensorflow" form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ghostify.ghosts.c_ghost import CGhost
from ghostify.ghosts.g_ghost import GGhostStage
from ghostify.ghosts.mix import PooledBatchNorm2d

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

STAGES: tuple[tuple[int, int], ...] = ((24, 1), (40, 1), (80, 5), (160, 5))
"""Table 2, stage by stage: #out, and the number of thin blocks after the first, which has stride 2."""

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
        _check_width(width)
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


class ResidualBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with SE before the last, around a shortcut.

    (N, in_channels, H, W) → (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉), three times ``out_channels`` wide inside.  The
    shortcut is a 1x1 convolution with BN where stride or width change.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        inner = 3 * out_channels
        self.expand = nn.Sequential(*_conv_bn(in_channels, inner, 1), _relu())
        self.conv = nn.Sequential(*_conv_bn(inner, inner, 3, stride), _relu())
        self.se = SqueezeExcite(inner, _pytorch_squeezed(inner))
        self.project = _conv_bn(inner, out_channels, 1)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = _conv_bn(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.se(self.conv(self.expand(x))))
        return F.relu(out + self.shortcut(x))


class GGhostNet(nn.Module):
    """G-GhostNet (Table 2, read as the head of this file says), ``width`` times as wide.

    (N, in_channels, H, W) → (N, num_classes), for images of any size and batches of any.  The widths, except the
    head's 1280, are rounded by C-GhostNet's "pytorch" rule.  Raises ValueError for a width that is not a positive
    number.
    """

    image_size = 224
    """Side of the images it is meant for."""

    def __init__(self, width: float = 1.0, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        _check_width(width)
        stem, last = _pytorch_scaled(16, width), _pytorch_scaled(960, width)
        self.stem = nn.Sequential(*_conv_bn(in_channels, stem, 3, stride=2), _relu())
        self.stages = _stages(stem, width)
        self.last = nn.Sequential(*_conv_bn(_pytorch_scaled(STAGES[-1][0], width), last, 1), _relu())
        self.head = nn.Sequential(nn.Conv2d(last, 1280, 1, bias=False), PooledBatchNorm2d(1280), _relu())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stages(self.stem(x)))
        x = self.head(F.adaptive_avg_pool2d(x, 1)).flatten(1)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def g_ghostnet_1_0(num_classes: int = 1000, in_channels: int = 3) -> GGhostNet:
    """G-GhostNet 1.0x (Table 2).  (N, in_channels, 224, 224) → (N, num_classes)"""
    return GGhostNet(1.0, num_classes, in_channels)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "c_ghostnet": CGhostNet,
    "c_ghostnet_0_5": c_ghostnet_0_5,
    "c_ghostnet_1_0": c_ghostnet_1_0,
    "c_ghostnet_1_1": c_ghostnet_1_1,
    "c_ghostnet_1_3": c_ghostnet_1_3,
    "g_ghostnet": GGhostNet,
    "g_ghostnet_1_0": g_ghostnet_1_0,
}
"""The networks of ghost modules a recipe names as ``ghostify:NAME``; those without a number take any width."""


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


def _stages(channels: int, width: float) -> nn.Sequential:
    stages = nn.Sequential()
    for out, blocks in STAGES:
        out_channels = _pytorch_scaled(out, width)
        raw = _intrinsic_width(out_channels)
        thin = [ResidualBottleneck(raw, raw) for _ in range(blocks)]
        first = ResidualBottleneck(channels, out_channels, stride=2)
        stages.append(nn.Sequential(first, GGhostStage(thin, out_channels, raw)))
        channels = out_channels
    return stages


def _intrinsic_width(channels: int) -> int:
    """(1−λ)c at λ = 0.4, to a multiple of 4 unless that leaves no ghosts."""
    raw = _make_divisible(0.6 * channels)
    return raw if raw < channels else int(0.6 * channels)


def _check_width(width: float) -> None:
    if not 0 < width < float("inf"):
        raise ValueError(f"width must be a positive number, not {width}")


def _conv_bn(channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)
