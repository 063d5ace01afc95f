"""Maps with their channels last while a network trains: where that serves, and for that time only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from blobs import SETTINGS, Blobs, Unheld, near, net, same_weights, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ghostify.finetuning import finetune
from ghostify.runtimes import pinned_threads

LAST = torch.channels_last


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with pinned_threads(1):
        yield


class Body(nn.Module):
    """A convolution, what code makes of its maps, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.rows(self.conv(x).relu())))

    def rows(self, y: Tensor) -> Tensor:
        return y.flatten(1)


class Viewing(Body):
    """Its code wants the order (N, c, H, W)."""

    def rows(self, y: Tensor) -> Tensor:
        return y.view(len(y), -1)


class ViewingInTraining(Body):
    """The same, but in train mode alone."""

    def rows(self, y: Tensor) -> Tensor:
        return y.view(len(y), -1) if self.training else y.flatten(1)


class Strided(Body):
    """Its code reads memory as if it knew the order, and is not told where it is wrong."""

    def rows(self, y: Tensor) -> Tensor:
        return y.as_strided((len(y), 32), (32, 1))


def layouts(model: nn.Module) -> list[tuple[bool, bool]]:
    """Whether filters and maps have their channels last, by call of the convolution while it trains."""
    seen: list[tuple[bool, bool]] = []

    def look(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if layer.training:
            seen.append(tuple(one.is_contiguous(memory_format=LAST) for one in (layer.weight, output)))  # type: ignore[arg-type]

    model.conv.register_forward_hook(look)  # type: ignore[union-attr]
    return seen


@pytest.mark.parametrize("asked", [None, True])
def test_on_a_cpu_it_is_the_layout_for_the_time_of_training(asked: bool | None) -> None:
    one, other = Body(), Body()
    seen = layouts(one)
    train(one, SETTINGS.model_copy(update={"channels_last": asked}), data=Unheld())
    assert set(seen[-9:]) == {(True, True)}
    assert one.conv.weight.is_contiguous()
    train(other, SETTINGS.model_copy(update={"channels_last": False}), data=Unheld())
    assert near(one, other)


def test_who_asks_for_none_gets_none() -> None:
    model = Body()
    seen = layouts(model)
    train(model, SETTINGS.model_copy(update={"channels_last": False}), data=Unheld())
    assert set(seen) == {(False, False)} and len(seen) == 9


@pytest.mark.parametrize("kind", [Viewing, ViewingInTraining, Strided])
def test_a_network_whose_code_needs_another_order_keeps_it(kind: type[Body]) -> None:
    model, plain = kind(), Body()
    seen = layouts(model)
    train(model, data=Unheld())
    assert set(seen[-9:]) == {(False, False)}
    train(plain, SETTINGS.model_copy(update={"channels_last": False}), data=Unheld())
    assert same_weights(model, plain)


def test_to_try_it_out_changes_nothing() -> None:
    """Statistics of norms, random numbers and the data are those of a run that was told."""
    told, untold = net(), net()
    settings = SETTINGS.model_copy(update={"mixup": 0.5})
    torch.manual_seed(3)
    train(untold, settings)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    train(told, settings.model_copy(update={"channels_last": True}))
    assert same_weights(told, untold)
    assert torch.equal(drawn, torch.rand(3))


class Series:
    """Labelled series of numbers, of which there are no maps."""

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        draw = torch.Generator().manual_seed(epoch)
        x, y = torch.randn(32, 3, 6, generator=draw), torch.randint(3, (32,), generator=draw)
        return DataLoader(TensorDataset(x, y), batch_size)

    def held_loader(self, batch_size: int, workers: int) -> None:
        return None


def test_networks_without_maps_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    train(model, data=Series())
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_one_image_to_a_batch_is_enough() -> None:
    model = Body()
    seen = layouts(model)
    finetune(model, Blobs(), SETTINGS.model_copy(update={"epochs": 1}), batch_size=1)
    assert set(seen[-9:]) == {(True, True)}
