"""Networks that hold their numbers in every way that torch allows: what a run folder must bring back."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Holder(nn.Module):
    """Two convolutions that can become ghosts, and a head; subclasses hold something more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.hold()

    def hold(self) -> None:
        """What this one holds besides."""

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.second(self.first(self.body(self.stem(x)).mean((2, 3)))))

    def tail(self, x: Tensor) -> Tensor:
        return x


class AliasedModules(Holder):
    def hold(self) -> None:
        self.features = self.stem
        self.norm = self.stem[1]


class AliasedGhost(Holder):
    """What becomes a ghost has three names."""

    def hold(self) -> None:
        self.again = nn.ModuleDict({"body": self.body, "list": nn.ModuleList([self.body])})


class SharedParameter(Holder):
    def hold(self) -> None:
        self.second.weight = self.first.weight


class SharedAcrossKinds(Holder):
    """A parameter that is a buffer, too."""

    def hold(self) -> None:
        self.register_buffer("mirror", self.first.weight)

    def tail(self, x: Tensor) -> Tensor:
        return x @ self.get_buffer("mirror")


class Transposed(Holder):
    """Buffers that are views of a parameter, and of each other."""

    def hold(self) -> None:
        self.register_buffer("turned", self.first.weight.data.t())
        self.register_buffer("table", torch.randn(8, 16))
        self.register_buffer("row", self.table[3])
        self.register_buffer("column", self.table.t()[2:5])

    def tail(self, x: Tensor) -> Tensor:
        return x @ self.get_buffer("turned") + self.get_buffer("row") + self.get_buffer("column").sum()


class Odd(Holder):
    """Expanded, strided, empty, scalar and overlapping tensors; NaN; whole, true and complex numbers."""

    def hold(self) -> None:
        self.register_buffer("expanded", torch.randn(1, 16).expand(4, 16))
        self.register_buffer("strided", torch.randn(32)[::2])
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("also_empty", torch.zeros(0))
        self.register_buffer("overlapping", torch.arange(10.0).unfold(0, 3, 1))
        self.register_buffer("unknown", torch.tensor(float("nan")))
        self.register_buffer("index", torch.randperm(16))
        self.register_buffer("mask", torch.rand(16) > 0.5)
        self.register_buffer("wave", torch.randn(16, dtype=torch.complex64).conj())

    def tail(self, x: Tensor) -> Tensor:
        x = x * self.get_buffer("mask") + self.get_buffer("expanded")[0] + self.get_buffer("strided")
        return x[:, self.get_buffer("index")] + self.get_buffer("wave").real.to(x.dtype)


class Unlisted(Holder):
    """Buffers that no state dict holds, which nothing but the file can bring back."""

    def hold(self) -> None:
        self.register_buffer("offset", torch.randn(16), persistent=False)

    def tail(self, x: Tensor) -> Tensor:
        return x + self.get_buffer("offset")


class OldWeightNorm(Holder):
    def hold(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.first = nn.utils.weight_norm(self.first)


class OldSpectralNorm(Holder):
    def hold(self) -> None:
        self.first = nn.utils.spectral_norm(self.first)


class NewWeightNorm(Holder):
    def hold(self) -> None:
        self.first = parametrizations.weight_norm(self.first)


class NewSpectralNorm(Holder):
    def hold(self) -> None:
        self.first = parametrizations.spectral_norm(self.first)


class NormedConvolution(Holder):
    """The old weight norm on a layer that could become a ghost."""

    def hold(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.body = nn.utils.weight_norm(self.body)


class Recurrent(Holder):
    """Keeps references to its parameters in a list of its own."""

    def hold(self) -> None:
        self.cell = nn.LSTM(16, 16, batch_first=True)

    def tail(self, x: Tensor) -> Tensor:
        return self.cell(x[:, None])[0][:, 0]


class HalfInside(Holder):
    """A part in another precision."""

    def hold(self) -> None:
        self.second.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.body(self.stem(x)).mean((2, 3)))
        return self.second(x.to(torch.bfloat16)).to(x.dtype)


class Frozen(Holder):
    def hold(self) -> None:
        self.stem.requires_grad_(False)


def line() -> nn.Module:
    """One dimension."""
    convs = (nn.Conv1d(2, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2))
    return nn.Sequential(*convs, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))


def volume() -> nn.Module:
    """Three dimensions."""
    convs = (nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
    return nn.Sequential(*convs, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4))


class Embedding(nn.Module):
    """Whole numbers beside an image, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.words = nn.Embedding(7, 16)

    def forward(self, picture: Tensor, tokens: Tensor) -> Tensor:
        return self.image(picture).mean((2, 3)) + self.words(tokens).mean(1)


HOLDERS: tuple[type[Holder], ...] = (
    *(AliasedModules, AliasedGhost, SharedParameter, SharedAcrossKinds, Transposed, Odd, Unlisted, OldWeightNorm),
    *(OldSpectralNorm, NewWeightNorm, NewSpectralNorm, NormedConvolution, Recurrent, HalfInside, Frozen),
)
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: kind for kind in HOLDERS},
    "line": line,
    "volume": volume,
    "Embedding": Embedding,
}


def build(name: str) -> nn.Module:
    """The network of that name, at the random state of whoever asks."""
    return BUILDERS[name]()


def example(name: str) -> object:
    """One input of it."""
    if name == "Embedding":
        return {"picture": torch.randn(2, 3, 8, 8), "tokens": torch.randint(7, (2, 5))}
    shapes = {"line": (2, 2, 24), "volume": (2, 1, 6, 6, 6)}
    return torch.randn(shapes.get(name, (2, 3, 8, 8)))
