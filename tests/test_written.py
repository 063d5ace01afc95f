"""Sizes that a network's own code writes out: their channels stay, and the plan says why.

| what the code does                            | what stays                                             |
|-----------------------------------------------|--------------------------------------------------------|
| writes out how many channels there are        | the channels of that tensor; all others may be fewer   |
| reads the size off the tensor, or off a layer | nothing                                                |
| leaves it to torch (-1)                       | nothing                                                |
| cuts channels in halves and shuffles them     | all that goes through that; what lies inside may be fewer |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghostify.budget.candidates import candidates
from ghostify.errors import PlanError
from ghostify.planning import Plan, check, plan, read_plan, scan_for
from ghostify.recipe import GhostSettings, Method
from ghostify.rewriting import Ghosted, rewrite
from ghostify.tracing import Traced, trace

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Read = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Three convolutions, maps of 4x4, a classifier; ``read`` is the line between the maps and the classifier."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read = read
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 48, 3, padding=1)
        self.third = nn.Conv2d(48, 64, 3, padding=1)
        self.cut = nn.Unflatten(1, (4, 16))
        self.classifier = nn.Linear(64 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.classifier(self.read(self, nn.functional.adaptive_avg_pool2d(x, 4)))


WRITE: dict[str, Read] = {
    "view": lambda net, x: x.view(-1, 1024),
    "reshape of a permutation": lambda net, x: x.permute(0, 2, 3, 1).reshape(-1, 1024),
    "unflatten": lambda net, x: x.unflatten(1, (4, 16)).flatten(1),
    "a layer that unflattens": lambda net, x: net.cut(x).flatten(1),
    "split": lambda net, x: torch.cat(x.split([32, 32], 1), 1).flatten(1),
    "the batch is what is left": lambda net, x: torch.reshape(x, (-1, 64, 16)).flatten(1),
}
DO_NOT: dict[str, Read] = {
    "flatten": lambda net, x: x.flatten(1),
    "the size of the tensor": lambda net, x: x.view(x.shape[0], x.shape[1] * 16),
    "the batch of the tensor": lambda net, x: x.view(x.shape[0], -1),
    "the size of a layer": lambda net, x: x.view(-1, net.classifier.in_features),
    "groups of the tensor": lambda net, x: x.view(len(x), 4, x.shape[1] // 4, 4, 4).flatten(1),
    "positions": lambda net, x: x.view(x.shape[0], -1, 16).flatten(1),
}
NARROWER: tuple[Method, ...] = ("width", "thin")
each_method = pytest.mark.parametrize("method", NARROWER)


def planned(read: Read, method: Method, **changes: Any) -> tuple[Traced, Plan]:
    traced = trace(Net(read), X)
    settings = GhostSettings(method=method, width=0.5, **changes)
    return traced, plan(scan_for(traced, settings), settings)


def widths(ghosted: Ghosted) -> list[int]:
    return [ghosted.module.get_submodule(name).weight.shape[0] for name in ("first", "second", "third")]


@each_method
@pytest.mark.parametrize("name", WRITE)
def test_what_code_writes_out_stays_and_all_else_becomes_narrower(name: str, method: Method) -> None:
    traced, made = planned(WRITE[name], method)
    ghosted = rewrite(traced, made)
    assert widths(ghosted) == [16, 24, 64]
    assert ghosted.after.cost == made.after
    assert ghosted.module(X).shape == (2, 10)
    (reason,) = [skip.reason for skip in made.skips if skip.target == "third"]
    assert reason.startswith("keeps its outputs, because ") and "writes out how many there are" in reason


@each_method
@pytest.mark.parametrize("name", DO_NOT)
def test_what_is_read_off_becomes_narrower_too(name: str, method: Method) -> None:
    traced, made = planned(DO_NOT[name], method)
    assert widths(rewrite(traced, made)) == [16, 24, 32]
    assert "writes out" not in str(made)


@each_method
@pytest.mark.parametrize("exclude", [(), ("third",), ("first",)])
def test_a_plan_of_it_survives_its_file(method: Method, exclude: tuple[str, ...], tmp_path: Path) -> None:
    traced, made = planned(WRITE["view"], method, exclude=exclude)
    (tmp_path / "plan.yaml").write_text(made.to_yaml(), encoding="utf-8")
    again = read_plan(tmp_path / "plan.yaml")
    assert check(again, scan_for(traced, again)) == again == made
    assert sum(skip.target == "third" for skip in made.skips) == 1, "one line for each layer"


def shuffled() -> nn.Module:
    """A ShuffleNetV2: a unit that joins two branches, then units that cut, shuffle and join."""
    from torchvision.models import ShuffleNetV2

    torch.manual_seed(0)
    return ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256], num_classes=10).eval()


@pytest.mark.parametrize("method", ["thin", "mixed"])
def test_channels_that_are_shuffled_stay_and_the_inside_of_units_becomes_narrower(method: Method) -> None:
    traced = trace(shuffled(), torch.randn(1, 3, 64, 64))
    settings = GhostSettings(method=method, width=0.7, round_to=1)
    made = plan(scan_for(traced, settings), settings)
    ghosted = rewrite(traced, made)
    assert ghosted.after.cost == made.after
    assert made.after.macs < 0.9 * made.before.macs
    part = ghosted.module.get_submodule
    assert part("stage2.1.branch2.0").weight.shape[:2] == (17, 24)
    assert part("stage2.1.branch2.5").weight.shape[0] == 24
    reasons = [skip.reason for skip in made.skips if skip.target == "stage2.1.branch2.5"]
    assert method == "mixed" or "cuts them in parts that go together (view " in reasons[0]


def test_of_what_both_methods_can_do_ghosts_are_left_for_such_a_layer() -> None:
    traced, made = planned(WRITE["view"], "mixed")
    assert {(swap.rule, swap.target) for swap in made.swaps} >= {("thin", "second"), ("c-ghost", "third")}
    assert rewrite(traced, made).after.cost == made.after


def test_a_budget_does_not_choose_among_such_widths() -> None:
    for read, offered in ((WRITE["view"], False), (DO_NOT["flatten"], True)):
        traced = trace(Net(read), X)
        settings = GhostSettings(method="thin")
        units = candidates(scan_for(traced, settings), settings, fitted=True)
        targets = {swap.target for unit in units for option in unit.options for swap in option.swaps}
        assert ("third" in targets) is offered
        assert {"first", "second"} <= targets


@each_method
def test_a_network_with_nothing_else_says_why(method: Method) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Unflatten(1, (4, 4)), nn.Flatten(), nn.Linear(3136, 4))
    with pytest.raises(PlanError, match="writes out how many there are"):
        plan(scan_for(trace(model, X), GhostSettings(method=method)), method=method)
