"""The parts of a fit, each by itself: positions, the walk, what surrounds a layer, norms, and which layer is whose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO, InvertedResidual, Net, conv_bn, plain, residual

from ghostify.fitting.agenda.aims import Aim
from ghostify.fitting.agenda.correspondence import Matching
from ghostify.fitting.agenda.epilogue import bare, epilogue, is_norm, line, without_addition
from ghostify.fitting.interpreter import Interpreter, batched
from ghostify.fitting.kinds.intercepts import Intercepts
from ghostify.fitting.kinds.least_squares import put, times, weight_of
from ghostify.fitting.kinds.targets import Targets
from ghostify.fitting.norms import Statistics, renew
from ghostify.leastsquares.moments import Moments
from ghostify.leastsquares.pointwise import Blocks, Both
from ghostify.leastsquares.sampling import _LEAST, _MOST, Block, Positions, Samples, positions_wanted
from ghostify.networks import resnet8
from ghostify.rules.origins import Origins
from ghostify.tracing import trace

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SINGLE = [net for net in ZOO if isinstance(net.example(), Tensor)]
each_single = pytest.mark.parametrize("net", SINGLE, ids=lambda net: net.name)


def scrambled(model: nn.Module) -> nn.Module:
    """Norms and their statistics at random, so that in eval mode they are lines of their own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                drawn = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.copy_(drawn + 0.5 if name.endswith(("weight", "var")) else drawn - 0.5)
    return model


# -- positions -------------------------------------------------------------------------------------------------

CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "no-padding": {"kernel_size": 3},
    "1x1": {"kernel_size": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "uneven": {"kernel_size": (3, 5), "padding": (1, 0), "stride": (1, 2)},
    "dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "uneven-dilation": {"kernel_size": (2, 3), "padding": (3, 1), "dilation": (3, 1), "stride": (2, 3)},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 4},
    "same": {"kernel_size": 3, "padding": "same"},
    "same-even": {"kernel_size": (2, 4), "padding": "same", "dilation": (3, 1)},
    "valid": {"kernel_size": 3, "padding": "valid", "stride": 2},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect", "dilation": (1, 2)},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 2},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "stride": 2},
    "reflect-same": {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
}


@pytest.mark.parametrize("wanted", [30, 10**6], ids=["some", "all"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_patches_of_a_convolution_times_its_filters_are_its_outputs(kind: str, bias: bool, wanted: int) -> None:
    """At the positions, however it pads, strides, dilates and groups; where many are wanted, at every one once."""
    conv = nn.Conv2d(4, 8, bias=bias, **CONVS[kind])
    batches = torch.randn(2, 3, 4, 11, 9).unbind()
    outputs = [conv(x) for x in batches]
    positions = Positions(outputs[0].shape, wanted, 2, seed=0, channels=1)
    for index, (x, y) in enumerate(zip(batches, outputs, strict=True)):
        there = positions.values(y, index)
        found = times(weight_of(conv), positions.patches(x, conv, index)).flatten(1)
        assert torch.allclose(found + (conv.bias if bias else 0), there.double(), atol=1e-5)
        assert torch.equal(there, positions.values(y, index))
    assert positions.total == 2 * len(there)
    area = outputs[0].shape[2] * outputs[0].shape[3]
    if wanted == 10**6:
        assert torch.equal(there.sort(0).values, y.transpose(1, 2).transpose(2, 3).reshape(-1, 8).sort(0).values)
    else:
        assert wanted <= positions.total <= min(2 * 3 * area, wanted + 2 * 3)


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 4, 3), (5, 2, 3, 4)], ids=len)
def test_rows_of_a_linear_layer_times_its_weight_are_its_outputs(shape: tuple[int, ...]) -> None:
    """With dimensions between the batch and the channels, too."""
    linear = nn.Linear(8, 6)
    batches = torch.randn(2, *shape, 8).unbind()
    positions = Positions((*shape, 6), 6, 2, seed=0, channels=-1)
    for index, x in enumerate(batches):
        found = times(weight_of(linear), positions.patches(x, linear, index)).flatten(1)
        assert torch.allclose(found + linear.bias, positions.values(linear(x), index).double(), atol=1e-5)
    assert len(found) == 3 and positions.total == 6


@pytest.mark.parametrize("d", [1, 3, 5])
def test_shifts_are_what_unfold_gives(d: int) -> None:
    """Around every position of every map, and zero outside."""
    y = torch.randn(3, 4, 6, 7)
    positions = Positions(y.shape, 60, 1, seed=0, channels=1)
    unfolded = F.unfold(y, d, padding=d // 2).unflatten(1, (4, d * d))  # (B, C, d·d, H·W)
    chosen = unfolded[..., positions.chosen[0]].permute(0, 3, 1, 2).flatten(0, 1)
    assert torch.equal(positions.shifts(y, d, 0), chosen)
    assert torch.equal(positions.shifts(y, d, 0)[:, :, d * d // 2], positions.values(y, 0))


def test_positions_are_others_in_every_batch_and_the_same_for_the_same_seed() -> None:
    def chosen(seed: int) -> list[list[int]]:
        return [one.tolist() for one in Positions((4, 8, 16, 16), 160, 2, seed, 1).chosen]

    first, second = chosen(0)
    assert first != second and chosen(0) == [first, second] != chosen(1)
    assert len(set(first)) == len(first) == 20


def test_vectors_are_maps_of_one_pixel_to_a_ghost() -> None:
    y = torch.randn(5, 8)
    positions = Positions((5, 8, 1, 1), 3, 1, 0, 1)
    assert torch.equal(positions.values(y, 0), y)


@pytest.mark.parametrize(("features", "targets"), [(27, 16), (576, 64), (4608, 512), (10**6, 10)])
def test_more_unknowns_want_more_positions_within_bounds(features: int, targets: int) -> None:
    wanted = positions_wanted(features, targets)
    assert _LEAST <= wanted <= _MOST
    assert wanted >= min(_MOST, 4 * features)


# -- the walk --------------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """Overwrites what it is given, in one of the ways torch has, and reads what it wrote by another name."""

    def __init__(self, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.how, self.body = how, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        view = x[:, :2]
        self.how(x)
        return self.body(x).relu_() + view.mean()


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "method": lambda x: x.sub_(0.5),
    "operator": lambda x: x.__imul__(2.0),
    "item": lambda x: x.__setitem__((slice(None), 0), 1.0),
    "view": lambda x: x[:, 1:].clamp_(min=0),
    "function": lambda x: F.relu(x, inplace=True),
    "module": nn.LeakyReLU(0.1, inplace=True),
    "out": lambda x: torch.mul(x, 3.0, out=x),
}


def evaluated(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(copy.deepcopy(model).eval()(images.clone())) if isinstance(leaf, Tensor)]


def walk(model: nn.Module, batches: list[Tensor]) -> Interpreter:
    return Interpreter(trace(model, batches[0], verify=False), model.eval(), batches)


def assert_walks(model: nn.Module, batches: list[Tensor], steps: int = 3) -> None:
    """Some nodes at a time, the walk comes to what the network gives for each batch."""
    wanted = [evaluated(model, batch) for batch in batches]
    going = walk(model, batches)
    with torch.no_grad():
        for at in range(0, len(going.nodes) + steps, steps):
            going.advance(min(at, len(going.nodes)))
    for values, outputs in zip(going.values, wanted, strict=True):
        for node, output in zip(going.outputs, outputs, strict=True):
            assert torch.allclose(values[node], output, rtol=1e-4, atol=1e-5 * float(output.abs().max()))
        assert set(values) == set(going.outputs)


@each_single
def test_a_walk_gives_what_the_network_gives(net: Net) -> None:
    """For other images than it was recorded with, and the images stay as they were."""
    example = net.example()
    images = torch.randn(6, *example.shape[1:], generator=torch.Generator().manual_seed(2)).to(example.dtype)
    kept = images.clone()
    assert_walks(scrambled(net.build()), list(images.split(2)))
    assert torch.equal(images, kept)


@pytest.mark.parametrize("way", WRITES)
def test_what_a_network_writes_into_is_not_the_callers(way: str) -> None:
    """Its images stay as they were, while what reads the same memory by another name sees the write."""
    images = X.clone()
    model = Writes(WRITES[way])
    assert not torch.equal(evaluated(model, X)[0], evaluated(Writes(lambda x: x), X)[0])
    assert_walks(model, list(images.split(3)))
    assert torch.equal(images, X)


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True), torch.relu_, lambda x: x.mul_(2)])
def test_a_value_that_is_kept_is_not_overwritten(act: Callable[[Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), act

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.act(self.conv(x)))

    model = Model()
    going = walk(model, [X])
    conv = next(node for node in going.nodes if node.target == "conv")
    going.keep(conv)
    with torch.no_grad():
        going.advance(len(going.nodes))
        assert torch.equal(going.values[0][conv], model.conv(X))
    going.drop(conv)
    assert conv not in going.values[0]


def test_buffers_and_weights_are_not_overwritten() -> None:
    net = next(net for net in ZOO if net.name == "counting")
    model = net.build()
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        going = walk(model, [X])
        going.advance(len(going.nodes))
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_a_walk_lets_go_of_what_nobody_needs() -> None:
    """A chain holds a value or two however long it is; a residual network as many as its blocks read at once."""
    chain = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())))
    for model, most in ((chain, 1), (resnet8(width=4), 2)):
        going = walk(model, list(X.split(3)))
        for at in range(1, len(going.nodes) + 1):
            with torch.no_grad():
                going.advance(at)
            assert all(len(values) <= most for values in going.values)


def test_what_was_kept_stays_until_it_is_dropped() -> None:
    going = walk(resnet8(width=4), [X])
    kept = [node for node in going.nodes if node.op == "call_module"][2:5]
    for node in kept:
        going.keep(node)
    with torch.no_grad():
        going.advance(going.index[kept[-1]] - 1)
        assert kept[0] in going.values[0] and kept[-1] not in going.values[0]
        going.drop(kept[-1])  # before it was there: it goes its way
        going.advance(len(going.nodes))
    assert set(going.values[0]) == {*kept[:2], *going.outputs}
    for node in kept[:2]:
        going.drop(node)
    assert set(going.values[0]) == set(going.outputs)


def test_a_walk_that_is_dropped_while_needed_keeps_the_value_until_then() -> None:
    going = walk(resnet8(width=4), [X])
    first = next(node for node in going.nodes if node.target == "bn1")
    going.keep(first)
    with torch.no_grad():
        going.advance(going.index[first] + 1)
        going.drop(first)
        assert first in going.values[0]
        going.advance(len(going.nodes))
    assert set(going.values[0]) == set(going.outputs)


def test_a_walk_can_go_on_from_where_another_stands() -> None:
    """With the values of the nodes that are the same in both, and without touching the other's."""
    model = scrambled(resnet8(width=4))
    one, other = walk(model, list(X.split(3))), walk(copy.deepcopy(model), list(X.split(3)))
    at = next(index for index, node in enumerate(one.nodes) if node.target == "layer2.0.bn1")
    with torch.no_grad():
        one.advance(at)
        other.follow(one, dict(zip(other.nodes[:at], one.nodes[:at], strict=True)), at)
        assert [len(values) for values in other.values] == [len(values) for values in one.values]
        for going in (other, one):
            going.advance(len(going.nodes))
    for mine, theirs, batch in zip(one.values, other.values, X.split(3), strict=True):
        (output,) = evaluated(model, batch)
        assert torch.allclose(mine[one.outputs[0]], output, atol=1e-5)
        assert torch.equal(mine[one.outputs[0]], theirs[other.outputs[0]])


def test_who_watches_a_node_is_told_what_it_reads() -> None:
    model = scrambled(plain())
    going = walk(model, list(X.split(2)))
    norm = next(node for node in going.nodes if node.target == "1.1")
    told: list[Tensor] = []
    going.watched[norm] = told.append
    with torch.no_grad():
        going.advance(len(going.nodes))
        assert torch.allclose(torch.cat(told), model[1][0](model[0](X)), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 63, 100, 511, 512, 777])
def test_batches_are_of_one_size_and_leave_few_images_over(count: int) -> None:
    """Every image once, and each batch spread over all of them; of eight or more, at least eight batches."""
    images = torch.arange(count)[:, None, None, None].expand(count, 1, 2, 2)
    batches = batched(images)
    used = torch.cat(batches)
    assert len({len(batch) for batch in batches}) == 1 and len(batches[0]) <= 64
    assert len(batches) >= min(8, count)
    assert torch.equal(used.sort(0).values, images[: len(used)])
    assert all(batch[0, 0, 0, 0] < len(batches) and batch[-1, 0, 0, 0] >= len(used) - len(batches) for batch in batches)
    assert len(used) > 0.95 * count


# -- what surrounds a layer ------------------------------------------------------------------------------------


def around(model: nn.Module, name: str, example: Tensor | None = None) -> dict[str, Any]:
    """What follows a layer, by the names of nodes' targets."""
    traced = trace(model, X[:2] if example is None else example)
    node = next(node for node in traced.graph.nodes if node.target == name)
    found = epilogue(traced, node)
    assert found.output is node

    def told(one: Any) -> str | None:
        return None if one is None else str(one.target if isinstance(one.target, str) else one.target.__name__)

    return {"norm": told(found.norm), "other": told(found.other), "sum": told(found.sum), "ceiling": found.ceiling}


INF = float("inf")


def test_a_basic_block_adds_its_input_to_its_last_norm() -> None:
    """The first layer has a norm and a rectifier, the second the addition before it, with what runs before it."""
    model = tv.resnet.BasicBlock(8, 8)
    x = torch.randn(2, 8, 6, 6)
    traced = trace(model, x)
    assert around(model, "conv1", x) == {"norm": "bn1", "other": None, "sum": "bn1", "ceiling": INF}
    found = around(model, "conv2", x)
    assert (found["norm"], found["other"], found["ceiling"]) == ("bn2", "input_0", INF)
    assert "add" in found["sum"]
    node = next(node for node in traced.graph.nodes if node.target == "conv2")
    assert epilogue(traced, node).form == (True, True)


def test_the_downsample_of_a_bottleneck_is_added_after_it_is_computed() -> None:
    """Each of the two ways is the other's addition, and one sum is that of both."""
    model = tv.resnet.Bottleneck(8, 4, stride=2, downsample=nn.Sequential(nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16)))
    x = torch.randn(2, 8, 6, 6)
    last, shortcut = around(model, "conv3", x), around(model, "downsample.0", x)
    assert (last["norm"], last["other"]) == ("bn3", "downsample.1")
    assert (shortcut["norm"], shortcut["other"]) == ("downsample.1", "bn3")
    assert last["sum"] == shortcut["sum"] and last["ceiling"] == shortcut["ceiling"] == INF


class Odd(nn.Module):
    """A convolution, and something that is done with what it gives."""

    def __init__(self, then: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 3, 3, padding=1), then
        self.bias = nn.Parameter(torch.randn(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return self.then(self.conv(x), x)


BARE = {"norm": None, "other": None, "sum": "conv", "ceiling": None}
AFTER: dict[str, tuple[Callable[[Tensor, Tensor], Any], dict[str, Any]]] = {
    "nothing": (lambda y, x: y, {}),
    "relu": (lambda y, x: F.relu(y), {"ceiling": INF}),
    "relu6": (lambda y, x: F.relu6(y), {"ceiling": 6.0}),
    "in-place": (lambda y, x: y.relu_(), {"ceiling": INF}),
    "after-dropout": (lambda y, x: F.relu(F.dropout(y, 0.5, False)), {"ceiling": INF}),
    "sigmoid": (lambda y, x: torch.sigmoid(y), {}),
    "leaky": (lambda y, x: F.leaky_relu(y), {}),
    "gate": (lambda y, x: F.relu(y * torch.sigmoid(x)), {}),
    "read-twice": (lambda y, x: F.relu(y) + y.mean(), {}),
    "two-outputs": (lambda y, x: (F.relu(y), y), {}),
    "broadcast": (lambda y, x: F.relu(y + x.mean((2, 3), keepdim=True)), {}),
    "number": (lambda y, x: F.relu(y + 1.0), {}),
    "scaled": (lambda y, x: F.relu(torch.add(y, x, alpha=2)), {}),
    "doubled": (lambda y, x: F.relu(y + y), {}),
}


@pytest.mark.parametrize("case", AFTER)
def test_a_layer_without_norm_or_addition(case: str) -> None:
    """A rectifier counts where it alone reads the layer; what is no plain sum of two maps is no addition."""
    then, expected = AFTER[case]
    assert around(Odd(then), "conv") == {**BARE, **expected}


@pytest.mark.parametrize("swap", [False, True])
def test_an_addition_may_stand_on_either_side_and_in_place(swap: bool) -> None:
    plus = (lambda y, x: F.relu(x + y)) if swap else (lambda y, x: F.relu(y.add_(x)))
    found = around(Odd(plus), "conv")
    assert (found["norm"], found["other"], found["ceiling"]) == (None, "input_0", INF)


def test_a_parameter_that_is_added_is_no_addition() -> None:
    model = Odd(lambda y, x: F.relu(y + model.bias))
    assert around(nn.Sequential(model), "0.conv") == {**BARE, "sum": "0.conv"}


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3)],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_of_its_input_is_no_line(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), norm, nn.ReLU())
    assert around(model, "0") == {**BARE, "sum": "0"}
    traced = trace(model, X)
    assert not any(is_norm(traced, node) for node in traced.graph.nodes)


def test_a_norm_that_two_layers_share_is_neithers() -> None:
    """Nothing may be shifted in it for the sake of one."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.two(F.relu(self.norm(self.one(x))))))

    assert around(Shared(), "one")["norm"] is around(Shared(), "two")["norm"] is None


def test_a_norm_over_rows_is_not_that_of_a_linear_layer() -> None:
    """Behind a linear layer on (N, L, C), a batch norm norms L."""
    rows = nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.BatchNorm1d(3), nn.ReLU())
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.ReLU())
    assert around(rows, "1")["norm"] is None
    assert around(vectors, "1") == {"norm": "2", "other": None, "sum": "2", "ceiling": INF}


def test_a_gate_between_keeps_a_layer_by_itself() -> None:
    """Before squeeze and excitation, what a layer gives is read by the gate and by the product."""
    model = nn.Sequential(conv_bn(3, 8), InvertedResidual(8, 16))
    assert around(model, "1.depthwise.0") == {**BARE, "sum": "1.depthwise.0"}  # a hard swish follows
    found = around(model, "1.project.0")
    assert (found["norm"], found["ceiling"]) == ("1.project.1", None) and found["other"] is not None
    assert around(model, "1.expand.0")["ceiling"] == INF
    assert around(model, "1.gate.reduce") == {**BARE, "sum": "1.gate.reduce", "ceiling": INF}
    assert around(model, "1.gate.expand") == {**BARE, "sum": "1.gate.expand"}


def test_what_does_nothing_in_eval_mode_is_passed_over() -> None:
    """Wherever it stands, as module or function; several in a row, too."""
    nothing = nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5))
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nothing, nn.BatchNorm2d(3), nn.Identity(), nothing, nn.ReLU())
    assert around(model, "0") == {"norm": "2", "other": None, "sum": "2", "ceiling": INF}


def test_less_can_be_looked_at() -> None:
    model = residual()
    traced = trace(model, X)
    node = next(node for node in traced.graph.nodes if node.target == "1.body.1")
    whole = epilogue(traced, node)
    assert whole.other is not None and whole.ceiling == INF
    less = without_addition(whole)
    assert (less.other, less.sum, less.ceiling) == (None, node, None)
    alone = bare(whole)
    assert (alone.norm, alone.other, alone.sum, alone.ceiling) == (None, None, node, None)
    assert without_addition(less) is less


# -- what is added ---------------------------------------------------------------------------------------------


def aim(model: nn.Module, x: Tensor, name: str, compensate: bool = True) -> tuple[Aim, list[Any]]:
    """The aim of a layer of a network that stands for itself, and both recordings' nodes by target."""
    twin = copy.deepcopy(model)
    walks = [walk(model, [x]), walk(twin, [x])]
    nodes: list[Any] = [{str(node.target): node for node in one.nodes} for one in walks]
    matching = Matching(walks[0].traced, walks[1].traced, twin, Origins())
    part = next(part for part in matching.parts() if part.name == name)
    return Aim.of(walks[0].traced, matching, part, part.calls[0], compensate), nodes


def test_what_is_added_is_the_converted_networks_where_that_is_known() -> None:
    """The way that runs first counts on the original's other way, the second makes good what became of the first."""
    down = nn.Sequential(nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16))
    model, x = tv.resnet.Bottleneck(8, 4, stride=2, downsample=down), torch.randn(2, 8, 6, 6)
    first, (theirs, _) = aim(model, x, "conv3")
    assert (first.added, first.added_there) == (None, theirs["downsample.1"])
    assert first.needed == [first.theirs.sum, theirs["downsample.1"]]
    second, (_, ours) = aim(model, x, "downsample.0")
    assert (second.added, second.added_there) == (ours["bn3"], None)
    assert second.needed == [second.theirs.sum]
    alone, (theirs, _) = aim(model, x, "downsample.0", compensate=False)
    assert (alone.added, alone.added_there, alone.theirs.sum) == (None, None, theirs["downsample.1"])


# -- norms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_in_eval_mode_is_its_line(affine: bool) -> None:
    norm = scrambled(nn.BatchNorm2d(5, affine=affine)).eval()
    y = torch.randn(4, 5, 3, 3)
    a, b = line(norm, 5, y)
    assert torch.allclose((a[:, None, None] * y + b[:, None, None]).float(), norm(y), atol=1e-6)
    assert [values.tolist() for values in line(None, 2, y)] == [[1, 1], [0, 0]]


def test_what_was_seen_is_mean_and_variance_of_all_blocks() -> None:
    seen, y = Statistics(), 30 + torch.randn(20, 5, 4, 3)
    for block in y.split([3, 12, 5]):
        seen(block)
    assert torch.allclose(seen.mean, y.double().mean((0, 2, 3)))
    assert torch.allclose(seen.variance, y.double().var((0, 2, 3), unbiased=False))


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.BatchNorm1d])
def test_a_renewed_norm_has_the_statistics_seen_and_the_function_it_had(kind: Any) -> None:
    norm = scrambled(kind(5)).eval()
    y = 3 + 2 * torch.randn(20, 5, *((4, 3) if kind is nn.BatchNorm2d else ()))
    y[:, 2] = 1.5  # does not vary
    before, seen = norm(y), Statistics()
    old = copy.deepcopy(norm.state_dict())
    seen(y)
    renew(norm, seen)
    assert torch.allclose(norm(y), before, atol=1e-5)
    varies = torch.arange(5) != 2
    assert torch.allclose(norm.running_mean[varies], seen.mean.float()[varies])
    assert torch.allclose(norm.running_var[varies], seen.variance.float()[varies])
    assert all(torch.equal(value[2], old[name][2]) for name, value in norm.state_dict().items() if value.dim())
    trained = norm.train()(y)
    assert torch.allclose(trained[:, varies], before[:, varies], atol=1e-3)


def test_a_norm_without_a_line_of_its_own_or_that_saw_nothing_stays() -> None:
    seen = Statistics()
    seen(torch.randn(4, 5, 3, 3))
    for norm, what in ((nn.BatchNorm2d(5, affine=False), seen), (nn.BatchNorm2d(5), Statistics())):
        before = copy.deepcopy(norm.state_dict())
        renew(norm, what)
        assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


# -- depthwise and pointwise at once ---------------------------------------------------------------------------


def both_features(d: int, m: int = 3, ghosts: int = 5) -> tuple[Tensor, Tensor, Blocks]:
    """Shifts of m maps (N, m, d·d), what the ghosts should be (N, n−m), and the moments of both, by blocks."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(12, m, 9, 7, generator=generator).double() + torch.arange(1.0, m + 1)[:, None, None]
    v = Positions(y.shape, 10**6, 1, 0, 1).shifts(y, d, 0)
    t = torch.randn(len(v), ghosts, generator=generator).double()
    t = t + v.flatten(1) @ torch.randn(m * d * d, ghosts, generator=generator).double()
    own, shared, parts = Moments(), Moments(), -(-ghosts // m)
    spread = torch.cat([t, torch.zeros(len(t), parts * m - ghosts)], 1).unflatten(1, (parts, m)).transpose(1, 2)
    for some in torch.arange(len(v)).split(100):
        centre = v[some][:, :, d * d // 2]
        own.add(v[some], spread[some])
        shared.add(centre[:, None], torch.cat([v[some].flatten(1), t[some]], 1)[:, None])
    return v, t, Blocks.of(own, shared, d * d, True)


def given_by(both: Both, v: Tensor) -> Tensor:
    """What depthwise filters and pointwise convolution make of the maps: (N, n−m)."""
    own = torch.arange(len(both.taps)) % v.shape[1]
    return torch.einsum("nga,ga->ng", v[:, own], both.taps) + v[:, :, v.shape[2] // 2] @ both.pointwise.T + both.bias


@pytest.mark.parametrize("d", [1, 3])
def test_filters_and_mixtures_are_the_least_squares_of_both(d: int) -> None:
    """Ghost by ghost on the rows themselves: shifts of its own map and the centres of all, and a constant."""
    v, t, blocks = both_features(d)
    both = Both(blocks, 1e-12, torch.ones(5, dtype=torch.float64), rank=0)
    for ghost in range(5):
        x = torch.cat([v[:, ghost % 3], v[:, :, d * d // 2], torch.ones(len(v), 1)], 1)
        wanted = x @ torch.linalg.lstsq(x, t[:, ghost : ghost + 1], driver="gelsd").solution
        assert torch.allclose(given_by(both, v)[:, ghost : ghost + 1], wanted, atol=1e-6)
    weights = torch.arange(1.0, 6, dtype=torch.float64)
    error = ((given_by(both, v) - t).square().mean(0) * weights).mean()
    assert Both(blocks, 1e-12, weights, rank=0).error(blocks) == pytest.approx(float(error))


@pytest.mark.parametrize("rank", [1, 2])
def test_mixtures_of_low_rank_leave_the_rest_to_the_filters(rank: int) -> None:
    """P = A·B of that rank, and the filters are the least squares of what it leaves."""
    v, t, blocks = both_features(3)
    both = Both(blocks, 1e-12, torch.ones(5, dtype=torch.float64), rank)
    b, a = both.factors
    assert b.shape == (rank, 3) and a.shape == (5, rank) and torch.allclose(a @ b, both.pointwise)
    left = t - v[:, :, 4] @ both.pointwise.T
    for ghost in range(5):
        x = torch.cat([v[:, ghost % 3], torch.ones(len(v), 1)], 1)
        solved = torch.linalg.lstsq(x, left[:, ghost : ghost + 1], driver="gelsd").solution
        assert torch.allclose(both.taps[ghost], solved[:-1, 0], atol=1e-6)
        assert both.bias[ghost] == pytest.approx(float(solved[-1, 0]), abs=1e-6)
    full = Both(blocks, 1e-12, torch.ones(5, dtype=torch.float64), rank=0)
    assert full.error(blocks) <= both.error(blocks) and torch.linalg.matrix_rank(both.pointwise) == rank


# -- targets ---------------------------------------------------------------------------------------------------


def targets_behind(ceiling: float | None, added: bool, norm: nn.Module | None) -> tuple[Targets, Tensor, Tensor]:
    """Targets of a layer of four maps at all positions of two batches; the sums wanted, and what is added."""
    wanted, other = torch.randn(2, 2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 4
    there, here = "their sum", "our addition"
    first, second = ([{there: x} for x in wanted], [{here: x} for x in other])
    walks = {"original": SimpleNamespace(values=first), "converted": SimpleNamespace(values=second)}
    networks: Any = SimpleNamespace(**walks, batches=2)
    side: Any = SimpleNamespace(sum=there, ceiling=ceiling)
    aim = Aim(side, side, None, here if added else None, None)  # type: ignore[arg-type]
    samples = Samples([Positions((3, 4, 5, 5), 10**6, 2, 0, 1)])
    return Targets(networks, [aim], samples, [norm], True), wanted, other


FIRST = Block(0)


def line_of(norm: nn.Module | None, y: Tensor) -> Tensor:
    return y if norm is None else norm(y)


each_ceiling = pytest.mark.parametrize("ceiling", [None, INF, 6.0])
each_norm = pytest.mark.parametrize("norm", [None, scrambled(nn.BatchNorm2d(4)).eval()], ids=["bare", "norm"])


@each_ceiling
@each_norm
@pytest.mark.parametrize("added", [True, False])
def test_a_layer_that_gives_its_targets_makes_the_sums_right(ceiling: float | None, norm: Any, added: bool) -> None:
    targets, wanted, other = targets_behind(ceiling, added, norm)
    for batch in range(2):
        y = targets.outputs(Block(batch)).float()
        maps = y.reshape(3, 25, 4).transpose(1, 2).unflatten(2, (5, 5))
        order = targets.samples.calls[0].chosen[batch].argsort()
        maps = maps.flatten(2)[:, :, order].unflatten(2, (5, 5))
        assert torch.allclose(line_of(norm, maps) + (other[batch] if added else 0), wanted[batch], atol=1e-4)
        assert targets.error(Block(batch), y.double()) < 1e-10 < targets.variance


@each_ceiling
@each_norm
def test_behind_a_rectifier_what_it_hides_is_free(ceiling: float | None, norm: Any) -> None:
    """Targets come to where the layer is now, as far as the rectifier does not see it."""
    targets, _, _ = targets_behind(ceiling, True, norm)
    generator = torch.Generator().manual_seed(1)
    y = targets.outputs(FIRST) + 3 * torch.randn(75, 4, generator=generator).double()
    now, wanted = targets._sum(FIRST, y), targets.sums[FIRST].double()
    plain = targets.outputs(FIRST)
    targets.bend(FIRST, y)
    bent = targets._sum(FIRST, targets.outputs(FIRST))
    if ceiling is None:
        assert torch.equal(targets.outputs(FIRST), plain)
        return
    seen = (wanted > 0) & (wanted < ceiling)
    assert torch.allclose(bent[seen], wanted[seen], atol=1e-4)
    hidden = ((wanted <= 0) & (now <= 0)) | ((wanted >= ceiling) & (now >= ceiling))
    assert hidden.any() and torch.allclose(bent[hidden], now[hidden], atol=1e-4)
    assert torch.allclose(bent.clamp(0, ceiling), wanted.clamp(0, ceiling), atol=1e-4)
    assert ((bent - now).abs() <= (wanted - now).abs() + 1e-4).all()


def test_renewing_targets_never_makes_the_fit_worse_behind_the_rectifier() -> None:
    """Least squares and renewed targets in turns: the bound on the error that a rectifier sees falls with each."""
    targets, _, _ = targets_behind(INF, False, None)
    x = torch.randn(75, 6, generator=torch.Generator().manual_seed(2)).double()
    x = torch.cat([x, torch.ones(75, 1)], 1)
    errors = []
    for _ in range(8):
        y = x @ torch.linalg.lstsq(x, targets.outputs(FIRST)).solution
        missed = torch.where(targets.sums[FIRST] > 0, y - targets.sums[FIRST], y.clamp_min(0))
        errors.append(float(missed.square().sum()))
        targets.bend(FIRST, y)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def test_what_a_norm_silences_asks_for_nothing() -> None:
    norm = scrambled(nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        norm.weight[1] = 0
    targets, _, _ = targets_behind(None, False, norm)
    assert targets.alive.tolist() == [True, False, True, True]
    assert targets.weights[1] == 0 and (targets.outputs(FIRST)[:, 1] == 0).all()
    assert torch.allclose(targets.weights, line(norm, 4, torch.zeros(1))[0].square() * targets.alive)


# -- layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_an_intercept_goes_to_the_bias_or_to_the_mean_of_the_norm(bias: bool) -> None:
    """Either way it is added to what the norm is given in eval mode."""
    conv, norm = nn.Conv2d(4, 6, 3, groups=2, bias=bias), scrambled(nn.BatchNorm2d(6)).eval()
    wanted_weight, shift = torch.randn(2, 3, 18), torch.arange(6.0)
    x = torch.randn(2, 4, 5, 5)
    sums = F.conv2d(x, wanted_weight.reshape(6, 2, 3, 3), shift, groups=2)
    wanted = norm(sums)
    put(conv, wanted_weight.double())
    Intercepts([conv], [norm]).put([shift])
    assert torch.allclose(norm(conv(x)), wanted, atol=1e-5)
    assert torch.equal(weight_of(conv), wanted_weight.double())
