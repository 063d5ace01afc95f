"""Channels change places all over a network: the function stays, and what may not move is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Net, Residual, conv_bn, head, plain, run

from ghostify.channels import Ordering, Unreadable, follow
from ghostify.networks import resnet8, resnet20
from ghostify.scanning import network_nodes
from ghostify.tracing import trace

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vgg11() -> nn.Module:
    """The convolutions of VGG11, pooled to 3x3, flattened and read by small layers."""
    convs = tv.vgg.make_layers(tv.vgg.cfgs["A"])
    linear = nn.Linear(512 * 9, 32), nn.ReLU(), nn.Linear(32, 10)
    return nn.Sequential(convs, nn.AdaptiveAvgPool2d(3), nn.Flatten(), *linear)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": resnet20,
    "resnet18": tv.resnet18,
    "resnet50": tv.resnet50,
    "mobilenet_v2": tv.mobilenet_v2,
    "vgg11": vgg11,
    "densenet121": tv.densenet121,
    "shufflenet_v2_x0_5": tv.shufflenet_v2_x0_5,
    "regnet_x_400mf": tv.regnet_x_400mf,
    "efficientnet_b0": tv.efficientnet_b0,
}
UNREADABLE = ("subclassed", "parametrised", "in-place", "attentive")
READABLE = [net for net in ZOO if net.name not in UNREADABLE]


def scrambled(model: nn.Module) -> nn.Module:
    """Norms and their statistics at random, so that no two channels are alike; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
                tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    return model.eval()


def ordered(model: nn.Module, example: Any = X) -> Ordering:
    traced = trace(model, example)
    return Ordering(follow(traced, *network_nodes(traced)))


@cache
def network(name: str) -> tuple[nn.Module, Ordering, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = scrambled(NETWORKS[name]())
    ordering = ordered(model)
    before = copy.deepcopy(model.state_dict())
    moved = ordering.permuted(shuffled(ordering, model))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    return model, ordering, moved


def members(ordering: Ordering, model: nn.Module) -> dict[int, set[int]]:
    """The roots of each class, as the modules tell them."""
    found: dict[int, set[int]] = {}
    for name, _ in model.named_modules():
        labels, roots = ordering.movable(name), ordering.roots(name)
        assert (labels is None) == (roots is None)
        if labels is not None and roots is not None:
            for label, root in zip(labels.tolist(), roots.tolist(), strict=True):
                found.setdefault(label, set()).add(root)
    found.pop(-1, None)
    return found


def shuffled(ordering: Ordering, model: nn.Module) -> dict[int, int]:
    """Every class in a random order of its own."""
    random = np.random.default_rng(0)
    moves: dict[int, int] = {}
    for roots in members(ordering, model).values():
        moves |= dict(zip(sorted(roots), random.permutation(sorted(roots)).tolist(), strict=True))
    return moves


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        given = run(copy.deepcopy(model), copy.deepcopy(example))
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def assert_same_function(one: nn.Module, other: nn.Module, example: Any, tolerance: float = 1e-4) -> None:
    for a, b in zip(outputs(one, example), outputs(other, example), strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * a.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_the_weights_move(name: str) -> None:
    model, _, moved = network(name)
    assert_same_function(model, moved, torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(2)))
    old, new = model.state_dict(), moved.state_dict()
    assert list(old) == list(new)
    changed = [key for key in old if not torch.equal(old[key], new[key])]
    vectors = [key for key in changed if old[key].dim() == 1]
    assert len(vectors) < len(changed)
    assert all(torch.equal(old[key].sort().values, new[key].sort().values) for key in vectors)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_shared_with_the_original(name: str) -> None:
    model, ordering, moved = network(name)
    held = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *ordering.channels.traced.module.buffers()]}
    assert held.isdisjoint(t.untyped_storage().data_ptr() for t in [*moved.parameters(), *moved.buffers()])


@pytest.mark.parametrize("net", READABLE, ids=lambda net: net.name)
def test_every_net_of_the_zoo_keeps_its_function(net: Net) -> None:
    model = scrambled(net.build())
    ordering = ordered(model, net.example())
    moved = ordering.permuted(shuffled(ordering, model))
    low = next(model.parameters()).dtype == torch.bfloat16
    assert_same_function(model, moved, net.example(), 0.1 if low else 1e-4)
    assert [p.requires_grad for p in moved.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_training_goes_on_as_before(name: str) -> None:
    """In training mode, too, it gives the same; its statistics are those of the original, in the other order."""
    model, _, moved = network(name)
    old, new = copy.deepcopy(model).train(), copy.deepcopy(moved).train()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    a, b = old(x), new(x)
    assert (a - b).abs().max() <= 1e-3 * a.abs().max()
    b.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())
    assert torch.allclose(old.bn1.running_mean.sort().values, new.bn1.running_mean.sort().values, atol=1e-4)
    assert not torch.equal(new.bn1.running_mean, moved.bn1.running_mean)


# -- which may move --------------------------------------------------------------------------------------------


def test_a_residual_stream_is_one_class_and_inner_channels_are_another() -> None:
    _, ordering, _ = network("resnet18")
    stream, again, inner, last = (
        ordering.movable(name) for name in ("layer1.0.conv2", "layer1.1.conv2", "layer1.0.conv1", "fc")
    )
    assert stream is not None and inner is not None and last is not None
    assert np.array_equal(stream, again) and len({*stream.tolist()}) == len({*inner.tolist()}) == 1
    assert stream[0] >= 0 <= inner[0] != stream[0] and (last == -1).all()
    roots, others = ordering.roots("layer1.0.conv2"), ordering.roots("layer1.0.conv1")
    assert np.array_equal(roots, ordering.roots("layer1.1.conv2")) and len(np.unique(roots)) == 64
    assert not np.isin(others, roots).any()


def test_norms_tell_the_classes_of_what_they_normalise() -> None:
    _, ordering, _ = network("resnet18")
    assert np.array_equal(ordering.movable("layer1.0.bn1"), ordering.movable("layer1.0.conv1"))


def test_channels_added_to_padding_are_exchanged_among_themselves() -> None:
    """Option A: of 32 channels the middle 16 are the stream before, the others zeros on either side."""
    ordering = ordered(resnet8())
    before, after = ordering.movable("layer1.0.conv2"), ordering.movable("layer2.0.conv2")
    assert before is not None and after is not None and len({*before.tolist()}) == 1
    low, middle, high = after[:8], after[8:24], after[24:]
    assert np.array_equal(middle, before)
    assert [len({*part.tolist()}) for part in (low, high)] == [1, 1]
    assert len({int(low[0]), int(middle[0]), int(high[0])}) == 3 and (after >= 0).all()


def test_channels_of_groups_stay_and_the_stream_around_them_moves() -> None:
    model, ordering, _ = network("regnet_x_400mf")
    grouped = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and part.groups > 1]
    assert grouped and all((ordering.movable(name) == -1).all() for name in grouped)
    stream = ordering.movable(grouped[0].replace(".b.0", ".c.0"))
    assert stream is not None and (stream >= 0).all()


class Attention(nn.Module):
    """A gate by a filter that slides over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.slide, self.head = conv_bn(3, 8), nn.Conv1d(1, 1, 3, padding=1), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.slide(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return self.head(x * torch.sigmoid(gate))


class Weighted(nn.Module):
    """Channels times numbers that are neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = conv_bn(3, 8), conv_bn(8, 8), head(8)
        self.numbers = torch.linspace(0, 1, 8).view(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stem(x) * self.numbers))


def test_nothing_moves_where_filters_slide_over_the_channels() -> None:
    assert (ordered(Attention()).movable("stem.0") == -1).all()


def test_what_meets_a_tensor_that_is_no_parameter_stays() -> None:
    model = scrambled(Weighted())
    ordering = ordered(model)
    assert (ordering.movable("stem.0") == -1).all() and (ordering.movable("last.0") >= 0).all()
    assert_same_function(model, ordering.permuted(shuffled(ordering, model)), X)


def test_a_module_without_a_weight_that_was_followed_has_no_channels() -> None:
    ordering = ordered(plain())
    assert ordering.movable("3") is None and ordering.roots("1.2") is None
    with pytest.raises(KeyError):
        ordering.movable("nothing")


def test_a_transposed_convolution_tells_its_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    ordering = ordered(model)
    labels = ordering.movable("1")
    assert labels is not None and labels.shape == (6,) and (labels >= 0).all()
    assert_same_function(model, ordering.permuted(shuffled(ordering, model)), X)


# -- how they move ---------------------------------------------------------------------------------------------


def test_two_channels_exchanged_are_rows_columns_and_statistics_exchanged() -> None:
    model = scrambled(plain())
    ordering = ordered(model)
    one, other = (int(root) for root in ordering.roots("1.0")[[2, 5]])
    moved = ordering.permuted({one: other, other: one})
    places = torch.arange(16)
    places[[2, 5]] = torch.tensor([5, 2])
    expected = model.state_dict()
    for key in ("1.0.weight", "1.1.weight", "1.1.bias", "1.1.running_mean", "1.1.running_var"):
        expected[key] = expected[key][places]
    expected["2.0.weight"] = expected["2.0.weight"][:, places]
    assert all(torch.equal(value, expected[key]) for key, value in moved.state_dict().items())


def test_what_moves_is_said_by_where_it_goes() -> None:
    """``moves[r]`` is the channel that now stands at r, in a cycle of three too."""
    model = scrambled(plain())
    ordering = ordered(model)
    a, b, c = ordering.roots("0.0")[:3].tolist()
    new, old = ordering.permuted({a: b, b: c, c: a})[0][0].weight, model[0][0].weight
    assert torch.equal(new[:3], old[[1, 2, 0]]) and torch.equal(new[3:], old[3:])


def test_a_channel_flattened_takes_all_its_places_along() -> None:
    model = scrambled(nn.Sequential(nn.Conv2d(3, 4, 3, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    ordering = ordered(model)
    first, last = ordering.roots("0")[[0, 3]].tolist()
    moved = ordering.permuted({first: last, last: first})
    columns = model[3].weight.view(2, 4, 4)[:, [3, 1, 2, 0]].reshape(2, 16)
    assert torch.equal(moved[3].weight, columns)


def test_no_moves_are_a_copy() -> None:
    model = plain()
    same = ordered(model).permuted({})
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    assert same is not model and same.training


def test_moves_within_no_class_are_refused() -> None:
    model = nn.Sequential(conv_bn(3, 8), Residual(conv_bn(8, 8), 8, 8, 1), conv_bn(8, 8), head(8))
    ordering = ordered(model)
    a, b = ordering.roots("0.0")[:2].tolist()
    other, output = int(ordering.roots("2.0")[0]), int(ordering.roots("3.2")[0])
    roots = ordering.channels.roots[:-1]
    tied = int(np.flatnonzero(roots != np.arange(len(roots)))[0])
    for moves, message in (
        ({a: b}, f"moves bring the channel of {a} nowhere"),
        ({a: b, b: b}, f"moves bring the channel of {a} nowhere"),
        ({a: other, other: a}, f"{other} is not of the class of {a}"),
        ({output: output + 1, output + 1: output}, f"{output} is no channel that may move"),
        ({tied: a, a: tied}, f"{tied} is no channel that may move"),
        ({a: -1}, f"{a} is no channel that may move"),
        ({10**6: a}, "1000000 is no channel that may move"),
    ):
        with pytest.raises(ValueError, match=message):
            ordering.permuted(moves)


def test_a_copy_that_does_something_else_is_refused() -> None:
    """As when a norm's statistics would stay behind."""
    ordering = ordered(scrambled(plain()))
    ordering.channels.uses = [use for use in ordering.channels.uses if not use.name.endswith("running_mean")]
    a, b = ordering.roots("1.0")[:2].tolist()
    with pytest.raises(Unreadable, match=r"^Sequential does something else with its channels in another order$"):
        ordering.permuted({a: b, b: a})


def test_on_the_meta_device_shapes_move() -> None:
    model = plain().to("meta")
    ordering = ordered(model, X.to("meta"))
    a, b = ordering.roots("1.0")[:2].tolist()
    assert all(p.is_meta for p in ordering.permuted({a: b, b: a}).parameters())
