"""Fitting layers that run more than once: to all their calls at once, whatever these read and whatever follows them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fitting import METHODS, fitted, ghosts, norms, outputs, planned, settled
from torch import Tensor, nn
from zoo import conv_bn, head, plain, residual

from ghostify import convert, rewrite
from ghostify.fitting.agenda.schedule import Order
from ghostify.fitting.interpreter import Interpreter
from ghostify.module_calls import calls_of
from ghostify.networks import resnet20
from ghostify.tracing import trace

FRESH = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))


def images(count: int = 64) -> Tensor:
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return x + x.roll(1, 2) + x.roll(1, 3)


def missed(model: nn.Module, other: nn.Module) -> float:
    """Squared difference over the variance, on images that were not fitted to."""
    x = FRESH + FRESH.roll(1, 2) + FRESH.roll(1, 3)
    (wanted,), (found,) = outputs(model, x), outputs(other, x)
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


class Flipped(nn.Module):
    """One network on images and on their mirror images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) + self.net(x.flip(3))) / 2


class Siamese(nn.Module):
    """One encoder for two parts of an image, which are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_bn(3, 12), conv_bn(12, 16), conv_bn(16, 16))
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = (self.encoder(part).mean((2, 3)) for part in x.chunk(2, 3))
        return self.out(torch.cat([one, (one - other).abs()], 1))


class Pyramid(nn.Module):
    """One head on maps of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.down = nn.ModuleList(conv_bn(12, 12, stride=2) for _ in range(2))
        self.head = nn.Sequential(conv_bn(12, 12), nn.Conv2d(12, 6, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        return torch.cat([self.head(level).flatten(2).mean(2) for level in levels], 1)


class Recurrent(nn.Module):
    """A convolutional LSTM whose convolution is called at every step, on what it gave before."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.stem, self.steps = conv_bn(3, 8), steps
        self.gates, self.out = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = c = torch.zeros_like(x)
        for step in range(self.steps):
            i, f, o, g = self.gates(torch.cat([x.roll(step, 3), h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h.mean((2, 3)))


class Unrolled(nn.Module):
    """One block that is run again and again, with other layers between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = conv_bn(3, 12), conv_bn(12, 12), head(12)
        self.between = nn.ModuleList(conv_bn(12, 12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.between:
            x = layer(x + self.again(x))
        return self.head(x + self.again(x))


class NormPerCall(nn.Module):
    """One convolution, and another norm behind every call of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_bn(3, 12), nn.Conv2d(12, 16, 3, padding=1, bias=False), head(32)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = [F.relu(norm(self.conv(part))) for norm, part in zip(self.norms, (x, 2 * x.roll(1, 2) + 1), strict=True)]
        return self.head(torch.cat(maps, 1))


class Tied(nn.Module):
    """Two kept convolutions with one weight, of other steps and biases, after a layer that becomes a ghost."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 12), conv_bn(12, 12), head(24)
        self.one, self.two = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=2, dilation=2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.head(torch.cat([F.relu(self.one(x)), F.relu(self.two(x))], 1))


class InPlace(nn.Module):
    """Layers that overwrite what they read, in a network that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = conv_bn(3, 12), nn.Conv2d(12, 12, 3, padding=1), head(12)

    def features(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = F.relu_(self.two(x))
        y += x
        return y.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) + self.head(self.features(x.flip(2)))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "flipped": lambda: Flipped(plain()),
    "flipped-residual": lambda: Flipped(residual()),
    "siamese": Siamese,
    "pyramid": Pyramid,
    "recurrent": Recurrent,
    "unrolled": Unrolled,
    "norm-per-call": NormPerCall,
    "tied": Tied,
    "in-place": InPlace,
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return settled(KINDS[name](), images())


@pytest.mark.parametrize("method", ["plain", "pointwise"])
@pytest.mark.parametrize("name", KINDS)
def test_layers_that_run_more_than_once_are_fitted(name: str, method: str) -> None:
    """All ghosts are, and what is missed of other images becomes a fraction of what it was."""
    model = built(name)
    settings = {**METHODS[method], "exclude": ("one", "two") if name == "tied" else ()}
    ghosted = fitted(model, images(), **settings)
    told = {layer.target for layer in ghosted.fit.layers}  # type: ignore[union-attr]
    assert ghosts(ghosted.module) and ghosts(ghosted.module).keys() <= told
    assert not any("carried over" in note for note in ghosted.fit.notes)  # type: ignore[union-attr]
    unfitted = rewrite(*planned(model, images()[:2], **settings)).module
    assert missed(model, ghosted.module) < 0.6 * missed(model, unfitted)


@pytest.mark.parametrize("name", ["flipped", "flipped-residual"])
def test_blocks_that_run_more_than_once_are_thinned_and_fitted(name: str) -> None:
    model = built(name)
    settings: dict[str, Any] = (
        {"method": "thin", "width": 0.5, "round_to": 1} if name == "flipped-residual" else METHODS["width"]
    )
    ghosted = fitted(model, images(), **settings)
    assert ghosted.fit is not None and ghosted.fit.layers
    unfitted = rewrite(*planned(model, images()[:2], **settings)).module
    assert missed(model, ghosted.module) < 0.6 * missed(model, unfitted)


def test_calls_of_the_same_images_are_as_good_as_one() -> None:
    """A network run twice on the same images is fitted as well as one that runs once."""
    torch.manual_seed(0)
    net = settled(plain(), images())

    class Twice(Flipped):
        def forward(self, x: Tensor) -> Tensor:
            return (self.net(x) + self.net(x)) / 2

    once, twice = (fitted(model, images(), **METHODS["pointwise"]) for model in (net, Twice(net)))
    assert missed(Twice(net), twice.module) < 1.2 * missed(net, once.module)


def test_modules_with_one_weight_keep_it_in_common() -> None:
    model = built("tied")
    ghosted = fitted(model, images(), min_saving=0, include=("body",))
    assert ghosted.module.one.weight is ghosted.module.two.weight
    assert not torch.equal(ghosted.module.one.weight, model.one.weight)
    assert "one" in {layer.target for layer in ghosted.fit.layers}  # type: ignore[union-attr]


def test_a_norm_behind_every_call_takes_an_intercept_of_its_own() -> None:
    """What each norm gives is right in the mean."""
    model = built("norm-per-call")
    ghosted = fitted(model, images(), {"rectified": False}, min_saving=0, include=("conv",))
    assert list(ghosts(ghosted.module)) == ["conv"]
    for index in range(2):
        means = []
        for one in (model, ghosted.module):
            copied = copy.deepcopy(one).eval()
            seen: list[Tensor] = []
            copied.norms[index].register_forward_hook(lambda part, args, given, seen=seen: seen.append(given))
            with torch.no_grad():
                copied(images()[:48])
            means.append(seen[0].mean((0, 2, 3)))
        assert torch.allclose(*means, atol=0.05)


def test_norms_that_run_more_than_once_hold_the_statistics_of_all_their_calls() -> None:
    model = built("flipped")
    ghosted = fitted(model, images(), **METHODS["plain"])
    module = copy.deepcopy(ghosted.module).eval()
    read: dict[str, list[Tensor]] = {}
    for name, norm in norms(module).items():
        norm.register_forward_pre_hook(lambda part, args, name=name: read.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        module(images()[:48])
    for name, maps in read.items():
        assert len(maps) == 2
        y = torch.cat(maps).double().transpose(0, 1).flatten(1)
        assert torch.allclose(norms(module)[name].running_mean.double(), y.mean(1), atol=0.2), name


def test_an_order_by_need_gives_what_the_network_gives() -> None:
    """Where layers overwrite what they read, too: every operation after all it depends on, call by call."""
    model = InPlace().eval()
    traced = trace(model, images()[:2])
    order = Order(traced, 0)
    for name in ("one.0", "two", "head.2"):
        order.place(source for ran in calls_of(traced, name) for source in ran.reads)
    nodes = order.rest()
    assert nodes != [node for node in traced.graph.nodes if node.op != "output"]
    walk = Interpreter(traced, model, [images()[:2]], nodes)
    (output,) = walk.outputs
    walk.keep(output)
    with torch.no_grad():
        walk.advance(len(nodes))
    assert torch.allclose(walk.values[0][output], outputs(model, images()[:2])[0], atol=1e-6)


def test_a_trained_network_that_averages_over_flips_keeps_its_accuracy() -> None:
    """ResNet20 on the first test images of every class, right after conversion."""
    folder = os.environ.get("GHOSTIFY_DATA_DIR")
    if not folder:
        pytest.skip("GHOSTIFY_DATA_DIR is not set: no trained weights and images to look at")
    net = resnet20()
    net.load_state_dict(torch.load(Path(folder) / "resnet20-cifar10.pt", weights_only=True))
    pixels, labels = _pictures(Path(folder) / "cifar10-jpeg.tar.xz", {"train": 52, "test": 100})
    model = Flipped(net).eval()
    ghosted = convert(model, pixels["test"][:1], images=pixels["train"][:512])

    def accuracy(module: nn.Module) -> float:
        with torch.no_grad():
            scores = torch.cat([module.eval()(batch) for batch in pixels["test"].split(250)])
        return 100 * float((scores.argmax(1) == labels["test"]).double().mean())

    assert math.isfinite(accuracy(model)) and accuracy(model) - accuracy(ghosted.module) <= 5


def _pictures(archive: Path, count: dict[str, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first images of every class of each split, shuffled, scaled as the network is used to; and their classes."""
    import tarfile

    import numpy as np
    from PIL import Image

    mean, deviation = (torch.tensor(three)[:, None, None] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found: dict[str, list[tuple[Tensor, str]]] = {split: [] for split in count}
    with tarfile.open(archive) as tar:
        for member in tar:
            *_, split, kind, name = ("", "", *Path(member.name).parts)
            if not member.isfile() or split not in count or int(Path(name).stem) >= count[split]:
                continue
            image = torch.from_numpy(np.array(Image.open(tar.extractfile(member)).convert("RGB")))  # type: ignore[arg-type]
            found[split].append(((image.permute(2, 0, 1) / 255 - mean) / deviation, kind))
    pixels, labels = {}, {}
    for split, pairs in found.items():
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
        kinds = sorted({kind for _, kind in pairs})
        pixels[split] = torch.stack([image for image, _ in pairs])[order]
        labels[split] = torch.tensor([kinds.index(kind) for _, kind in pairs])[order]
    return pixels, labels
