"""The learning rate of every step: against torch's own schedulers, which keep state where ours need none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from ghostify.finetuning import learning_rate
from ghostify.recipe import TrainSettings

PEAK, TOTAL = 0.3, 40


def by_torch(make: Callable[[SGD], LRScheduler]) -> list[float]:
    """The rates of a scheduler of torch's, step by step."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], PEAK)
    scheduler = make(optimizer)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(**settings: object) -> list[float]:
    chosen = TrainSettings(lr=PEAK, **settings)
    return [learning_rate(step, TOTAL, chosen) for step in range(TOTAL)]


def warmed(steps: int, rest: Callable[[SGD], LRScheduler]) -> Callable[[SGD], LRScheduler]:
    def make(optimizer: SGD) -> LRScheduler:
        rising = LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps)
        return SequentialLR(optimizer, [rising, rest(optimizer)], [steps])

    return make


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_cosine_is_torchs(warmup: float) -> None:
    warm = round(warmup * TOTAL)
    make = warmed(warm, lambda optimizer: CosineAnnealingLR(optimizer, TOTAL - warm))
    theirs = by_torch(make if warm else lambda optimizer: CosineAnnealingLR(optimizer, TOTAL))
    assert ours(schedule="cosine", warmup=warmup) == pytest.approx(theirs)


def test_linear_is_torchs() -> None:
    theirs = by_torch(lambda optimizer: LinearLR(optimizer, 1.0, 0.0, TOTAL))
    assert ours(schedule="linear", warmup=0.0) == pytest.approx(theirs)


@pytest.mark.parametrize("milestones", [(0.5, 0.75), (0.2,), (0.9, 0.3)])
def test_step_is_torchs(milestones: tuple[float, ...]) -> None:
    at = [round(share * TOTAL) for share in milestones]
    theirs = by_torch(lambda optimizer: MultiStepLR(optimizer, at, gamma=0.2))
    assert ours(schedule="step", warmup=0.0, milestones=milestones, drop=0.2) == pytest.approx(theirs)


@pytest.mark.parametrize("rise", [0.1, 0.3, 0.5])
def test_one_cycle_is_torchs(rise: float) -> None:
    theirs = by_torch(lambda optimizer: OneCycleLR(optimizer, PEAK, TOTAL, pct_start=rise, cycle_momentum=False))
    assert ours(schedule="one-cycle", warmup=rise) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 17])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "step", "one-cycle", "constant"])
def test_any_run_has_rates_above_zero_up_to_the_peak(schedule: str, warmup: float, total: int) -> None:
    settings = TrainSettings(lr=PEAK, schedule=schedule, warmup=warmup)
    rates = [learning_rate(step, total, settings) for step in range(total)]
    assert all(0 < rate <= PEAK * (1 + 1e-9) for rate in rates)


def test_constant_stays_at_its_peak_after_the_warm_up() -> None:
    rates = ours(schedule="constant", warmup=0.1)
    assert rates[4:] == [PEAK] * (TOTAL - 4)
    assert rates[:4] == pytest.approx([PEAK * step / 5 for step in (1, 2, 3, 4)])
