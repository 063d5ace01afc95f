"""Recording one run: the graph replays it, the model given never notices, and what cannot be held is refused."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.detection import retinanet_resnet50_fpn
from zoo import ZOO, Net, conv_bn, head, run

from ghostify import convert, trace
from ghostify.errors import TraceError
from ghostify.ghosts import CGhost
from ghostify.running import within_regions
from ghostify.tracing import Traced, call_arguments, is_leaf, qualified_names, recordable

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Within(nn.Module):
    """A convolution followed by a ``step`` in a module named ``inner``."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 4, 3), step

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.conv(x))


class Step(nn.Module):
    """A module whose forward is a plain function of its input (and itself)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4))
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def within(function: Callable[..., Any]) -> Within:
    torch.manual_seed(0)
    return Within(Step(function))


def replayed(traced: Traced, *inputs: Tensor) -> list[Tensor]:
    """The graph run by torch.fx itself, in eval mode."""
    for name, constant in traced.constants.items():
        traced.module.register_buffer(name, constant, persistent=False)
    module = fx.GraphModule(traced.module, traced.graph).eval()
    with torch.no_grad():
        return module(*[leaf.clone() for leaf in inputs])


def expected(model: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        return run(model.eval(), example)


def refusal(model: nn.Module, example: Any) -> str:
    with pytest.raises(TraceError) as caught:
        trace(model, example)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- the graph is the run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [net for net in ZOO if torch.is_tensor(net.example())], ids=lambda net: net.name)
def test_the_graph_reproduces_the_model_on_another_input(net: Net) -> None:
    """Not only on the input that was recorded: no value of it is baked in."""
    model, example = net.build(), net.example()
    other = torch.randn(example.shape, generator=torch.Generator().manual_seed(7)).to(example.dtype)
    output = replayed(trace(model, example), other)
    wanted = expected(model, other.clone())
    wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    for found, value in zip(output, wanted, strict=True):
        assert torch.allclose(found, value, rtol=1e-4, atol=1e-5)


def through_views(step: Step, x: Tensor) -> Tensor:
    x = x.clone()
    rows = x.view(2, -1)[:, 4:20]
    rows.mul_(2.0)
    x[..., 0] = 5.0
    x.select(1, 0).add_(1.0)
    torch.neg(x[:, 3], out=x[:, 3])
    F.relu(x, inplace=True)
    x += rows.sum()
    return x


def test_writes_through_views_are_replayed_in_their_order() -> None:
    model = within(through_views)
    other = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(replayed(trace(model, X), other)[0], expected(model, other))


def test_an_input_written_to_stays_as_it_was() -> None:
    example = X.clone()
    trace(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)), example)
    assert torch.equal(example, X)


def test_nodes_know_the_module_they_ran_in_and_their_shapes() -> None:
    traced = trace(within(lambda step, x: F.relu(x).mean((2, 3))), X)
    seen = [(node.op, node.meta["module"], node.meta["shapes"]) for node in traced.graph.nodes if node.op != "output"]
    assert seen == [
        ("placeholder", "", [(2, 3, 6, 6)]),
        ("call_module", "conv", [(2, 4, 4, 4)]),
        ("call_function", "inner", [(2, 4, 4, 4)]),
        ("call_method", "inner", [(2, 4)]),
    ]


def test_a_node_knows_the_leaf_it_calls_and_a_weight_its_name() -> None:
    traced = trace(within(lambda step, x: x * step.weight.sum()), X)
    (conv,) = (node for node in traced.graph.nodes if node.op == "call_module")
    assert traced.leaf(conv) is traced.module.conv
    (weight,) = (node for node in traced.graph.nodes if node.op == "get_attr")
    assert weight.meta["parameter"] == weight.target == "inner.weight"


def test_dropout_is_off_and_random_numbers_are_the_same_in_the_replay() -> None:
    traced = trace(within(lambda step, x: F.dropout(x, 0.5, step.training) + torch.rand(x.shape[-1])), X)
    assert traced.output_shapes == [(2, 4, 4, 4)]


def test_torch_layers_are_leaves_and_own_ones_are_entered() -> None:
    assert is_leaf(nn.Conv2d(3, 4, 3)) and is_leaf(nn.ReLU())
    assert not is_leaf(nn.Sequential(nn.ReLU())) and not is_leaf(within(lambda step, x: x))


def test_a_layer_with_a_forward_put_on_it_is_entered() -> None:
    conv = nn.Conv2d(3, 4, 3)
    conv.forward = types.MethodType(lambda self, x: F.conv2d(x, self.weight) * 2, conv)
    assert not is_leaf(conv)
    traced = trace(nn.Sequential(conv), X)
    ran = [(node.op, node.meta["module"]) for node in traced.graph.nodes if node.op.startswith("call")]
    assert ran == [("call_function", "0"), ("call_method", "0")]


def test_a_layer_with_other_weights_for_a_call_is_entered() -> None:
    model = within(lambda step, x: torch.func.functional_call(step.layer, {"weight": step.weight * 3}, (x,)))
    model.inner.layer = nn.PReLU(4)
    traced = trace(model, X)
    assert torch.equal(replayed(traced, X)[0], expected(model, X))
    assert "prelu" in [getattr(node.target, "__name__", "") for node in traced.graph.nodes]


def in_regions(step: Step, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = x.flatten(1) @ x.flatten(1).T
    with torch.enable_grad():
        z = x.sum()
    return x + y.float().mean() + z


def test_a_node_knows_the_regions_the_network_ran_it_in() -> None:
    traced = trace(within(in_regions), X)
    states = {}
    for node in traced.graph.nodes:
        with torch.no_grad(), within_regions(node):
            states[node.name] = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
    assert states["matmul"] == (True, False) and states["sum_1"] == (False, True)
    assert states["conv"] == states["mean"] == (False, False)
    assert "regions" not in next(node for node in traced.graph.nodes if node.name == "conv").meta


def test_every_name_of_a_shared_module_is_known() -> None:
    conv = nn.Conv2d(4, 4, 3)
    model = nn.Sequential(conv, nn.Sequential(conv))
    assert qualified_names(model)[conv] == ["0", "1.0"]
    assert trace(model, torch.randn(1, 4, 8, 8)).names.keys() != {conv}


# -- how inputs are given --------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, a: Any, b: Any = None, *, flip: bool = False) -> Any:
        left = a["left"] if isinstance(a, Mapping) else a.left if isinstance(a, Pair) else a
        y = self.conv(-left if flip else left)
        return {"y": (y, [y + 1]), "n": 3} if b is None else y + b.mean()


@pytest.mark.parametrize(
    ("example", "shapes"),
    [
        (X, [(2, 3, 6, 6)]),
        ((X,), [(2, 3, 6, 6)]),
        ((X, torch.ones(5)), [(2, 3, 6, 6), (5,)]),
        (Pair(X, torch.ones(5)), [(2, 3, 6, 6), (5,)]),
        ((Pair(X, torch.ones(5)),), [(2, 3, 6, 6), (5,)]),
        (({"left": X},), [(2, 3, 6, 6)]),
        ({"a": X, "flip": True}, [(2, 3, 6, 6)]),
        ({"b": torch.ones(5), "a": X}, [(5,), (2, 3, 6, 6)]),
    ],
    ids=["tensor", "tuple", "two", "unpacked-named-tuple", "named-tuple", "dict-in-tuple", "keywords", "out-of-order"],
)
def test_inputs_may_be_nested_positional_or_by_name(example: Any, shapes: list[tuple[int, ...]]) -> None:
    traced = trace(Structured(), example)
    assert sorted(traced.input_shapes) == sorted(shapes)
    assert traced.output_shapes[0] == (2, 4, 4, 4)


def test_a_dict_is_keywords_and_a_tuple_is_positional() -> None:
    assert call_arguments({"a": 1}) == ((), {"a": 1})
    assert call_arguments((1, 2)) == ((1, 2), {})
    assert call_arguments([1, 2]) == (([1, 2],), {})
    assert call_arguments({1: 2}) == (({1: 2},), {})


# -- the model given never notices -----------------------------------------------------------------------------


def cached(step: Step, x: Tensor) -> Tensor:
    step.calls += 1
    step.seen = x
    step.count += 1
    return x * 2


def test_caches_counters_and_buffers_stay_with_the_copy() -> None:
    model = within(cached)
    trace(model, X)
    assert (model.inner.calls, model.inner.count.item()) == (0, 0)
    assert not hasattr(model.inner, "seen")


def test_hooks_of_the_user_run_on_the_copy_and_stay_registered() -> None:
    calls: list[str] = []
    model = within(lambda step, x: x * 2)
    model.conv.register_forward_pre_hook(lambda module, args: calls.append("conv"))
    traced = trace(model, X)
    assert len(calls) >= 1
    assert len(model.conv._forward_pre_hooks) == 1
    assert traced.module.conv is not model.conv


def by_mul(step: Step, x: Tensor) -> Tensor:
    with torch.no_grad():
        step.weight.mul_(0.5)
    return x * step.weight.sum()


def by_data(step: Step, x: Tensor) -> Tensor:
    step.weight.data *= 0.5
    return x * step.weight.sum()


def by_setitem(step: Step, x: Tensor) -> Tensor:
    step.weight.data[1:3] = 7.0
    return x * step.weight.sum()


def by_out(step: Step, x: Tensor) -> Tensor:
    with torch.no_grad():
        torch.clamp(step.weight, -0.5, 0.5, out=step.weight)
    return x * step.weight.sum()


def by_view(step: Step, x: Tensor) -> Tensor:
    step.weight.detach().view(2, 2)[0].zero_()
    return x * step.weight.sum()


def by_init(step: Step, x: Tensor) -> Tensor:
    nn.init.constant_(step.weight, 0.25)
    return x * step.weight.sum()


def by_inplace_flag(step: Step, x: Tensor) -> Tensor:
    F.relu(step.weight.detach(), inplace=True)
    return x * step.weight.sum()


def by_inplace_module(step: Step, x: Tensor) -> Tensor:
    nn.ReLU(inplace=True)(step.weight.detach())
    return x * step.weight.sum()


def by_foreach(step: Step, x: Tensor) -> Tensor:
    torch._foreach_mul_([step.weight.detach()], 0.5)
    return x * step.weight.sum()


WRITERS = [by_mul, by_data, by_setitem, by_out, by_view, by_init, by_inplace_flag, by_inplace_module, by_foreach]


@pytest.mark.parametrize("write", WRITERS, ids=lambda function: function.__name__)
def test_a_module_that_writes_to_its_weight_leaves_the_users_weight_alone(write: Callable[..., Any]) -> None:
    """Whether the recording is then accepted (a write that ends where it began) or refused for what it changed."""
    model = within(write)
    before, version = model.inner.weight.detach().clone(), model.inner.weight._version
    with suppress(TraceError):
        trace(model, X)
    assert torch.equal(model.inner.weight, before)
    assert model.inner.weight._version == version


def fails(step: Step, x: Tensor) -> Tensor:
    raise RuntimeError("no\nluck")


@pytest.mark.parametrize(
    "function", [lambda step, x: x, fails, lambda step, x: 3], ids=["success", "error", "no-tensor"]
)
def test_modes_and_nn_module_are_restored_whatever_happens(function: Callable[..., Any]) -> None:
    model = within(function).train()
    model.conv.eval()
    original, random, gradients = nn.Module.__call__, torch.get_rng_state(), torch.is_grad_enabled()
    with suppress(TraceError):
        traced = trace(model, X)
        assert [part.training for part in traced.module.modules()] == [part.training for part in model.modules()]
    assert (model.training, model.conv.training, model.inner.training) == (True, False, True)
    assert nn.Module.__call__ is original
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled() is gradients
    assert torch.overrides._get_current_function_mode_stack() == []


def test_parameters_are_shared_and_buffers_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    traced = trace(model, X)
    assert traced.module[0].weight is model[0].weight
    assert traced.module[1].running_mean is not model[1].running_mean


def written_by_aten(step: Step, x: Tensor) -> Tensor:
    torch.ops.aten.add_.Tensor(step.weight, 1.0)
    return x + step.weight


def test_a_parameter_that_is_written_to_by_an_overload_is_not_shared() -> None:
    model = within(written_by_aten)
    before = model.inner.weight.detach().clone()
    trace(model, X)
    assert torch.equal(model.inner.weight, before)


def test_a_cached_tensor_with_a_history_does_not_stand_in_the_way() -> None:
    """deepcopy refuses tensors in the middle of an autograd graph; a model that has trained may hold some."""
    model = within(lambda step, x: x + 1)
    model.inner.last = model(X)
    trace(model, X)
    assert model.inner.last.grad_fn is not None


# -- what is refused, and how ----------------------------------------------------------------------------------


def test_a_module_that_raises_is_named_in_one_line() -> None:
    message = refusal(within(fails), X)
    assert "inner" in message and "no luck" in message and "(2, 3, 6, 6)" in message


def test_an_example_of_the_wrong_shape_is_refused_with_its_shape_and_the_module() -> None:
    message = refusal(within(lambda step, x: x), torch.randn(2, 5, 6, 6))
    assert "(2, 5, 6, 6)" in message and "conv" in message and "channels" in message


def test_an_example_with_the_wrong_names_is_refused() -> None:
    assert "unexpected keyword argument 'image'" in refusal(within(lambda step, x: x), {"image": X})


def test_an_error_after_a_layer_has_returned_is_not_blamed_on_the_layer() -> None:
    class Careless(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(99)

    message = refusal(nn.Sequential(Careless(nn.Conv2d(3, 4, 3))), X)
    assert "'0'" in message and "'0.0'" not in message


class Linked:
    """An object that refers to itself."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.others = tensor, [self, {"same": self}]


def test_an_output_that_refers_to_itself_is_looked_into_once() -> None:
    assert trace(within(lambda step, x: Linked(x + 1)), X).output_shapes == [(2, 4, 4, 4)]


def test_objects_with_tensors_may_be_inputs_and_are_not_written_to() -> None:
    class Reader(nn.Sequential):
        def forward(self, given: Linked) -> Tensor:
            return super().forward(given.tensor.mul_(2))

    given = Linked(X.clone())
    assert trace(Reader(nn.Conv2d(3, 4, 3)), (given,)).input_shapes == [(2, 3, 6, 6)]
    assert torch.equal(given.tensor, X)


@pytest.mark.parametrize("nothing", [3, None, {"a": "b"}, []], ids=str)
def test_a_module_without_a_tensor_to_show_is_refused(nothing: Any) -> None:
    assert "returned no tensor" in refusal(within(lambda step, x: nothing), X)


def buffer_counter(step: Step, x: Tensor) -> Tensor:
    step.count += 1
    return x * step.count


def numpy_random(step: Step, x: Tensor) -> Tensor:
    return x * torch.from_numpy(np.random.default_rng().random(1))


def growing_weight(step: Step, x: Tensor) -> Tensor:
    step.weight.data *= 2
    return x + step.weight.sum().abs() + step.weight.max()


def numpy_write(step: Step, x: Tensor) -> Tensor:
    x = x.clone()
    x.numpy()[:] *= 2
    return x


def buffer_exchange(step: Step, x: Tensor) -> Tensor:
    step.count = step.count + 1
    return x * step.count


class Widening(nn.Module):
    """Changes a number in a layer of torch's own after it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Hardtanh(0.0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        self.act.max_val *= 2
        return x


@pytest.mark.parametrize("function", [buffer_counter, buffer_exchange, growing_weight], ids=lambda f: f.__name__)
def test_a_replay_begins_with_the_state_the_run_began_with(function: Callable[..., Any]) -> None:
    model = within(function)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert trace(model, X).output_shapes == [(2, 4, 4, 4)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_run_that_differs_from_its_replay_is_refused_naming_the_module() -> None:
    message = refusal(Within(Widening()), X)
    assert "does not reproduce" in message
    assert "'inner.act'" in message


GENERATOR = torch.Generator().manual_seed(5)


@pytest.mark.parametrize("verify", [True, False])
def test_a_generator_gives_the_replay_the_same_and_stays_where_it_was(verify: bool) -> None:
    state = GENERATOR.get_state()
    trace(within(lambda step, x: x + torch.rand(4, generator=GENERATOR)), X, verify=verify)
    assert torch.equal(GENERATOR.get_state(), state)


def test_a_write_that_torch_cannot_see_is_refused() -> None:
    assert "does not reproduce" in refusal(within(numpy_write), X)


def test_without_verification_nothing_is_replayed() -> None:
    assert trace(Within(Widening()), X, verify=False).output_shapes == [(2, 4, 4, 4)]


def test_a_script_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(nn.Conv2d(3, 4, 3), X)
    assert "ScriptModule" in refusal(script, X)


def test_a_script_inside_is_held_as_one_piece() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(nn.Conv2d(4, 4, 3), torch.randn(2, 4, 4, 4))
    traced = trace(Within(script), X)
    assert [node.meta["module"] for node in traced.graph.nodes if node.op == "call_module"] == ["conv", "inner"]


def test_a_lazy_layer_without_a_shape_is_refused_and_stays_lazy() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3))
    refusal(model, X)
    assert isinstance(model[0].weight, nn.UninitializedParameter)


class Uncopyable(nn.Conv2d):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        raise TypeError("there can be only one")


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), Uncopyable(3, 4, 3)], ids=["torch's", "own"])
def test_a_model_that_is_one_layer_is_refused_with_the_way_out(layer: nn.Module) -> None:
    """It has no name that a plan could call it by."""
    assert "nn.Sequential" in refusal(layer, X)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    message = refusal(nn.Sequential(Uncopyable(3, 4, 3)), X)
    assert "cannot be copied" in message and "only one" in message


# -- doubts ----------------------------------------------------------------------------------------------------


def branch(step: Step, x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x - 1


def item(step: Step, x: Tensor) -> Tensor:
    return x * x.max().item()


def from_numpy(step: Step, x: Tensor) -> Tensor:
    return x + torch.from_numpy(np.tanh(x.numpy()))


def masked(step: Step, x: Tensor) -> Tensor:
    return x[x > 0]


def places(step: Step, x: Tensor) -> Tensor:
    return torch.where(x > 0)[0]


def distinct(step: Step, x: Tensor) -> Tensor:
    return torch.unique(x)


READERS: dict[str, Callable[[Tensor], Any]] = {
    "equal": lambda x: torch.equal(x, x.abs()),
    "allclose": lambda x: torch.allclose(x, x.abs()),
    "in": lambda x: 0.0 in x,
    "is-nonzero": lambda x: torch.is_nonzero(x.sum()),
    "complex": lambda x: complex(x.sum()).real > 0,
    "array": lambda x: np.asarray(x).sum() > 0,
    "overload": lambda x: torch.ops.aten.item.default(x.sum()) > 0,
    "bincount": lambda x: len(torch.bincount(x.abs().long().flatten())) > 2,
}


def reading(how: str, step: Step, x: Tensor) -> Tensor:
    return x + 1 if READERS[how](x) else x - 1


def stranger(step: Step, x: Tensor) -> Tensor:
    return F.relu(nn.Conv2d(4, 4, 1)(x))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (branch, "another path"),
        (item, "another path"),
        (masked, "another path"),
        (places, "another path"),
        (distinct, "another path"),
        (from_numpy, "NumPy"),
        (numpy_random, "NumPy"),
        (stranger, "none of its modules"),
        *((partial(reading, how), "another path") for how in READERS),
    ],
    ids=["branch", "item", "mask", "where", "unique", "numpy", "numpy-random", "stranger", *READERS],
)
def test_what_a_recording_cannot_vouch_for_is_said_once_with_the_module(
    function: Callable[..., Any], words: str
) -> None:
    doubts = trace(within(function), X).doubts
    assert [words in doubt for doubt in doubts].count(True) == 1
    assert all("inner" in doubt and doubt.endswith(".") for doubt in doubts)


def test_a_doubt_is_about_the_module_that_raised_it_not_about_its_last_layer() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    assert trace(nn.Sequential(Branching(nn.Conv2d(3, 4, 3))), X).doubts == [
        "0 reads a value out of a tensor, so another input may take another path."
    ]


def test_a_model_without_secrets_raises_no_doubts() -> None:
    assert trace(within(lambda step, x: x.clamp(0, 1).flatten(1)), X).doubts == []


def test_a_tensor_in_a_plain_list_is_a_constant_and_no_doubt() -> None:
    model = within(lambda step, x: x + step.shifts[0] + step.by_name["scale"][0])
    model.inner.shifts, model.inner.by_name = [torch.ones(4)], {"scale": (torch.full((4,), 2.0),)}
    traced = trace(model, X)
    assert traced.doubts == [] and len(traced.constants) == 2


# -- meta ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [net for net in ZOO if torch.is_tensor(net.example())], ids=lambda net: net.name)
def test_on_the_meta_device_the_same_run_is_recorded(net: Net) -> None:
    real, meta = trace(net.build(), net.example()), trace(net.build().to("meta"), net.example().to("meta"))
    assert meta.output_shapes == real.output_shapes
    assert [node.meta.get("shapes") for node in meta.graph.nodes] == [n.meta.get("shapes") for n in real.graph.nodes]


def test_a_model_and_an_example_on_different_devices_are_refused_in_one_line() -> None:
    assert "meta" in refusal(nn.Sequential(nn.Conv2d(3, 4, 3)).to("meta"), X)


# -- parts of what cannot be recorded as a whole ---------------------------------------------------------------


class Detecting(nn.Module):
    """Goes on with as many rows as it finds; its parts take one tensor, mixed arguments, and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_bn(3, 8)
        self.neck = Neck()
        self.heads = nn.ModuleDict({"maps": Levels(), "rows": nn.Linear(8, 2)})

    def forward(self, images: list[Tensor]) -> Tensor:
        x = self.body(torch.stack(images))
        y = self.neck(x, scale=2.0)
        (maps,) = self.heads["maps"]([y])
        rows = maps.mean((2, 3))
        return self.heads["rows"](rows[rows.amax(1) > 0])


class Neck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return self.conv(x) * scale


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.conv(F.relu_(level)) for level in levels]


def pictures() -> list[Tensor]:
    return [image.clone() for image in X]


def test_the_largest_parts_without_a_doubt_are_found_with_what_they_were_given() -> None:
    model = Detecting()
    parts = recordable(model, pictures())
    assert list(parts) == ["body", "neck", "heads.maps"]  # the linear layer has no convolution in it
    assert torch.equal(parts["body"][0], torch.stack(pictures()))
    assert parts["neck"].keys() == {"x", "scale"} and parts["neck"]["scale"] == 2.0
    with torch.no_grad():
        level = model.eval().neck(model.body(X), 2.0)
    assert torch.equal(parts["heads.maps"][0][0], level)  # as it was before the part wrote to it


def test_parts_are_rewritten_one_by_one_and_put_back() -> None:
    model = Detecting().eval()
    for name, example in recordable(model, pictures()).items():
        ghosted = convert(model.get_submodule(name), example, min_saving=0, also=("stem", "classifier"))
        model.set_submodule(name, ghosted.module)
    assert [name for name, part in model.named_modules() if isinstance(part, CGhost)] == [
        "body.0",
        "neck.conv",
        "heads.maps.conv",
    ]
    assert model(pictures()).shape[1] == 2


def test_looking_for_parts_leaves_the_model_as_it_was() -> None:
    model = Detecting().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recordable(model, pictures())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(part.training and not part._forward_pre_hooks for part in model.modules())


def test_a_model_that_can_be_recorded_is_its_own_largest_part() -> None:
    parts = recordable(nn.Sequential(conv_bn(3, 8), head(8)), X)
    assert list(parts) == [""] and torch.equal(parts[""][0], X)


def test_a_part_under_two_names_is_found_once_and_one_that_never_ran_not_at_all() -> None:
    model = Detecting()
    model.again, model.spare = model.body, conv_bn(3, 8)
    assert list(recordable(model, pictures())) == ["body", "neck", "heads.maps"]


def test_parts_of_a_model_that_does_not_run_are_refused() -> None:
    with pytest.raises(TraceError, match="does not run on the example") as caught:
        recordable(Detecting(), [torch.randn(5, 6, 6)])
    assert "\n" not in str(caught.value)


def test_a_detector_has_a_backbone_and_a_head() -> None:
    detector = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64)
    parts = recordable(detector, [torch.rand(3, 64, 64)])
    assert list(parts) == ["backbone", "head"]
    assert trace(detector.head, parts["head"]).doubts == []
