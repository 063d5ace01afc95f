"""``lr: auto``: what finds a rate leaves everything as it was, and goes by the network and its images alone."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ghostify
from ghostify.errors import RecipeError
from ghostify.finetuning import finetune
from ghostify.finetuning.averaging import Average
from ghostify.finetuning.engine import Engine
from ghostify.finetuning.feeding import Feed
from ghostify.finetuning.losses import OwnLoss
from ghostify.finetuning.objective import Objective
from ghostify.finetuning.optimizers import make_optimizer
from ghostify.finetuning.rate import FoundRate, edge_of, find_rate, peak_of, tried_rates
from ghostify.networks import resnet8
from ghostify.processes import Processes
from ghostify.recipe import AUTO, TrainSettings
from tests.blobs import Blobs, Watcher, net, same_weights, stopped, train

CPU = torch.device("cpu")


def found(
    model: nn.Module, settings: TrainSettings, data: Any = None, own: OwnLoss | None = None, batch: int = 16
) -> tuple[FoundRate, Engine]:
    objective = Objective(model, settings, CPU, own=own)
    average = Average(model, settings.ema) if settings.ema else None
    engine = Engine(objective, make_optimizer(model, settings), Processes(), average)
    feed = Feed(data or Blobs(), batch, 0, 0, CPU, Processes())
    with objective.training():
        return find_rate(engine, feed), engine


@pytest.mark.parametrize(
    "settings",
    [TrainSettings(), TrainSettings(optimizer="adamw", ema=0.9, clip=1.0, mixup=0.2), TrainSettings(ema=0.5)],
)
def test_everything_is_put_back_bit_for_bit(settings: TrainSettings) -> None:
    model = net()
    before = copy.deepcopy(model)
    rate, engine = found(model, settings)
    assert rate.steps > 3
    assert same_weights(model, before)
    assert not engine.optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    if engine.average is not None:
        assert same_weights(engine.average.module, before)
        assert int(engine.average.state()["n_averaged"]) == 0


def test_the_same_network_and_images_have_the_same_rate() -> None:
    rates = []
    for draw in (1, 2):
        torch.manual_seed(draw)
        rates.append(found(net(), TrainSettings())[0])
    assert rates[0] == rates[1]


def edge(rates: list[float], changes: list[float], loss: float = 1.0) -> float:
    """That of a test whose losses differ by so much from ``loss``, of all batches alike."""
    return edge_of(rates, [loss + change for change in changes], [loss] * len(changes))


def test_the_edge_is_where_harm_begins_and_one_bad_batch_is_none() -> None:
    rates = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert edge(rates, [0.0, -0.2, -0.3, 0.4, 2.0]) == 4.0
    assert edge(rates, [0.0, -0.2, 0.6, -0.5, 2.0]) == 8.0
    assert edge(rates, [0.0, -0.1, -0.2, -0.3, -0.4]) == 16.0
    assert edge(rates, [0.0, 0.5, 0.7, 0.9, 1.5]) == 1.0
    assert edge_of(rates, [], []) == 1.0


def test_what_was_gained_may_not_be_lost() -> None:
    """A network far from its optimum is still better than it was after steps that undo what smaller ones did."""
    rates = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    gaining = [0.0, -2.0, -4.0, -4.0, -4.0]
    assert edge(rates, [*gaining, -3.0, -2.6], loss=5.0) == 64.0
    assert edge(rates, [*gaining, -3.0, -0.5], loss=5.0) == 32.0
    assert edge(rates, [*gaining, -1.0, -0.5], loss=5.0) == 16.0
    assert edge(rates, [0.0, -4.0, 0.0, 0.0, 0.5, 0.5, 0.5], loss=2.0) == 2.0, "one easy batch is a small gain"


def test_what_has_much_to_learn_bears_more() -> None:
    rates = [1.0, 2.0, 4.0, 8.0, 16.0]
    changes = [0.0, 0.2, 0.6, 1.4, 3.0]
    edges = [edge(rates, changes, loss) for loss in (0.5, 1.0, 3.0, 6.0)]
    assert edges == [1.0, 2.0, 4.0, 8.0]
    assert edge(rates, changes, -3.0) == 4.0, "a loss of the user's may be below 0"


def test_the_edge_does_not_go_by_the_unit_of_the_loss() -> None:
    rates = [1.0, 2.0, 4.0, 8.0, 16.0]
    moved, still = [1.0, 0.9, 0.8, 1.6, 4.0], [1.0, 1.1, 0.9, 1.0, 1.2]
    for unit in (1e-3, 1.0, 1e3):
        assert edge_of(rates, [unit * one for one in moved], [unit * one for one in still]) == 4.0


def test_the_peak_lies_between_the_edge_and_what_is_safe_and_is_never_unusual() -> None:
    usual = TrainSettings().peak
    edges = [usual * share for share in (1 / 40, 0.1, 1, 10, 15)]
    peaks = [peak_of(edge, usual) for edge in edges]
    assert peaks == sorted(peaks)
    assert peaks[1] == pytest.approx(0.1 * usual)
    assert peaks[3:] == [pytest.approx(usual)] * 2 and peaks[4] <= usual


class Steep(nn.Module):
    """A linear map whose loss is as curved as the square of its scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(8, 1, bias=False)
        nn.init.constant_(self.linear.weight, 0.9 / scale)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.scale * self.linear(x))


class Sums:
    """Numbers and their sum, which a ``Steep`` map nearly gives."""

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        x = torch.randn(512, 8, generator=torch.Generator().manual_seed(epoch))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size)

    def held_loader(self, batch_size: int, workers: int) -> None:
        return None


def test_the_rate_goes_with_how_curved_the_loss_is() -> None:
    """Twice the slope has four times the curvature, and bears a quarter of the rate."""
    own = OwnLoss.of(nn.functional.mse_loss)
    settings, scales = TrainSettings(momentum=0), (6.0, 12.0, 24.0)
    edges = [found(Steep(scale), settings, Sums(), own, batch=256)[0].edge for scale in scales]
    step = tried_rates(settings)
    assert edges[0] < step[-1]
    for flatter, steeper in pairwise(edges):
        assert flatter / steeper == pytest.approx(4, rel=(step[1] / step[0]) ** 2 - 1), "each edge is one of the rates"


def test_a_loss_below_zero_is_tested_as_far() -> None:
    def shifted(outputs: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, wanted) - 5

    settings, own = TrainSettings(momentum=0), OwnLoss.of(shifted)
    assert found(Steep(12.0), settings, Sums(), own, batch=256)[0].steps > 15


def test_rates_rise_by_a_constant_factor_around_what_is_usual() -> None:
    for settings in (TrainSettings(), TrainSettings(optimizer="adamw")):
        rates = tried_rates(settings)
        factors = [later / earlier for earlier, later in pairwise(rates)]
        assert factors == pytest.approx([factors[0]] * len(factors))
        assert rates[0] < settings.peak / 10
        assert rates[-1] > settings.peak * 10


def test_training_goes_on_at_the_rate_that_is_told() -> None:
    watcher, model, by_hand = Watcher(), net(), net()
    history = train(model, TrainSettings(epochs=2, lr=AUTO), progress=watcher)
    assert history.rate is not None
    told = [line for line in watcher.told if isinstance(line, str) and line.startswith("Learning rate")]
    assert len(told) == 1
    assert f"Learning rate {history.rate:.2g}, found by a test of" in told[0]
    assert f"at the rate of {history.rate:.2g} that a test found" in history.verdict("Training", TrainSettings())
    train(by_hand, TrainSettings(epochs=2, lr=history.rate))
    assert same_weights(model, by_hand)


def test_a_run_that_goes_on_has_the_rate_it_began_with(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=3, lr=AUTO)
    whole, halves, watcher = net(), net(), Watcher()
    history = train(whole, settings)
    stopped(halves, tmp_path, 1, settings)
    again = train(halves, settings, checkpoint=tmp_path, progress=watcher)
    assert same_weights(whole, halves)
    assert again.rate == history.rate
    assert not any(isinstance(line, str) and line.startswith("Learning rate") for line in watcher.told), (
        "once is enough"
    )


def test_after_a_fit_the_rate_is_found_by_default() -> None:
    assert TrainSettings().resolved(fitted=True).lr == AUTO
    images = torch.randn(48, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fitted = ghostify.convert(resnet8(3), images[:1], images=images, min_saving=0)
    assert fitted.fit is not None
    assert finetune(fitted, Blobs(), TrainSettings(epochs=1), batch_size=16).rate is not None
    unfitted = ghostify.convert(resnet8(3), images[:1], min_saving=0)
    assert finetune(unfitted, Blobs(), TrainSettings(epochs=1), batch_size=16).rate is None


@pytest.mark.parametrize("lr", ["atuo", 0, -1.0, True, float("inf"), [0.1]])
def test_what_is_no_rate_is_refused_in_one_line(lr: Any) -> None:
    with pytest.raises(RecipeError, match="it must be a number of more than 0, or auto"):
        TrainSettings(lr=lr)
