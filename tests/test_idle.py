"""What the example does not show: after narrowing, a network runs wherever it ran, or what it may read there stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Residual, basic, bottleneck, conv_bn, head

from ghostify import convert, plan, scan
from ghostify.channels import idle_modules, outermost
from ghostify.errors import PlanError
from ghostify.tracing import other_runs, trace

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A stem, two stages, a head, and what a subclass adds to them: (N, 3, H, W) → (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.low = nn.Sequential(conv_bn(16, 32), conv_bn(32, 32))
        self.high = nn.Sequential(bottleneck(32, 32), basic(32, 32))
        self.head = head(32)
        self.add()

    def add(self) -> None:
        """More modules."""

    def forward(self, x: Tensor) -> Any:
        return self.head(self.high(self.low(self.stem(x))))


class Auxiliary(Net):
    def add(self) -> None:
        self.aux = head(32)

    def forward(self, x: Tensor) -> Any:
        low = self.low(self.stem(x))
        out = self.head(self.high(low))
        return (out, self.aux(low)) if self.training else out


class SharedHead(Net):
    """In training the same head reads other maps, of as many channels."""

    def forward(self, x: Tensor) -> Any:
        low = self.low(self.stem(x))
        out = self.head(self.high(low))
        return (out, self.head(low)) if self.training else out


class OtherInTraining(Net):
    def add(self) -> None:
        self.noisy = conv_bn(16, 16)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = self.noisy(x) if self.training else x
        return self.head(self.high(self.low(x)))


class BySize(Net):
    def add(self) -> None:
        self.reduce = conv_bn(16, 16, stride=2)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        if x.shape[-1] > 16:
            x = self.reduce(x)
        return self.head(self.high(self.low(x)))


class FarBySize(BySize):
    """A branch that no run near the example takes."""

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        if x.shape[-1] > 60:
            x = self.reduce(x)
        return self.head(self.high(self.low(x)))


class AgainBySize(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.low(self.stem(x))
        for _ in range(1 if x.shape[-1] <= 16 else 2):
            x = self.high(x)
        return self.head(x)


class ByFlag(Net):
    deep = False

    def add(self) -> None:
        self.refine, self.aux = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Any:
        low = self.low(self.stem(x))
        high = self.high(low)
        if not self.deep:
            return self.head(high)
        return self.head(self.refine(high)), self.aux(torch.cat([low, high], 1))


class ByArgument(Net):
    def add(self) -> None:
        self.embed = nn.Linear(5, 16)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Any:
        x = self.stem(x)
        if condition is not None:
            x = x + self.embed(condition)[:, :, None, None]
        return self.head(self.high(self.low(x)))


class ByMethod(Net):
    def add(self) -> None:
        self.projector = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))

    def embed(self, x: Tensor) -> Tensor:
        return self.projector(self.high(self.low(self.stem(x))).mean((2, 3)))


class Features(nn.Module):
    """It gives all it makes, of which its owner takes the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.third = conv_bn(3, 16), nn.Sequential(conv_bn(32, 32), conv_bn(32, 32))
        self.second = nn.Sequential(conv_bn(16, 32), conv_bn(32, 32))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.first(x)
        second = self.second(first)
        return {"first": first, "second": second, "last": self.third(second)}


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head, self.side = Features(), head(32), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x)["last"])

    def sides(self, x: Tensor) -> Tensor:
        return self.side(self.features(x)["second"])


class Gamma(Net):
    """A parameter of a module that runs, read in a branch that does not."""

    scaled = False

    def add(self) -> None:
        self.gamma = nn.Parameter(torch.ones(32, 1, 1))

    def forward(self, x: Tensor) -> Any:
        low = self.low(self.stem(x))
        return self.head(self.high(low * self.gamma if self.scaled else low))


class Centre(Net):
    """A buffer of a moving mean, kept in training only."""

    def add(self) -> None:
        self.register_buffer("centre", torch.zeros(32))

    def forward(self, x: Tensor) -> Any:
        high = self.high(self.low(self.stem(x)))
        if self.training:
            self.centre.mul_(0.9).add_(high.detach().mean((0, 2, 3)), alpha=0.1)
        return self.head(high)


class Dropped(Net):
    """Paths dropped at random in training, as stochastic depth does."""

    def forward(self, x: Tensor) -> Any:
        low = self.low(self.stem(x))
        if self.training:
            low = low * torch.empty((len(low), 1, 1, 1), dtype=low.dtype, device=low.device).bernoulli_(0.8).div_(0.8)
        return self.head(self.high(low))


class DeepInside(Net):
    """The module that does not run stands deep in another, and so does what it may read."""

    class Block(Residual):
        training_only = False

        def forward(self, x: Tensor) -> Tensor:
            y = self.body[0](x)
            if self.training_only:
                y = self.spare(y)
            return F.relu(self.body[1](y) + x)

    def add(self) -> None:
        block = self.high[1]
        block.__class__ = self.Block
        block.spare = nn.Conv2d(32, 32, 1)


def flagged(net: nn.Module, name: str) -> nn.Module:
    for module in net.modules():
        if hasattr(type(module), name):
            setattr(module, name, True)
    return net


Uses = list[Callable[[Any], Any]]
MORE: dict[type[nn.Module], Uses] = {
    FarBySize: [lambda net: net(torch.randn(2, 3, 96, 96))],
    ByFlag: [lambda net: flagged(net, "deep")(X)],
    ByArgument: [lambda net: net(X, torch.randn(2, 5))],
    ByMethod: [lambda net: net.embed(X)],
    Pyramid: [lambda net: net.sides(X)],
    Gamma: [lambda net: flagged(net, "scaled")(X)],
    DeepInside: [lambda net: flagged(net, "training_only")(X)],
}
NETS = [
    *(Auxiliary, SharedHead, OtherInTraining, BySize, FarBySize, AgainBySize, ByFlag, ByArgument, ByMethod, Pyramid),
    *(Gamma, Centre, Dropped, DeepInside),
]
IDLE: dict[type[nn.Module], tuple[str, ...]] = {
    FarBySize: ("reduce",),
    ByFlag: ("refine", "aux"),
    ByArgument: ("embed",),
    ByMethod: ("projector",),
    Pyramid: ("side",),
    Gamma: ("",),
    DeepInside: ("high.1.spare",),
}
each = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
methods = pytest.mark.parametrize("method", ["width", "thin"])


def shapes(given: Any) -> list[tuple[int, ...]]:
    return [tuple(one.shape) for one in (given if isinstance(given, tuple) else (given,))]


@each
@methods
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_a_narrower_network_runs_wherever_the_network_runs(kind: type[nn.Module], method: str, keep: str) -> None:
    net = kind()
    narrow = convert(net, X, method=method, width=0.5, round_to=2, keep=keep).module
    ways: Uses = [lambda net: net(X), lambda net: net(torch.randn(2, 3, 32, 32)), lambda net: net(X[:, :, ::2, ::2])]
    for training in (False, True):
        for way in (*ways, *MORE.get(kind, [])):
            assert shapes(way(narrow.train(training))) == shapes(way(net.train(training)))


@each
def test_the_plan_names_what_did_not_run(kind: type[nn.Module]) -> None:
    found = plan(scan(kind(), X, whole=True), method="width", width=0.5)
    assert tuple(skip.target for skip in found.skips) == IDLE.get(kind, ())
    assert all("did not run" in skip.reason for skip in found.skips)


def test_what_only_training_shows_is_narrowed_with_the_rest() -> None:
    narrow = convert(Auxiliary(), X, method="width", width=0.5).module
    assert narrow.aux[2].in_features == narrow.low[1][0].out_channels == 16


def test_a_head_that_reads_two_maps_reads_the_same_channels_of_both() -> None:
    """The strongest channels of the one are not those of the other, so they must be chosen for both."""
    net = SharedHead()
    with torch.no_grad():
        net.low[1][0].weight.mul_(torch.linspace(1, 2, 32)[:, None, None, None])
    narrow = convert(net, X, method="width", width=0.5, keep="strongest").module
    weight, whole = narrow.head[2].weight, net.head[2].weight
    places = [int((whole == column[:, None]).all(0).nonzero()) for column in weight.T]
    norm = net.low[1][1].train(False)
    norm.running_mean.copy_(torch.arange(32.0))
    again = convert(net, X, method="width", width=0.5, keep="strongest").module
    assert again.low[1][1].running_mean.tolist() == [float(place) for place in places]


def test_inside_the_blocks_channels_go_all_the_same() -> None:
    """What no idle module can see becomes narrower."""
    narrow = convert(ByMethod(), X, method="width", width=0.5).module
    assert narrow.high[0].body[0][0].out_channels == 8 and narrow.high[1].body[0][0].out_channels == 16
    assert narrow.projector[0].in_features == 32


def test_where_all_may_be_read_the_error_names_what_does_not_run() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.spare = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    with pytest.raises(PlanError, match="spare did not run"):
        convert(Flat(), X, method="width", width=0.5)


def test_a_block_in_which_something_does_not_run_is_no_part_of_a_g_ghost_stage() -> None:
    class Stage(Net):
        def add(self) -> None:
            self.high = nn.Sequential(*(basic(32, 32) for _ in range(4)))

    class Spare(Stage):
        def add(self) -> None:
            super().add()
            self.high[2].__class__ = DeepInside.Block
            self.high[2].spare = nn.Conv2d(32, 32, 1)

    (stage,) = scan(Stage(), X).stages
    assert stage.obstacle is None
    (stage,) = scan(Spare(), X).stages
    assert "high.2.spare did not run" in str(stage.obstacle)


def test_a_thin_block_that_fails_in_training_is_refused() -> None:
    class Counting(Residual):
        """It writes out in training how wide it is inside."""

        def forward(self, x: Tensor) -> Tensor:
            y = self.body[0](x)
            y = y + torch.ones(1, 32, 1, 1) if self.training else y
            return F.relu(self.body[1](y) + x)

    class Stage(Net):
        def add(self) -> None:
            self.high = nn.Sequential(*(basic(32, 32) for _ in range(4)))
            self.high[2].__class__ = Counting

    with pytest.raises(PlanError, match=r"its block high\.2 .* fails in training"):
        convert(Stage(), X, method="g-ghost")


def test_other_runs_are_those_that_go_another_way() -> None:
    assert other_runs(trace(Net(), X)) == []
    assert [run.training for run in other_runs(trace(Auxiliary(), X))] == [True]
    (larger,) = other_runs(trace(BySize(), X))
    assert larger.input_shapes == [(2, 3, 32, 32)] and not larger.training


def test_idle_modules_are_told_by_the_largest_of_them() -> None:
    traced = trace(ByMethod(), X)
    assert idle_modules(traced) == ["projector.0", "projector.2"]
    assert outermost(traced, idle_modules(traced)) == ["projector"]
