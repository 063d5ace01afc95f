"""What the user froze stays frozen, in every phase."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from blobs import Unheld, net, train
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import ghostify
from ghostify.networks import resnet8, resnet20
from ghostify.running import frozen_parts, training
from ghostify.runtimes import pinned_threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads than on one."""
    with pinned_threads(1):
        yield


class Backboned(nn.Module):
    """A backbone with norms of several kinds, and a head."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6, affine=affine),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=affine)),
            FrozenBatchNorm2d(6),
        )
        self.neck = nn.BatchNorm2d(6, affine=affine)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.drop(self.neck(self.backbone(x)).mean((2, 3)))))


def backboned(affine: bool = True) -> Backboned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backboned(affine)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def test_frozen_parameters_stay() -> None:
    model = net()
    model.conv.requires_grad_(False)
    train(model, data=Unheld())
    assert torch.equal(model.conv.weight, net().conv.weight)
    assert not torch.equal(model.head.weight, net().head.weight)


def freeze_backbone(model: Backboned) -> None:
    model.backbone.requires_grad_(False)


def freeze_backbone_in_eval(model: Backboned) -> None:
    model.train()
    model.backbone.requires_grad_(False).eval()


def freeze_backbone_then_train(model: Backboned) -> None:
    model.backbone.requires_grad_(False).eval()
    model.train()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("root", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("freeze", [freeze_backbone, freeze_backbone_in_eval, freeze_backbone_then_train])
def test_a_frozen_backbone_keeps_its_bits(freeze: Callable[[Backboned], None], root: bool, affine: bool) -> None:
    model = backboned(affine)
    freeze(model)
    if not root:
        model.eval()
    before, modes = state(model), [part.training for part in model.modules()]
    train(model, data=Unheld())
    changed = moved(model, before)
    assert not {name for name in changed if name.startswith("backbone")}
    assert {"neck.running_mean", "head.weight"} <= changed
    assert [part.training for part in model.modules()] == modes


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_in_eval_in_a_network_in_train_mode_keeps_its_statistics(affine: bool) -> None:
    """The user put it there: its slope and offset are trained all the same, where nobody froze them."""
    model = backboned(affine).train()
    model.neck.eval()
    before = state(model)
    train(model, data=Unheld())
    changed = moved(model, before)
    assert not {"neck.running_mean", "neck.running_var", "neck.num_batches_tracked"} & changed
    assert ("neck.weight" in changed) == affine and "backbone.1.running_mean" in changed


@pytest.mark.parametrize("root", [True, False], ids=["train", "eval"])
def test_frozen_norms_keep_their_statistics_and_others_do_not(root: bool) -> None:
    model = backboned().train(root)
    model.backbone[1].requires_grad_(False)
    model.neck.weight.requires_grad_(False)
    before = state(model)
    train(model, data=Unheld())
    changed = moved(model, before)
    assert not {name for name in changed if name.startswith("backbone.1.")}
    assert "neck.running_mean" in changed and "neck.weight" not in changed and "neck.bias" in changed


def test_dropout_left_in_eval_stays_there_while_training() -> None:
    model = backboned().train()
    model.drop.eval()
    with training(model):
        assert not model.drop.training and model.backbone[3].training and model.training
    model.eval()
    with training(model):
        assert model.drop.training and model.backbone[3].training


def test_a_network_loaded_to_be_run_has_nothing_singled_out() -> None:
    model = backboned().requires_grad_(False)
    assert frozen_parts(model) == []
    model.head.requires_grad_(True)
    assert frozen_parts(model) == [model.backbone, model.neck]


def test_a_network_with_a_train_method_of_its_own_is_asked() -> None:
    class Stubborn(Backboned):
        def train(self, mode: bool = True) -> Stubborn:
            super().train(mode)
            self.neck.eval()
            return self

    model = Stubborn().eval()
    before = state(model)
    train(model, data=Unheld())
    assert "neck.running_mean" not in moved(model, before)


# --- through a conversion


METHODS: dict[str, dict[str, Any]] = {
    "c-ghost": {"min_saving": 0},
    "g-ghost": {"method": "g-ghost"},
    "g-ghost-regnet": {"method": "g-ghost", "preset": "regnet"},
    "g-ghost-projection": {"method": "g-ghost", "entry": "projection"},
    "thin": {"method": "thin", "width": 0.5},
    "width": {"method": "width", "width": 0.5},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_conversion_keeps_modes_and_frozen_parts(method: str) -> None:
    """Of three stages one is frozen and in eval mode, in a network in train mode; new layers of a stage train."""
    model = resnet20().train()
    model.layer1.requires_grad_(False).eval()
    made = ghostify.convert(model, torch.randn(1, 3, 16, 16), **METHODS[method]).module
    for name, parameter in made.named_parameters():
        new = ".cheap." in name or ".mix." in name
        assert parameter.requires_grad != (name.startswith("layer1") and not (new and "g-ghost" in method)), name
    for name, part in made.named_modules():
        assert part.training != name.startswith("layer1"), name


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_fit_leaves_frozen_layers_and_norms_that_stay() -> None:
    """Others that stay are fitted to what they now read."""
    model = resnet8().eval()
    model.layer3.requires_grad_(False)
    made = ghostify.convert(model, images(1), images=images(), exclude=["layer3"], min_saving=0)
    assert made.fit is not None and "linear" in [layer.target for layer in made.fit.layers]
    assert not [layer.target for layer in made.fit.layers if layer.target.startswith("layer3")]
    assert not moved(made.module.layer3, state(model.layer3))  # type: ignore[arg-type]


def test_a_fit_leaves_frozen_norms_behind_what_is_replaced() -> None:
    model = resnet8().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.requires_grad_(False)
    made = ghostify.convert(model, images(1), images=images(), min_saving=0)
    norms = {name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    changed = {name.rpartition(".")[0] for name in moved_names(made.module, model)}
    assert made.fit is not None and made.fit.layers and not changed & norms


def moved_names(made: nn.Module, model: nn.Module) -> set[str]:
    before, after = model.state_dict(), made.state_dict()
    return {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}


def test_a_network_frozen_as_a_whole_is_fitted_like_any_other() -> None:
    torch.manual_seed(0)
    free = resnet8().eval()
    frozen = copy.deepcopy(free).requires_grad_(False)
    made = [ghostify.convert(model, images(1), images=images(), min_saving=0).module for model in (free, frozen)]
    assert all(
        torch.equal(a, b) for a, b in zip(made[0].state_dict().values(), made[1].state_dict().values(), strict=True)
    )
    assert not any(parameter.requires_grad for parameter in made[1].parameters())
