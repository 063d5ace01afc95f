"""A clock without time: what a session takes is counted, so that every run of a test is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import nn

import ghostify
from ghostify.clock import clock, wholes
from ghostify.ghosts import CGhost
from ghostify.measuring import Timings

Cost = Callable[[nn.Module, int], float]
"""What a network takes, by itself and its multiply-adds."""


def macs_of(module: nn.Module, *inputs: Any) -> int:
    return ghostify.scan(nn.Sequential(module) if len(inputs) == 1 else module, inputs).cost.macs


def by_macs(monkeypatch: pytest.MonkeyPatch, cost: Cost = lambda module, macs: macs) -> list[str]:
    """Sessions of eager PyTorch take as many milliseconds as thousands of what they cost; those that ran are noted."""
    ran: list[str] = []

    def timed(sessions: Mapping[str, Any], **asked: Any) -> Timings:
        ran.extend(name for name in sessions if not name.startswith("frame"))
        costs = {name: cost(one.func, macs_of(one.func, *one.args)) for name, one in sessions.items()}
        return Timings({name: [value / 1e3] * 10 for name, value in costs.items()}, 1, "cpu")

    for room in (clock, wholes):
        monkeypatch.setattr(room, "timed", timed)
    return ran


def with_a_toll(toll: float, kind: type[nn.Module] = CGhost) -> Cost:
    """Multiply-adds, and so many besides for each module of a kind."""

    def cost(module: nn.Module, macs: int) -> float:
        return macs + toll * sum(isinstance(part, kind) for part in module.modules())

    return cost
