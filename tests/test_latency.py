"""Models are timed in turns, and left as they were.  Nothing here is asserted about the clock but that it runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from ghostify.errors import ModelError, RecipeError
from ghostify.measuring import Comparison, Latency, Timings, compare, latency, measure, speedup

EXAMPLE = torch.zeros(1, 3, 4, 4)
QUICK = 0.01


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU())


class Broken(nn.Module):
    """Runs until its fuse is burnt."""

    def __init__(self, fuse: int) -> None:
        super().__init__()
        self.body = net()
        self.fuse = fuse

    def forward(self, images: Tensor) -> Tensor:
        self.fuse -= 1
        if self.fuse < 0:
            raise RuntimeError("burnt\nsecond line")
        return torch.as_tensor(self.body(images))


class Named(nn.Module):
    """Takes a nested example by keyword."""

    def forward(self, scale: float, *, parts: Mapping[str, list[Tensor]]) -> Tensor:
        return parts["images"][0] * scale


def test_models_take_turns() -> None:
    order: list[str] = []
    models = {"a": net(), "b": net(), "c": net()}
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: order.append(name))
    timings = measure(models, EXAMPLE, seconds=QUICK)
    turns = [tuple(order[start : start + 3]) for start in range(0, len(order), 3)][
        1:
    ]  # the first finds out if they run
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1  # nobody always runs behind the same one
    assert len(order) > 3 * len(timings.ms["a"])  # the warm-up is not among the times
    assert len({len(times) for times in timings.ms.values()}) == 1


def test_numbers_are_sane_and_survive_json() -> None:
    found = latency({"a": net(), "b": net()}, (EXAMPLE,), seconds=QUICK)
    assert list(found) == ["a", "b"]
    for one in found.values():
        assert 0 < one.low_ms <= one.median_ms <= one.high_ms
        assert one.runs >= 5
        assert (one.threads, one.device) == (1, "cpu")
        assert Latency.model_validate_json(one.model_dump_json()) == one


def test_percentiles() -> None:
    found = Timings({"a": [float(n) for n in range(11)]}, threads=1, device="cpu").latency("a")
    assert (found.low_ms, found.median_ms, found.high_ms, found.runs) == (1, 5, 9, 11)


def test_speedup_is_the_median_of_pairwise_ratios() -> None:
    # the machine is ten times slower in the last two turns, which hit `after` where `before` is near its median
    before, after = [2.0, 2.0, 2.0, 20.0, 20.0], [1.0, 1.0, 1.0, 10.0, 5.0]
    assert speedup(before, after) == 2.0
    assert speedup([3.0, 30.0, 60.0], [1.0, 15.0, 12.0]) == 3.0 != statistics.median([3, 30, 60]) / 12
    assert Timings({"x": before, "y": after}, 1, "cpu").compare("x", "y").speedup == speedup(before, after)


def test_speedup_refuses_times_that_are_not_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        speedup([1.0, 2.0], [1.0])


def test_comparison_holds_both_and_survives_json() -> None:
    found = compare(net(), net(), EXAMPLE, seconds=QUICK)
    assert 0 < found.low <= found.speedup <= found.high
    assert found.before.runs == found.after.runs
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_runs_with_pinned_threads_in_eval_and_inference_mode() -> None:
    seen: set[tuple[int, bool, bool]] = set()
    model = net().train()
    model[1].register_forward_hook(
        lambda module, *_: seen.add((torch.get_num_threads(), module.training, torch.is_inference_mode_enabled()))
    )
    before = torch.get_num_threads()
    latency({"a": model}, EXAMPLE, seconds=QUICK, threads=before + 1)
    assert seen == {(before + 1, False, True)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("fuse", [0, 5], ids=["at once", "later"])
def test_everything_is_put_back_after_an_error(fuse: int) -> None:
    good, bad = net().train(), Broken(fuse).train()
    good[1].eval()
    bad.body[2].eval()
    modes = [m.training for model in (good, bad) for m in model.modules()]
    threads = torch.get_num_threads()
    with pytest.raises((ModelError, RuntimeError), match="burnt"):
        latency({"good": good, "bad": bad}, EXAMPLE, seconds=QUICK, threads=threads + 1)
    assert [m.training for model in (good, bad) for m in model.modules()] == modes
    assert torch.get_num_threads() == threads


def test_a_model_that_does_not_take_the_example_is_named_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"^Model 'bad' does not run on the example: burnt$"):
        latency({"good": net(), "bad": Broken(0)}, EXAMPLE)


def test_a_network_measured_against_itself_keeps_its_modes() -> None:
    model = net().train()
    compare(model, model, EXAMPLE, seconds=QUICK)
    assert all(module.training for module in model.modules())


def test_takes_nested_examples_by_keyword() -> None:
    found = latency({"a": Named()}, (2.0,), {"parts": {"images": [EXAMPLE]}}, seconds=QUICK)
    assert found["a"].median_ms > 0


@pytest.mark.parametrize(
    ("seconds", "threads", "names"),
    [(0, 1, "a"), (1, 0, "a"), (1, 1, ""), (float("nan"), 1, "a"), (float("inf"), 1, "a")],
)
def test_refuses_settings_out_of_range(seconds: float, threads: int, names: str) -> None:
    with pytest.raises(RecipeError):
        latency({name: net() for name in names}, EXAMPLE, seconds=seconds, threads=threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_measures_a_copy_on_a_gpu() -> None:
    model = net()
    found = latency({"a": model}, EXAMPLE, seconds=QUICK, device="cuda")["a"]
    assert found.device == "cuda:0" and found.median_ms > 0
    assert next(model.parameters()).device.type == "cpu"
