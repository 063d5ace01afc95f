"""Rewriting: only what was planned changes, and a result that is not what was planned is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import Aliased, Counting, SharedHead, conv_bn, head, mixed_modes, plain, run

from ghostify import Plan, convert, plan, rewrite, scan, trace
from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError
from ghostify.ghosts import CGhost
from ghostify.networks import resnet8
from ghostify.rewriting import replaced
from ghostify.rules import CGhostSwap, c_ghost

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ALL: dict[str, Any] = {"also": ["stem", "classifier", "pooled", "depthwise"], "min_saving": 0}


def outputs(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def test_an_alias_stays_one_module_under_both_names() -> None:
    ghosted = convert(Aliased(), X, **ALL)
    assert isinstance(ghosted.module.again, CGhost)
    assert ghosted.module.again is ghosted.module.body[0]


def test_a_shared_head_is_still_shared() -> None:
    ghosted = convert(SharedHead(), X, **ALL)
    assert ghosted.after.site("shared.primary").calls == 2
    assert [tuple(out.shape) for out in run(ghosted.module, X)] == [(2, 3, 8, 8), (2, 3, 4, 4)]


def test_modes_are_kept_module_by_module() -> None:
    ghosted = convert(mixed_modes(), X, **ALL).module
    assert ghosted.training and not ghosted[1][1].training
    assert not any(part.training for part in ghosted[2][0].modules())
    assert all(part.training for part in ghosted[1][0].modules())


def test_hooks_on_other_modules_are_kept_and_run() -> None:
    model, seen = plain(), []
    model[1][1].register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    ghosted = convert(model, X, **ALL).module
    seen.clear()
    ghosted(X)
    assert seen == [(2, 16, 4, 4)]


def test_a_method_of_the_users_class_is_kept() -> None:
    class Named(Counting):
        def features(self, x: Tensor) -> Tensor:
            return self.conv(self.stem(x))

    ghosted = convert(Named(), X, **ALL).module
    assert type(ghosted) is Named
    assert ghosted.features(X).shape == (2, 8, 8, 8)


def test_layers_that_are_multiples_are_converted_without_loss() -> None:
    """Where a network is as redundant as the papers say, its ghost computes the same: wiring, order, slices, biases."""
    model = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 6, 3, groups=3), head(6, 5))
    with torch.no_grad():
        for layer, groups in ((model[0], 1), (model[2], 3), (model[3][2], 1)):
            bank = layer.weight.unflatten(0, (groups, -1))
            intrinsic = -(-bank.shape[1] // 2)
            for channel in range(intrinsic, bank.shape[1]):
                bank[:, channel] = (channel - 3.5) * bank[:, channel - intrinsic]
    ghosted = convert(model, X, s=2, d=3, **ALL)
    assert len(ghosted.plan.swaps) == 3
    assert torch.allclose(outputs(ghosted.module), outputs(model), rtol=1e-4, atol=1e-5)


def test_an_image_without_a_batch_is_converted_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    ghosted = convert(model, X[0], **ALL)
    assert ghosted.module(X[0]).shape == model(X[0]).shape


def test_norm_act_parts_are_built_and_counted() -> None:
    ghosted = convert(plain(), X, parts="norm-act", include=["2.0"], min_saving=0)
    ghost = ghosted.module[2][0]
    assert [type(part).__name__ for part in ghost.primary] == ["Conv2d", "BatchNorm2d", "ReLU"]
    (swap,) = ghosted.plan.swaps
    assert swap.after.params == 8 * 16 * 9 + 8 * 9 + 2 * 16


def test_the_whole_on_meta_costs_what_it_costs_in_memory() -> None:
    real = convert(resnet8(), torch.zeros(1, 3, 16, 16), **ALL)
    meta = convert(resnet8().to("meta"), torch.zeros(1, 3, 16, 16, device="meta"), **ALL)
    assert meta.plan == real.plan
    assert meta.after == real.after
    assert {p.device.type for p in meta.module.parameters()} == {"meta"}


def test_a_second_rewrite_of_one_recording_starts_from_the_original() -> None:
    traced = trace(plain(), X)
    proposal = plan(scan(traced), **ALL)
    first, second = rewrite(traced, proposal), rewrite(traced, proposal)
    assert torch.equal(outputs(first.module), outputs(second.module))
    assert first.module[0][0] is not second.module[0][0]
    assert first.after == second.after


def test_the_models_random_state_does_not_decide_the_ghosts_weights() -> None:
    model = plain()
    torch.manual_seed(1)
    first = convert(model, X, **ALL)
    torch.manual_seed(2)
    assert torch.equal(outputs(first.module), outputs(convert(model, X, **ALL).module))


def test_what_was_planned_is_on_the_result() -> None:
    ghosted = convert(plain(), X, s=4, **ALL)
    assert isinstance(ghosted.plan, Plan)
    assert ghosted.before.cost == ghosted.plan.before
    assert ghosted.after.cost == ghosted.plan.after
    assert "4 swaps" in str(ghosted)


# -- refusals --------------------------------------------------------------------------------------------------


def test_a_plan_that_changes_nothing_is_refused() -> None:
    traced = trace(plain(), X)
    with pytest.raises(PlanError, match="changes nothing"):
        rewrite(traced, plan(scan(traced), include=["3.2"]))


def test_a_plan_for_another_network_is_refused() -> None:
    proposal = plan(scan(resnet8(), X), min_saving=0)
    with pytest.raises(PlanError, match="does not have"):
        rewrite(trace(plain(), X), proposal)


def test_a_missing_target_is_refused() -> None:
    with pytest.raises(RewriteError, match="no module 'nowhere'"):
        replaced(plain(), [CGhostSwap(target="nowhere", geometry="", s=2, d=3)])


HONEST = SimpleNamespace(predict=c_ghost.predict, build=c_ghost.build)


def test_a_rule_that_promises_too_much_is_caught_at_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(site: Any, swap: CGhostSwap) -> Cost:
        return HONEST.predict(site, swap) - Cost(macs=1)

    monkeypatch.setattr(c_ghost, "predict", predict)
    with pytest.raises(RewriteError, match=r"^1\.0 was planned to cost .* and counts .* a defect of ghostify"):
        convert(plain(), X, include=["1.0"], min_saving=0)


def test_a_rule_that_builds_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(module: nn.Module, swap: CGhostSwap, order: Any = None) -> nn.Module:
        return HONEST.build(module, swap.model_copy(update={"s": 4}))

    monkeypatch.setattr(c_ghost, "build", build)
    with pytest.raises(RewriteError, match="was planned to cost"):
        convert(plain(), X, include=["1.0"], min_saving=0)


def test_a_rule_that_changes_the_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(module: nn.Module, swap: CGhostSwap, order: Any = None) -> nn.Module:
        return nn.Sequential(HONEST.build(module, swap), nn.MaxPool2d(2))

    monkeypatch.setattr(c_ghost, "build", build)
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8))
    with pytest.raises(RewriteError, match=r"gives outputs of \[\(2, 8, 4, 4\)\], the original of \[\(2, 8, 8, 8\)\]"):
        convert(model, X, include=["1.0"], min_saving=0)


def test_a_rule_that_meddles_elsewhere_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer is as promised; the whole is not."""

    def build(module: nn.Module, swap: CGhostSwap, order: Any = None) -> nn.Module:
        other.register_parameter("extra", nn.Parameter(torch.zeros(1)))
        return HONEST.build(module, swap)

    traced = trace(plain(), X)
    other = traced.module[2][1]
    proposal = plan(scan(traced), include=["1.0"], min_saving=0)
    monkeypatch.setattr(c_ghost, "build", build)
    with pytest.raises(RewriteError, match="Sequential was planned to cost"):
        rewrite(traced, proposal)
