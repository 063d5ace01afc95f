"""Running nodes of a recorded graph: what they are, what they overwrite, and whether two runs agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from zoo import Residual, basic, conv_bn

from ghostify import convert, scan
from ghostify.channels import follow, silenced
from ghostify.fitting.interpreter import Interpreter
from ghostify.running import (
    REORDERED,
    REPEATED,
    THINNED,
    Tolerance,
    agree,
    coarsest,
    evaluating,
    groups_of,
    op_name,
    overwritten,
    quiet,
    run_node,
    weight_shape,
)
from ghostify.scanning import network_nodes
from ghostify.tracing import Traced, trace

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Code(nn.Module):
    """A convolution, some code on its maps, and a convolution: (N, 3, 8, 8) → (N, 4, 8, 8)."""

    def __init__(self, code: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.code = code
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self.first(x)))


def recorded(code: Callable[[Tensor], Tensor]) -> Traced:
    return trace(Code(code), X)


def named(traced: Traced, name: str) -> fx.Node:
    return next(node for node in traced.graph.nodes if node.op.startswith("call") and op_name(traced, node) == name)


# -- what an operation is --------------------------------------------------------------------------------------

WRITING: dict[str, Callable[[Tensor], Any]] = {
    "a method": lambda y: y.mul_(2),
    "an augmented assignment": lambda y: y.__iadd__(1),
    "an item": lambda y: y.__setitem__((slice(None), 0), 1.0),
    "a function": lambda y: torch.relu_(y),
    "a keyword": lambda y: F.relu(y, inplace=True),
    "a keyword alone": lambda y: F.relu(input=y, inplace=True),
    "a place": lambda y: F.relu(y, True),
    "an overload of ATen": lambda y: torch.ops.aten.mul_.Tensor(y, y),
    "an operator of ATen": lambda y: torch.ops.aten.relu_(y),
    "a keyword out": lambda y: torch.mul(y.detach(), 2, out=y),
    "a layer": nn.ReLU(inplace=True),
    "a layer given its input by name": lambda y: nn.functional.hardtanh(y, inplace=True),
}
READING: dict[str, Callable[[Tensor], Any]] = {
    "inversion": lambda y: ~(y > 0),
    "a negation": lambda y: -y,
    "a layer": nn.ReLU(),
    "a keyword that is off": lambda y: F.relu(y, inplace=False),
    "an addition": lambda y: y + 1,
    "an overload of ATen": lambda y: torch.ops.aten.mul.Tensor(y, 2),
}


def writers(traced: Traced) -> list[tuple[str, list[str]]]:
    """Of each node that overwrites anything, its operation and the operations that gave what it overwrites."""
    found = [(node, overwritten(traced, node)) for node in traced.graph.nodes if node.op.startswith("call")]
    return [(op_name(traced, node), [op_name(traced, one) for one in targets]) for node, targets in found if targets]


@pytest.mark.parametrize("how", WRITING)
def test_what_writes_in_place_says_into_what(how: str) -> None:
    def code(y: Tensor) -> Tensor:
        WRITING[how](y)
        return y

    ((_, targets),) = writers(recorded(code))
    assert targets == ["conv2d"]


@pytest.mark.parametrize("how", READING)
def test_what_reads_overwrites_nothing(how: str) -> None:
    assert writers(recorded(lambda y: y + READING[how](y))) == []


def test_several_outputs_are_overwritten_at_once() -> None:
    def code(y: Tensor) -> Tensor:
        values, places = y.clone(), torch.zeros_like(y[:, 0], dtype=torch.long)
        torch.max(y, 1, out=(values[:, 0], places))
        return values

    (_, targets), *others = writers(recorded(code))
    assert len(targets) == 2 and not others


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("how", ["module", "function", "function by name", "torch.convolution", "aten"])
def test_a_convolution_has_its_groups_and_the_shape_of_its_weight(how: str, transposed: bool, groups: int) -> None:
    weight = torch.randn(8, 8 // groups, 3, 3)
    layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 8, 3, groups=groups)
    function: Any = F.conv_transpose2d if transposed else F.conv2d
    aten: Any = torch.ops.aten.conv_transpose2d.input if transposed else torch.ops.aten.conv2d.default
    at = [1, 1], [0, 0]
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "function": lambda y: function(y, weight, None, 1, 0, *((0, groups) if transposed else (1, groups))),
        "function by name": lambda y: function(input=y, weight=weight, groups=groups),
        "torch.convolution": lambda y: torch.convolution(y, weight, None, *at, [1, 1], transposed, [0, 0], groups),
        "aten": lambda y: aten(y, weight, None, *at, *(([0, 0], groups) if transposed else ([1, 1], groups))),
    }

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.weight = layer, nn.Parameter(weight)

        def forward(self, y: Tensor) -> Tensor:
            result: Tensor = self.layer(y) if how == "module" else calls[how](y)
            return result

    traced = trace(nn.Sequential(nn.Conv2d(3, 8, 1), Between()), X)
    node = next(node for node in reversed(traced.graph.nodes) if "conv" in str(node.target) or node.target == "1.layer")
    assert groups_of(traced, node) == groups and weight_shape(traced, node) == tuple(weight.shape)
    assert op_name(traced, node) == ("conv_transpose2d" if transposed else "conv2d")


# -- running a node --------------------------------------------------------------------------------------------


def test_a_node_runs_within_its_regions() -> None:
    def code(y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return (y.flatten(1) @ y.flatten(1).T).float().mean() + y

    traced = recorded(code)
    node = named(traced, "matmul")
    given = run_node(traced, node, (torch.ones(2, 2), torch.ones(2, 2)), {})
    assert given.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu")


class Cast(nn.Module):
    """A module that runs under autocast, as code for a GPU is written."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = self.body(x)
        return y.float()


class HalfCast(nn.Module):
    """A module that casts by itself."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x.bfloat16())
        return y.float()


class Stages(nn.Module):
    """A stem, four residual blocks of one width, and a head: (N, 3, 8, 8) → (N, 5)."""

    def __init__(self, wrapped: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.stage = nn.Sequential(*(wrapped(basic(16, 16)) for _ in range(4)))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)))


@pytest.mark.parametrize(
    ("method", "wrapped"),
    [("width", Cast), ("thin", Cast), ("g-ghost", Cast), ("width", HalfCast), ("thin", HalfCast)],
)
def test_blocks_under_autocast_are_thinned(method: str, wrapped: Callable[[nn.Module], nn.Module]) -> None:
    changes = {"min_saving": 0} if method == "g-ghost" else {}
    ghosted = convert(Stages(wrapped), X, method=method, round_to=2, **changes)
    assert ghosted.after.cost.macs < ghosted.before.cost.macs


def test_silencing_gives_a_network_back_as_it_was() -> None:
    """Eval mode may do more than set flags: fuse weights, which only train mode splits again."""

    class Fusing(nn.Sequential):
        fused = False

        def train(self, mode: bool = True) -> nn.Module:
            self.fused = not mode
            return super().train(mode)

    traced = trace(Fusing(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).train(), X)
    channels = follow(traced, *network_nodes(traced))
    kept = channels.kept([segment.size for segment in channels.coupling.segments])
    assert not traced.module.fused
    silenced(channels, kept, X)
    assert traced.module.training and not traced.module.fused


def test_scales_kept_in_a_list_keep_their_channels() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3)
            self.scales = [torch.rand(16, 1, 1) + 0.5]

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.second(torch.relu(self.first(x) * self.scales[0]))))

    narrow = convert(Scales(), X, method="width", width=0.5).module
    assert narrow.first.out_channels == 16 and narrow.second.out_channels == 8
    assert narrow(X).shape == (2, 4, 2, 2)


@pytest.mark.parametrize(
    "how", sorted(WRITING.keys() - {"an item"})
)  # whose value is read again, and later than it was kept
def test_a_walk_keeps_what_a_node_overwrites(how: str) -> None:
    """However a network writes: what was kept of a value is what it was, and the outputs are what they are."""

    def code(y: Tensor) -> Tensor:
        WRITING[how](y)
        return y

    model = Code(code).eval()
    traced = trace(model, X)
    walk = Interpreter(traced, model, [X])
    first = named(traced, "conv2d")
    walk.keep(first)
    for node in walk.outputs:
        walk.keep(node)
    with torch.no_grad():
        walk.advance(len(walk.nodes))
        assert torch.equal(walk.values[0][first], model.first(X))
        assert torch.equal(walk.values[0][walk.outputs[0]], model(X))


def test_a_walks_watcher_computes_outside_of_the_networks_autocast() -> None:
    """Statistics are taken in full precision, whatever the network computes in."""
    model = Stages(Cast).eval()
    traced = trace(model, X)
    walk = Interpreter(traced, model, [X])
    seen: list[bool] = []
    for node in walk.nodes:
        if node.op == "call_module":
            walk.watched[node] = lambda value: seen.append(torch.is_autocast_enabled("cpu"))
    with torch.no_grad():
        walk.advance(len(walk.nodes))
    assert seen and not any(seen)


def test_a_line_that_only_inverts_hides_no_stage() -> None:
    """``~mask`` is no assignment, though Python's name for it begins as theirs do."""

    class Watching(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            self.seen = ~(y > 0)
            return y

    class Net(Stages):
        def __init__(self) -> None:
            super().__init__(lambda block: block)
            for block in self.stage:
                block.__class__ = Watching

    assert [stage.n for stage in scan(Net(), X).stages] == [stage.n for stage in scan(Stages(lambda b: b), X).stages]


# -- agreement -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [REPEATED, REORDERED, THINNED])
def test_what_is_as_near_as_asked_agrees_and_what_is_not_does_not(tolerance: Tolerance) -> None:
    wanted = torch.tensor([4.0, -100.0, 0.0])
    assert agree(wanted, wanted + 99 * tolerance.fine, tolerance)
    assert not agree(wanted, wanted + torch.tensor([0.0, 0.0, 101 * tolerance.fine]), tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_types_agree_more_coarsely(dtype: torch.dtype) -> None:
    wanted, found = torch.tensor([10.0]), torch.tensor([10.5])
    assert agree(wanted.to(dtype), found.to(dtype), THINNED) and agree(wanted, found, THINNED, dtype)
    assert not agree(wanted, found, THINNED) and not agree(wanted.double(), found.double(), THINNED)
    assert coarsest([wanted, [1], wanted.to(dtype), torch.tensor([1])], torch.float32) == dtype


def test_what_is_not_finite_agrees_with_itself_alone() -> None:
    inf, nan = float("inf"), float("nan")
    wanted = torch.tensor([1.0, inf, -inf, nan])
    assert agree(wanted, wanted.clone())
    for place in range(4):
        other = wanted.clone()
        other[place] = 7.0
        assert not agree(wanted, other) and not agree(other, wanted)


def test_shapes_alone_agree_on_meta() -> None:
    here = torch.ones(2, 3)
    assert agree(here.to("meta"), here) and not agree(here.to("meta"), torch.ones(3, 2))
    assert agree(torch.ones(0), torch.ones(0)) and agree(here * 1j, here * 1j) and not agree(here * 1j, here * 2j)


@pytest.mark.parametrize("method", ["width", "thin"])
def test_outputs_that_are_masked_with_infinity_are_checked_where_they_are_finite(method: str) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
            self.register_buffer("floor", torch.tensor([[[float("-inf")]], *[[[0.0]]] * 3]))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.floor

    ghosted = convert(Masked(), X, method=method, width=0.5)
    given = ghosted.module(X)
    assert given[:, 0].isinf().all() and given[:, 1:].isfinite().all()


# -- modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("borrowed", [evaluating, quiet])
def test_modes_are_given_back_after_an_error_too(borrowed: Callable[..., Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    before = [module.training for module in model.modules()]

    def fail() -> None:
        with borrowed(model, copy.deepcopy(model)):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [module.training for module in model.modules()] == before
