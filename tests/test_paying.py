"""Never slower by default: swaps that lose on the clock are left out, and a network is left alone where none pays."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from command import Cli, refused
from fake_clock import by_macs, with_a_toll
from torch import nn

from ghostify.cli.show import Watcher
from ghostify.clock import Clock, Judge, Measured, Place, SwapTime, Time, paying, require_faster
from ghostify.clock.turns import difference, ratio_between
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, GGhostStage
from ghostify.measuring import Timings
from ghostify.networks import resnet20
from ghostify.planned import planned
from ghostify.planning import Plan
from ghostify.recipe import GhostSettings, ModelSettings, Recipe
from ghostify.rewriting import rehearse, rewrite
from ghostify.subject import prepare
from ghostify.tracing import Recording, trace

DEPTHWISE = {"cheap": "depthwise 3", "min_saving": 0}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GHOSTIFY_CACHE", str(tmp_path / "cache"))


@cache
def recorded() -> Recording:
    return Recording.of(trace(resnet20().eval(), torch.randn(1, 3, 32, 32)))


def judged(settings: GhostSettings, folder: Path) -> tuple[Plan, Plan, tuple[SwapTime, ...], Recording]:
    """A plan as it is proposed, the same as the clock leaves it, and the times of its swaps."""
    recording = recorded()
    proposed = rehearse(recording, settings)
    judge = Judge(recording, Clock(Place(), folder))
    plan, times = paying(judge, settings, proposed)
    return proposed, plan, times, recording


# -- which swaps pay -----------------------------------------------------------------------------------------------


def test_a_plan_whose_swaps_are_all_faster_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_macs(monkeypatch)
    proposed, plan, times, _ = judged(GhostSettings(**DEPTHWISE), tmp_path)
    assert plan == proposed
    assert {time.target for time in times} == {swap.target for swap in plan.swaps}


def test_what_costs_more_than_it_saves_is_left_out_with_both_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toll = 800_000
    by_macs(monkeypatch, with_a_toll(toll))
    proposed, plan, times, recording = judged(GhostSettings(**DEPTHWISE), tmp_path)
    saves = {swap.target: swap.before.macs - swap.after.macs - toll for swap in proposed.swaps}
    worth = {swap.target for swap in proposed.swaps if saves[swap.target] > 0.05 * swap.before.macs}
    assert {swap.target for swap in plan.swaps} == worth
    assert 0 < len(worth) < len(proposed.swaps)
    for time in times:
        assert time.saves.ms == pytest.approx(saves[time.target] / 1e3)
    reasons = {skip.target: skip.reason for skip in plan.skips}
    for target in saves.keys() - worth:
        assert "ms as it is" in reasons[target] and "--no-measure" in reasons[target]
    rewrite(recording, plan)  # which counts, and refuses what costs anything but what the plan says


def test_blocks_are_judged_like_layers_and_the_rest_is_proposed_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cost(module: nn.Module, macs: int) -> float:
        layers = (part for part in module.modules() if isinstance(part, nn.Conv2d))
        return macs + 1e9 * sum(8 in (layer.in_channels, layer.out_channels) for layer in layers)

    by_macs(monkeypatch, cost)
    settings = GhostSettings(method="mixed", width=0.5, cheap="depthwise 3", min_saving=0)
    proposed, plan, _, recording = judged(settings, tmp_path)
    thinned = [[swap.target for swap in one.swaps if swap.rule == "thin"] for one in (proposed, plan)]
    assert {target.partition(".")[0] for target in thinned[0]} == {"layer1", "layer2", "layer3"}
    assert {target.partition(".")[0] for target in thinned[1]} == {"layer2", "layer3"}, "16 → 8 is what was slow"
    rewrite(recording, plan)


def test_a_stage_is_judged_in_the_whole_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cost(module: nn.Module, macs: int) -> float:
        stages = (part for part in module.modules() if isinstance(part, GGhostStage))
        return macs + sum(1e9 for stage in stages if next(stage.parameters()).shape[0] < 16)

    by_macs(monkeypatch, cost)
    proposed, plan, times, _ = judged(GhostSettings(method="g-ghost"), tmp_path)
    assert [swap.target for swap in proposed.swaps] == ["layer1", "layer2", "layer3"]
    assert [swap.target for swap in plan.swaps] == ["layer2", "layer3"]
    for time, swap in zip(times, plan.swaps, strict=True):
        assert time.saves.ms == pytest.approx((swap.before.macs - swap.after.macs) / 1e3)


def test_what_a_stage_leaves_alone_other_rules_may_take(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_macs(monkeypatch, with_a_toll(1e9, GGhostStage))
    _, plan, _, _ = judged(GhostSettings(method="both", **DEPTHWISE), tmp_path)
    assert {swap.rule for swap in plan.swaps} == {"c-ghost"}
    assert any(swap.target.startswith("layer1.1.") for swap in plan.swaps)


def test_nothing_that_pays_is_no_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_macs(monkeypatch, with_a_toll(1e9))
    with pytest.raises(PlanError, match="changes nothing, because no swap is faster on eager on 1 thread"):
        judged(GhostSettings(**DEPTHWISE), tmp_path)


def test_a_difference_within_the_noise_is_none() -> None:
    def swap(saves: float, noise: float) -> SwapTime:
        before, after = Time(ms=10.0, noise=noise), Time(ms=10.0 - saves, noise=noise)
        return SwapTime(target="layer", rule="c-ghost", before=before, after=after)

    assert swap(1.0, 0.1).pays
    assert not swap(1.0, 0.5).pays, "1 ms is less than twice the noise of a difference, 1.41"
    assert not swap(0.4, 0.0).pays, "4 of 100 are less than what pieces are true to"
    assert not swap(-1.0, 0.1).pays


# -- the whole -----------------------------------------------------------------------------------------------------


def measured(before: list[float], after: list[float], saves: float = 0.0) -> Measured:
    """Of one swap that saves so many milliseconds, or of none that has a time of its own."""
    swap = SwapTime(target="layer", rule="c-ghost", before=Time(ms=saves), after=Time(ms=0.0))
    whole = Timings({"before": before, "after": after}, 1, "cpu").compare("before", "after")
    low, high = ratio_between(before, after)
    return Measured(place=Place(), swaps=(swap,) * bool(saves), whole=whole, low=low, high=high)


def test_a_whole_that_is_slower_is_refused_and_one_within_the_noise_is_not() -> None:
    slower = measured([1.0] * 20, [1.1, 1.2] * 10)
    with pytest.raises(PlanError, match="changes nothing, because the whole network would be slower"):
        require_faster(slower, "Net")
    within = measured([1.0] * 20, [0.9, 1.2] * 10)
    assert require_faster(within, "Net") is within


def test_a_gain_that_two_set_ups_may_make_is_none() -> None:
    with pytest.raises(PlanError, match=r"would save 1.0% of the time on eager on 1 thread"):
        require_faster(measured([10.0] * 20, [9.9] * 20, saves=0.1), "Net")
    enough = measured([10.0] * 20, [9.5] * 20, saves=0.5)
    assert require_faster(enough, "Net").predicted == pytest.approx(10 / 9.5)


def test_a_median_lies_in_its_interval_in_95_of_100_cases() -> None:
    torch.manual_seed(0)
    draws = [torch.randn(30).exp().tolist() for _ in range(400)]
    intervals = [ratio_between(draw, [1.0] * 30) for draw in draws]
    held = sum(low <= 1.0 <= high for low, high in intervals) / len(draws)
    assert 0.93 < held < 0.99


def test_a_neighbour_that_takes_the_processor_now_and_then_does_not_count() -> None:
    quiet, busy = [2.0] * 40, [2.0, 2.0, 9.0, 5.0] * 10
    assert difference(busy, [1.0] * 40).ms == pytest.approx(difference(quiet, [1.0] * 40).ms)


# -- by the command line -------------------------------------------------------------------------------------------


def test_compress_leaves_out_what_loses_and_reports_what_it_gained(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_macs(monkeypatch, with_a_toll(800_000))
    asked = ("ghostify:resnet8", "--cheap", "depthwise 3", "--min-saving", "0", "--measure")
    answer = cli("compress", *asked, "--json", "--output", "run")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    targets = {layer["target"] for layer in report["layers"]}
    assert {swap["target"] for swap in report["clock"]["swaps"]} == targets
    plan = yaml.safe_load((tmp_path / "run" / "plan.yaml").read_text())
    assert {swap["target"] for swap in plan["swaps"]} == targets
    shown = cli("report", "run", "--layers")
    assert "clock" in shown.out and "as it runs (eager on 1 thread)" in shown.out
    assert "billion a second" in shown.out
    planned = cli("plan", *asked, "--json")
    assert {swap["target"] for swap in json.loads(planned.out)["swaps"]} == targets


def test_a_network_where_nothing_pays_is_left_alone_unless_forced(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    by_macs(monkeypatch, with_a_toll(1e9))
    asked = ("compress", "ghostify:resnet8", "--cheap", "depthwise 3", "--output", "run")
    refused(cli(*asked, "--measure"), "changes nothing", "no swap is faster")
    assert not Path("run").exists()
    forced = cli(*asked, "--no-measure", "--json")
    assert forced.code == 0, forced.err
    assert json.loads(forced.out)["clock"] is None


def test_a_run_goes_on_with_what_the_clock_decided_when_it_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = Recipe(model=ModelSettings(source="ghostify:resnet8"), ghost=GhostSettings(**DEPTHWISE), device="cpu")
    subject = prepare(recipe.model)
    by_macs(monkeypatch)
    begun = planned(subject, recipe, None, Watcher(quiet=True), tmp_path)
    by_macs(monkeypatch, with_a_toll(1e9))
    monkeypatch.setenv("GHOSTIFY_CACHE", str(tmp_path / "another"))
    again = planned(subject, recipe, None, Watcher(quiet=True), tmp_path)
    assert (again.plan, again.clock) == (begun.plan, begun.clock)
    (tmp_path / "clock.json").write_text("damaged")
    with pytest.raises(PlanError, match="no swap is faster"):
        planned(subject, recipe, None, Watcher(quiet=True), tmp_path)


def test_a_plan_by_hand_is_carried_out_as_it_is(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    by_macs(monkeypatch, with_a_toll(1e9))
    assert cli("plan", "ghostify:resnet8", "--cheap", "depthwise 3", "--no-measure", "-o", "plan.yaml").code == 0
    answer = cli("compress", "ghostify:resnet8", "--plan", "plan.yaml", "--measure", "--json")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(("slow", "taken"), [(GGhostStage, "layers"), (CGhost, "stages")])
def test_method_auto_takes_the_first_that_is_faster(
    slow: type[nn.Module], taken: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_macs(monkeypatch, with_a_toll(1e9, slow))
    answer = cli("compress", "ghostify:resnet20", "--method", "auto", "--cheap", "depthwise 3", "--measure", "--json")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert [name for name in ("layers", "stages") if report[name]] == [taken]
