"""Optimisers: which parameters decay, at which share of the rate each group moves, and what stays frozen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import ghostify
from ghostify.errors import ModelError, RecipeError
from ghostify.finetuning.optimizers import frozen, make_optimizer, parameter_groups, set_rate, swapped_in
from ghostify.networks import resnet8, resnet20
from ghostify.recipe import TrainSettings
from tests.blobs import Blobs, net, train


class Normed(nn.Module):
    """A norm whose weight is no vector, beside layers with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.LayerNorm((4, 8, 8))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.norm(self.conv(x)).mean((2, 3))))


def named(model: nn.Module, groups: list[dict[str, object]]) -> list[set[str]]:
    """The names of the parameters in each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]  # type: ignore[attr-defined]


def test_weight_decay_spares_norms_of_any_shape_and_biases() -> None:
    model = Normed()
    groups = parameter_groups(model, TrainSettings(weight_decay=0.1))
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed, spared = named(model, groups)
    assert decayed == {"conv.weight", "head.weight"}
    assert decayed | spared == {name for name, _ in model.named_parameters()}


def test_layers_swapped_in_move_at_the_rate_and_kept_ones_at_a_share_of_it() -> None:
    model = net()
    optimizer = make_optimizer(model, TrainSettings(kept_lr=0.25), swapped=["conv"])
    set_rate(optimizer, 0.4)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in named(model, [group])[0]}
    assert {name: rate for name, rate in rates.items() if name.startswith("conv")} == {
        "conv.weight": 0.4,
        "conv.bias": 0.4,
    }
    assert all(rates[name] == pytest.approx(0.1) for name in rates if not name.startswith("conv"))


@pytest.mark.parametrize(
    ("method", "new", "kept"),
    [
        ("c-ghost", "layer1.0.conv1.primary", "layer1.0.bn1"),
        ("thin", "layer2.0.conv1", "layer2.0.bn2"),
        ("g-ghost", "layer2.1.thin.0.conv1", "layer2.0.conv1"),
        ("width", "layer2.0.conv1", "conv1"),
    ],
)
def test_what_a_rewrite_put_in_is_told_from_what_it_kept(method: str, new: str, kept: str) -> None:
    ghosted = ghostify.convert(resnet20(), torch.randn(1, 3, 32, 32), method=method)
    found = swapped_in(ghosted)
    assert new in found
    assert kept not in found
    assert all(ghosted.module.get_submodule(name) for name in found)


def test_a_network_without_swaps_has_one_rate() -> None:
    optimizer = make_optimizer(net(), TrainSettings(kept_lr=0.25))
    assert {group["scale"] for group in optimizer.param_groups} == {1.0}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_the_settings_name_the_optimiser(name: str, kind: type) -> None:
    optimizer = make_optimizer(net(), TrainSettings(optimizer=name))
    assert isinstance(optimizer, kind)


def test_a_step_of_each_group_is_torchs() -> None:
    """Against two optimisers of torch's, one for each group."""
    ours, theirs = net(), net()
    optimizer = make_optimizer(ours, TrainSettings(weight_decay=0.1, kept_lr=0.5), swapped=["conv"])
    by_hand = torch.optim.SGD(
        [
            {"params": [theirs.conv.weight], "lr": 0.2, "weight_decay": 0.1},
            {"params": [theirs.conv.bias], "lr": 0.2, "weight_decay": 0.0},
            {"params": [theirs.head.weight], "lr": 0.1, "weight_decay": 0.1},
            {"params": [theirs.norm.weight, theirs.norm.bias, theirs.head.bias], "lr": 0.1, "weight_decay": 0.0},
        ],
        momentum=0.9,
        nesterov=True,
    )
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for model, one in ((ours.eval(), optimizer), (theirs.eval(), by_hand)):
        if one is optimizer:
            set_rate(one, 0.2)
        for _ in range(3):
            one.zero_grad()
            model(x).square().sum().backward()
            one.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_what_is_frozen_by_a_pattern_requires_no_gradient_inside_and_does_afterwards() -> None:
    model = net()
    with frozen(model, ["conv", "head.bi*"]):
        fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert fixed == {"conv.weight", "conv.bias", "head.bias"}
        held = {id(one) for group in parameter_groups(model, TrainSettings()) for one in group["params"]}
        assert not held & {id(model.conv.weight), id(model.head.bias)}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_the_user_froze_stays_frozen_afterwards() -> None:
    model = net()
    model.conv.weight.requires_grad_(False)
    with frozen(model, ["conv"]):
        assert not model.conv.bias.requires_grad
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["conv.weight"]


@pytest.mark.parametrize(
    ("patterns", "says"),
    [
        (["cnv"], "freeze 'cnv' means no parameter of the network. Did you mean 'conv'?"),
        (["drop"], "freeze 'drop' means no parameter"),
        (["*"], "freeze \\* leaves no parameter to train"),
        (["conv", "norm", "head"], "freeze conv, norm, head leaves no parameter to train"),
    ],
)
def test_a_pattern_that_means_nothing_or_everything_is_refused(patterns: list[str], says: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RecipeError, match=says), frozen(model, patterns):
        pass
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_network_with_nothing_to_train_is_refused() -> None:
    model = net().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter to train"):
        make_optimizer(model, TrainSettings())


class Unheld(Blobs):
    """Of which none is held out, so that the last epoch is delivered whatever became of it."""

    def held_loader(self, batch_size: int, workers: int) -> None:
        return None


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_parts_keep_every_bit_through_training_and_learn_again_afterwards(optimizer: str) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    settings = TrainSettings(epochs=2, lr=0.05, optimizer=optimizer, freeze=("conv", "norm"), ema=0.5, weight_decay=0.1)
    train(model, settings, data=Unheld())
    after = model.state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if not name.startswith("head")}, "statistics of the norm, too"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_were_kept_move_less() -> None:
    moved = []
    for kept_lr in (1.0, 0.01):
        ghosted = ghostify.convert(resnet8(3), torch.randn(1, 3, 4, 4), method="thin", min_saving=0)
        before = ghosted.module.get_parameter("conv1.weight").clone()
        train(ghosted, TrainSettings(epochs=1, lr=0.05, kept_lr=kept_lr), data=Unheld())  # type: ignore[arg-type]
        moved.append(float((ghosted.module.get_parameter("conv1.weight") - before).norm().detach()))
    assert moved[1] < 0.1 * moved[0]
