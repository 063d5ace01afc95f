"""A zoo of small networks, one per habit that real ones have; properties that hold on every net run on all of them.

Each is built in well under 0.1 s and runs on an 8x8 to 16x16 map.  ``build`` is seeded, so two calls give equal nets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ghostify.networks import resnet8, resnet20


@dataclass(frozen=True)
class Net:
    """One network of the zoo.  ``example`` has a batch of two, so that batch norm can train on it."""

    name: str
    constructor: Callable[[], nn.Module]
    example: Callable[[], Any]
    swaps: int
    """How many of its layers can become ghosts when every role may."""
    stages: int = 0
    """How many of its stages can become G-Ghost stages."""
    pickles: bool = True

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.constructor()


def run(model: nn.Module, example: Any) -> Any:
    """``model`` on ``example`` as ``trace`` understands it: a dict is keywords, a tuple positional arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def conv_bn(c: int, n: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c, n, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n), nn.ReLU())


def head(c: int, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))


def plain() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), conv_bn(8, 16, stride=2), conv_bn(16, 16), head(16))


def biased() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(), head(12)
    )


class Residual(nn.Module):
    """A residual block around ``body``, with a 1x1 downsample where the shape changes."""

    def __init__(self, body: nn.Module, c: int, n: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.downsample = None if (c, stride) == (n, 1) else nn.Sequential(nn.Conv2d(c, n, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.body(x) + shortcut)


class SamePadded(nn.Conv2d):
    """Pads by a module of its own and then convolves, as efficientnet_pytorch's convolutions do."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, groups=conv.groups)  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.around = nn.ZeroPad2d(conv.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.around(x), self.weight, self.bias, self.stride, groups=self.groups)


def same_padded(net: nn.Module) -> nn.Module:
    """A copy that does the same, its convolutions of a class of its own."""
    net = copy.deepcopy(net)
    for name, conv in list(net.named_modules()):
        if isinstance(conv, nn.Conv2d):
            net.set_submodule(name, SamePadded(conv))
    return net


def basic(c: int, n: int, stride: int = 1) -> Residual:
    return Residual(nn.Sequential(conv_bn(c, n, stride=stride), nn.Conv2d(n, n, 3, padding=1)), c, n, stride)


def bottleneck(c: int, n: int, stride: int = 1, groups: int = 1) -> Residual:
    inner = n // 2
    parts = conv_bn(c, inner, 1), conv_bn(inner, inner, 3, stride, groups), nn.Conv2d(inner, n, 1, bias=False)
    return Residual(nn.Sequential(*parts), c, n, stride)


def residual() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), basic(8, 8), basic(8, 16, 2), head(16))


def bottlenecks() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), bottleneck(8, 16), bottleneck(16, 32, 2), head(32))


def grouped() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), bottleneck(8, 24, groups=3), bottleneck(24, 24, groups=4), head(24))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    def __init__(self, c: int, wide: int) -> None:
        super().__init__()
        self.expand = conv_bn(c, wide, 1)
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.Hardswish(inplace=True))
        self.gate = SqueezeExcite(wide)
        self.project = nn.Sequential(nn.Conv2d(wide, c, 1, bias=False), nn.BatchNorm2d(c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.gate(self.depthwise(self.expand(x))))


def mobile() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, stride=2), InvertedResidual(8, 16), InvertedResidual(8, 24), head(8))


class Shuffle(nn.Module):
    """A split, a branch, a channel shuffle, as in ShuffleNetV2."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn(c // 2, c // 2, 1), conv_bn(c // 2, c // 2, 3, groups=c // 2))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffled() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Shuffle(12), Shuffle(12), head(12))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_bn(4 + 6 * i, 6) for i in range(3))
        self.head = head(22)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.head(torch.cat(maps, 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 8), conv_bn(8, 16, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.fuse, self.out = conv_bn(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        up = F.interpolate(self.up(self.down2(fine)), size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.out(self.fuse(torch.cat([fine, up], 1)))


def dilated() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", dilation=2),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(2, 1), bias=False),
        nn.Conv2d(8, 10, 3, padding="valid"),
        nn.Conv2d(10, 8, 3, padding=(3, 2), dilation=(3, 2)),
        head(8),
    )


def padded() -> nn.Module:
    modes = ("reflect", "circular", "replicate")
    convs = [nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1, padding_mode=mode) for i, mode in enumerate(modes)]
    return nn.Sequential(*convs, head(6))


def odd() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 7, (3, 1), stride=(2, 1), padding=(1, 0)),
        nn.BatchNorm2d(7),
        nn.Conv2d(7, 13, (1, 5), padding=(0, 2), bias=False),
        nn.Conv2d(13, 5, 3),
        head(5),
    )


class SharedHead(nn.Module):
    """One head on two scales, as in RetinaNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv_bn(3, 8), conv_bn(8, 8, stride=2)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stem(x)
        return [self.out(F.relu(self.shared(level))) for level in (fine, self.down(fine))]


class Aliased(nn.Module):
    """One convolution registered under two names, in two parents, and called by both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_bn(3, 8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.again = self.body[0]
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.body(self.first(x))))


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1, 8, 1, 1)) for _ in range(3))
        self.acts = nn.ModuleDict({"relu": nn.ReLU()})
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        for conv, scale in zip(self.convs, self.scales, strict=True):
            x = self.acts["relu"](conv(x) * scale)
        return self.head(x)


class Functional(nn.Module):
    """Convolutions by ``F.conv2d``: with a parameter of its own, with a fixed kernel, and with a module's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)
        self.register_buffer("blur", torch.full((8, 1, 3, 3), 1 / 9))
        self.lent = nn.Conv2d(8, 8, 3, padding=1)
        self.body, self.head = conv_bn(8, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.stem(x), self.weight, padding=1)
        x = F.conv2d(x, self.blur, stride=2, groups=8)
        x = F.conv2d(x, self.lent.weight, self.lent.bias, padding=1)
        return self.head(self.body(x))


class StandardConv(nn.Conv2d):
    """A convolution with standardised weights and a gain for each filter: a forward of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), correction=0, keepdim=True)
        weight = self.gain * (self.weight - mean) / (std + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class CoveringConv(nn.Conv2d):
    """A convolution that pads as much as its stride needs to reach the whole map, more to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for size, k, step, spread in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True):
            missing = max(0, (-(-size // step) - 1) * step + spread * (k - 1) + 1 - size)
            sides = [missing // 2, missing - missing // 2, *sides]
        return super().forward(F.pad(x, sides))


class NamedConv(nn.Conv2d):
    """A subclass that changes nothing in how a convolution runs."""


def subclassed() -> nn.Module:
    own = StandardConv(8, 8, 3), NamedConv(8, 8, 3), nn.ReLU(), CoveringConv(8, 8, 3, stride=2, bias=False)
    return nn.Sequential(conv_bn(3, 8), *own, nn.BatchNorm2d(8), nn.ReLU(), head(8))


def parametrised() -> nn.Module:
    normed = parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
    return nn.Sequential(conv_bn(3, 8), normed, conv_bn(8, 8), head(8))


def signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4)
    )


class Video(nn.Module):
    """Three-dimensional convolutions, then two-dimensional ones on the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.frame, self.head = conv_bn(8, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frame(self.clip(x).mean(2)))


class ByName(nn.Module):
    """Keyword arguments in, a dict out, and an optional one left out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth = conv_bn(3, 8), conv_bn(1, 8)
        self.fuse, self.head = conv_bn(16, 8), head(8)

    def forward(self, *, image: Tensor, depth: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        maps = self.fuse(torch.cat([self.image(image), self.depth(depth)], 1))
        maps = maps if mask is None else maps * mask
        return {"maps": maps, "logits": self.head(maps), "note": "not a tensor"}


class Pyramid(NamedTuple):
    fine: Tensor
    coarse: Tensor


class Nested(nn.Module):
    """A nested structure in, a named tuple with a tuple inside out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.down = conv_bn(3, 6), conv_bn(3, 6), conv_bn(6, 12, stride=2)

    def forward(self, pair: Pyramid, extra: dict[str, list[Tensor]]) -> tuple[Pyramid, tuple[Tensor]]:
        fine = self.left(pair.fine) + self.right(extra["more"][0])
        return Pyramid(fine, self.down(fine)), (pair.coarse + 1,)


def nested_example() -> Any:
    return Pyramid(torch.randn(2, 3, 8, 8), torch.randn(2, 1)), {"more": [torch.randn(2, 3, 8, 8)]}


class InPlace(nn.Module):
    """Writes in place, through views too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_bn(3, 8), nn.Conv2d(8, 8, 3, padding=1), head(8)
        self.act = nn.LeakyReLU(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(self.stem(x))).clone()
        x[:, :4] *= 0.5
        x[:, 4:].add_(1.0)
        half = x.narrow(1, 0, 2)
        half.neg_()
        x += half.mean()
        return self.head(x.relu_())


class Fire(nn.Module):
    def __init__(self, c: int, squeeze: int, n: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c, squeeze, 1)
        self.left, self.right = nn.Conv2d(squeeze, n // 2, 1), nn.Conv2d(squeeze, n // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)


def squeeze() -> nn.Module:
    classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(16, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), Fire(8, 4, 16), Fire(16, 6, 16), classifier)


def frozen() -> nn.Module:
    model = plain()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    return model


def mixed_modes() -> nn.Module:
    """In train mode, but for a batch norm kept in eval mode and a convolution in it."""
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 8), nn.Dropout(0.3), head(8))
    model[1][1].eval()
    model[2][0].eval()
    return model


def evaluating() -> nn.Module:
    return residual().eval()


class Tied(nn.Module):
    """Two convolutions over one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.two.weight = self.one.weight
        self.body, self.head = conv_bn(8, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.two(self.one(self.stem(x)))))


def double(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * 2


def hooked() -> nn.Module:
    """Hooks on a norm that stays and on a convolution, which therefore stays too."""
    model = plain()
    model[1][1].register_forward_hook(double)
    model[2][0].register_forward_hook(double)
    return model


class Counting(nn.Module):
    """Counts its calls in buffers and in Python, and keeps the last map; none of it changes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_bn(3, 8), conv_bn(8, 8), head(8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.times = 0
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.seen + len(x)
        self.times += 1
        self.last = self.conv(self.stem(x))
        return self.head(self.last)


class Attentive(nn.Module):
    """Convolutions around attention over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = conv_bn(3, 8), conv_bn(8, 8, stride=2)
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(self.stem(x)).flatten(2).transpose(1, 2))
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.head((tokens + mixed).mean(1))


class Upscaler(nn.Module):
    """A super-resolution net: no norm, a global skip, a pixel shuffle at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1))
        self.upscale = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.upscale(self.features(x)) + F.interpolate(x, scale_factor=2)


# -- nets with a stage: three or more blocks of one width and resolution --------------------------------------


def residual_stage() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.Sequential(basic(8, 16, 2), basic(16, 16), basic(16, 16)), head(16))


def grouped_stage() -> nn.Module:
    blocks = (bottleneck(32, 32, groups=4) for _ in range(3))
    return nn.Sequential(conv_bn(3, 8), bottleneck(8, 32, 2, groups=4), *blocks, head(32))


def gated_stage() -> nn.Module:
    blocks = (InvertedResidual(16, 32) for _ in range(4))
    return nn.Sequential(conv_bn(3, 16, stride=2), nn.Sequential(*blocks), head(16))


def stacked() -> nn.Module:
    """Convolutions in a row, as in VGG."""
    return nn.Sequential(
        conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 16), conv_bn(16, 16), conv_bn(16, 16), conv_bn(16, 16), head(16)
    )


class NextBlock(nn.Module):
    """Depthwise convolution, layer norm and two linear layers with the channels last, and a layer scale."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.norm = nn.LayerNorm(c)
        self.mlp = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))
        self.gamma = nn.Parameter(torch.full((c,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


def next_stage() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 2, 2), NextBlock(16), NextBlock(16), NextBlock(16), head(16))


class PreActivation(nn.Module):
    """Norm and activation before each convolution; nothing follows the addition."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


def preactivated() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *(PreActivation(16) for _ in range(3)), nn.ReLU(), head(16))


def shuffle_stage() -> nn.Module:
    return nn.Sequential(conv_bn(3, 64, stride=2), *(Shuffle(64) for _ in range(5)), head(64))


class CrossStage(nn.Module):
    """A bypass beside a branch with a stage of its own, as in CSPNet."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.bypass, self.enter, self.leave = conv_bn(c, c, 1), conv_bn(c, c, 1), conv_bn(2 * c, c, 1)
        self.blocks = nn.Sequential(*(basic(c, c) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.cat([self.bypass(x), self.blocks(self.enter(x))], 1))


def cross_stage() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, stride=2), CrossStage(16), head(16))


class GroupNormed(nn.Module):
    """A residual block with group norm, and a group of channels per four."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.GroupNorm(c // 4, c)
        self.conv2, self.norm2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.GroupNorm(c // 4, c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def group_normed() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, stride=2), *(GroupNormed(16) for _ in range(3)), head(16))


class Scaled(nn.Module):
    """A residual block of branches that are split off by a width written out, as in Res2Net."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.width = c // 2
        self.enter, self.leave = conv_bn(c, c, 1), nn.Conv2d(c, c, 1, bias=False)
        self.branch = conv_bn(self.width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.enter(x), self.width, 1)
        return F.relu(x + self.leave(torch.cat([left, self.branch(right)], 1)))


def scaled_stage() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16, stride=2), *(Scaled(16) for _ in range(3)), head(16))


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """A fixed random input of two samples."""

    def make() -> Tensor:
        return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    return make


def by_name_example() -> dict[str, Any]:
    return {"image": image(3, 8, 8)(), "depth": image(1, 8, 8)()}


def made(constructor: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    return constructor().to(dtype)


def with_lazy_parts_filled(constructor: Callable[[], nn.Module], *shape: int) -> nn.Module:
    model = constructor().eval()
    model(torch.zeros(2, *shape))
    return model.train()


rgb = image(3, 8, 8)

ZOO: tuple[Net, ...] = (
    Net("plain", plain, rgb, swaps=4),
    Net("biased", biased, rgb, swaps=3),
    Net("residual", residual, rgb, swaps=7),
    Net("bottlenecks", bottlenecks, rgb, swaps=10),
    Net("grouped", grouped, rgb, swaps=9),
    Net("mobile", mobile, rgb, swaps=10),
    Net("shuffled", shuffled, rgb, swaps=4),
    Net("dense", Dense, image(4, 8, 8), swaps=4),
    Net("unet", UNet, rgb, swaps=4),
    Net("dilated", dilated, image(3, 12, 12), swaps=5),
    Net("padded", padded, rgb, swaps=4, stages=1),
    Net("odd", odd, rgb, swaps=4),
    Net("shared-head", SharedHead, rgb, swaps=4),
    Net("aliased", Aliased, rgb, swaps=3),
    Net("listed", Listed, rgb, swaps=4),
    Net("functional", Functional, image(3, 10, 10), swaps=3),
    Net("subclassed", subclassed, rgb, swaps=5),
    Net("parametrised", parametrised, rgb, swaps=4, pickles=False),
    Net("signal", partial(with_lazy_parts_filled, signal, 2, 16), image(2, 16), swaps=3),
    Net("video", Video, image(2, 3, 8, 8), swaps=3),
    Net("by-name", ByName, by_name_example, swaps=4),
    Net("nested", Nested, nested_example, swaps=3),
    Net("in-place", InPlace, rgb, swaps=3),
    Net("squeeze", squeeze, image(3, 12, 12), swaps=8),
    Net("frozen", frozen, rgb, swaps=4),
    Net("mixed-modes", mixed_modes, rgb, swaps=4),
    Net("evaluating", evaluating, rgb, swaps=7),
    Net("tied", Tied, rgb, swaps=3),
    Net("hooked", hooked, rgb, swaps=3),
    Net("counting", Counting, rgb, swaps=3),
    Net("attentive", Attentive, rgb, swaps=3),
    Net("upscaler", Upscaler, image(1, 8, 8), swaps=3),
    Net("double", partial(made, residual, torch.float64), image(3, 8, 8, dtype=torch.float64), swaps=7),
    Net("bfloat16", partial(made, mobile, torch.bfloat16), image(3, 8, 8, dtype=torch.bfloat16), swaps=10),
    Net("resnet8", resnet8, image(3, 16, 16), swaps=8),
    Net("resnet20", partial(resnet20, width=8), image(3, 16, 16), swaps=20, stages=3),
    Net("residual-stage", residual_stage, rgb, swaps=9, stages=1),
    Net("grouped-stage", grouped_stage, rgb, swaps=15, stages=1),
    Net("gated-stage", gated_stage, rgb, swaps=18, stages=1),
    Net("stacked", stacked, rgb, swaps=6, stages=1),
    Net("next-stage", next_stage, rgb, swaps=8, stages=1),
    Net("preactivated", preactivated, rgb, swaps=8, stages=1),
    Net("shuffle-stage", shuffle_stage, rgb, swaps=7, stages=1),
    Net("cross-stage", cross_stage, rgb, swaps=11, stages=1),
    Net("group-normed", group_normed, rgb, swaps=8, stages=1),
    Net("scaled-stage", scaled_stage, rgb, swaps=11, stages=1),
)
