"""The moving average of weights, against one computed by hand; and batch norms whose statistics are counted anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ghostify.finetuning.averaging import Average
from ghostify.finetuning.renewing import renew_norms
from tests.blobs import Blobs, Tied, net, same_weights


def moved(model: nn.Module, step: int) -> None:
    """Another set of weights and statistics, as a step of training leaves."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += torch.randn(value.shape, generator=generator)
            else:
                value += 1


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.999])
def test_the_average_is_that_of_its_formula(decay: float) -> None:
    model = net()
    average, by_hand = Average(model, decay), {}
    for step in range(1, 30):
        moved(model, step)
        average.update(model)
        part = 0.0 if step == 1 else min(decay, step / (9 + step))
        for name, value in model.state_dict().items():
            kept = by_hand.get(name, torch.zeros(()))
            by_hand[name] = part * kept + (1 - part) * value if value.is_floating_point() else value.clone()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, by_hand[name], rtol=1e-4, atol=1e-4)


def test_the_network_itself_is_not_touched() -> None:
    model = net()
    average = Average(model, 0.9)
    for step in range(3):
        moved(model, step)
        before = copy.deepcopy(model)
        average.update(model)
        assert same_weights(model, before)


@pytest.mark.parametrize("make", [net, Tied])
def test_it_goes_on_from_its_state_to_the_same_bits(make: type[nn.Module]) -> None:
    model = make()
    whole = Average(model, 0.9)
    for step in range(5):
        moved(model, step)
        whole.update(model)
    resumed = Average(make(), 0.9)
    resumed.load({name: value.clone() for name, value in whole.state().items()})
    for step in range(5, 9):
        moved(model, step)
        whole.update(model)
        resumed.update(model)
    assert same_weights(whole.module, resumed.module)


def test_what_does_not_move_stays_bit_for_bit() -> None:
    model = net()
    average, frozen = Average(model, 0.9), model.conv.weight.clone()
    for step in range(6):
        with torch.no_grad():
            model.head.weight += step
        average.update(model)
    assert torch.equal(average.module.get_parameter("conv.weight"), frozen)


def test_norms_are_renewed_to_the_plain_mean_over_the_batches() -> None:
    model = net().train()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 3, 4, 4, generator=generator), torch.zeros(16)) for _ in range(4)]
    renew_norms(model, batches, torch.device("cpu"))
    seen = [model.conv(images) for images, _ in batches]
    means = torch.stack([maps.mean((0, 2, 3)) for maps in seen]).mean(0)
    variances = torch.stack([maps.var((0, 2, 3)) for maps in seen]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, means)
    torch.testing.assert_close(model.norm.running_var, variances)
    assert model.norm.momentum == 0.1
    assert model.training


def test_norms_in_eval_mode_keep_their_statistics() -> None:
    model = net().train()
    model.norm.eval()
    before = copy.deepcopy(model)
    renew_norms(model, Blobs().train_loader(16, 0, 0, 0), torch.device("cpu"))
    assert same_weights(model, before)
    assert not model.norm.training
