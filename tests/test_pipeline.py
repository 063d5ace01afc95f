"""The chapters in order, by Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import ghostify
from ghostify import experiment
from ghostify.errors import DataError, PlanError, RecipeError, RunError
from ghostify.finetuning import Progress
from ghostify.finetuning.tuning import _Silent
from ghostify.networks import resnet8
from ghostify.recipe import GhostSettings, make_recipe, read_yaml
from ghostify.saving import load_original

IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DIGITS = {
    "model": {"source": "ghostify:resnet8", "args": {"in_channels": 1}, "input": [1, 16, 16]},
    "data": {"source": "digits", "limit": 150, "batch_size": 50},
    "pretrain": {"epochs": 1},
    "finetune": {"epochs": 1, "distill": 0.5},
    "budget": {"measure": False},  # a plan that goes by no clock is the same on every machine
}


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def training(self) -> Progress:
        return _Silent()

    @contextmanager
    def counting(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        seen: list[int] = []
        yield seen.append
        assert seen[-1] == total, f"{title} was told to the end"


def test_the_one_liner_equals_the_chapters() -> None:
    module = resnet8().eval()
    traced = ghostify.trace(module, IMAGE)
    planned = ghostify.plan(ghostify.scan(traced), s=4)
    by_chapters = ghostify.rewrite(traced, planned)
    at_once = ghostify.convert(module, IMAGE, s=4)
    assert at_once.plan == by_chapters.plan
    assert torch.equal(at_once.module(IMAGE), by_chapters.module(IMAGE))


@pytest.mark.parametrize("ghost", [GhostSettings(s=3), {"s": 3}, None])
def test_settings_may_be_a_model_a_mapping_or_keywords(ghost: GhostSettings | dict[str, int] | None) -> None:
    changes = {} if ghost else {"s": 3}
    made = ghostify.convert(resnet8(), IMAGE, ghost, **changes)
    assert {swap.s for swap in made.plan.swaps} == {3}


def test_keywords_win_over_given_settings() -> None:
    made = ghostify.convert(resnet8(), IMAGE, GhostSettings(s=3, d=5), s=2)
    assert {(swap.s, swap.cheap.d) for swap in made.plan.swaps} == {(2, 5)}


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'exclude'"):
        ghostify.convert(resnet8(), IMAGE, exclud=["conv1"])


def test_converting_twice_changes_nothing_and_says_so() -> None:
    once = ghostify.convert(resnet8(), IMAGE, min_saving=0, also=["stem"])
    with pytest.raises(PlanError, match="changes nothing"):
        ghostify.convert(once.module, IMAGE, min_saving=0, also=["stem"])


def test_an_experiment_from_start_to_end(tmp_path: Path) -> None:
    listener = Listener()
    recipe = make_recipe(DIGITS)
    outcome = experiment.compress(recipe, tmp_path / "run", listener)
    assert set(outcome.report.accuracy) == {"original", "converted", "finetuned"}
    assert outcome.report.latency is not None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "README.md",
        "environment.json",
        "fit.json",
        "plan.yaml",
        "recipe.yaml",
        "report.json",
        "run.json",
        "scan.json",
        "span.safetensors",
        "training",
        "weights-converted.safetensors",
        "weights-finetuned.safetensors",
        "weights-original.safetensors",
    ]
    image = torch.randn(3, 1, 16, 16)
    loaded = ghostify.load(tmp_path / "run").module
    assert torch.equal(loaded(image), outcome.ghosted.module.eval()(image))
    assert load_original(tmp_path / "run") is not None
    assert any("Training the original" in said for said in listener.said)


def test_two_experiments_with_one_seed_are_equal(tmp_path: Path) -> None:
    first, second = (experiment.compress(make_recipe(DIGITS), tmp_path / name, Listener()) for name in "ab")
    assert first.report.accuracy == second.report.accuracy
    weights = "weights-finetuned.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


def test_a_run_is_trained_further_with_its_original_as_teacher(tmp_path: Path) -> None:
    experiment.compress(make_recipe(DIGITS), tmp_path / "run", Listener())
    settings = {"model": {"source": str(tmp_path / "run")}, "data": DIGITS["data"], "finetune": {"distill": 0.9}}
    outcome = experiment.train(make_recipe(settings), tmp_path / "more", Listener())
    assert set(outcome.report.accuracy) == {"converted", "finetuned"}
    assert load_original(tmp_path / "more") is not None


def rate(folder: Path) -> Any:
    """The learning rate of fine-tuning that a run tells."""
    return read_yaml(folder / "recipe.yaml", RunError, "Recipe")["finetune"]["lr"]


def test_the_default_rate_is_that_of_a_fitted_network_where_it_was_fitted(tmp_path: Path) -> None:
    for how, expected, said in (("data", "auto", "a rate that a test finds"), ("none", 0.02, "a rate of 0.02")):
        values = {
            **DIGITS,
            "fit": {"how": how} if how == "none" else {"how": how, "images": 64},
            "finetune": {"epochs": 1},
        }
        listener = Listener()
        experiment.compress(make_recipe(values), tmp_path / how, listener)
        assert rate(tmp_path / how) == expected
        assert any(f"epochs at {said}" in line for line in listener.said)
        further = {"model": {"source": str(tmp_path / how)}, "data": DIGITS["data"]}
        experiment.train(make_recipe(further), tmp_path / f"{how}-more", Listener())
        assert rate(tmp_path / f"{how}-more") == expected, "also of a run that is trained further"
        assert (ghostify.load(tmp_path / f"{how}-more").fit is None) == (how == "none")
    given = make_recipe({**further, "finetune": {"lr": 0.3}})
    experiment.train(given, tmp_path / "given", Listener())
    assert rate(tmp_path / "given") == 0.3


def test_a_ruinous_rate_leaves_the_network_as_it_was_and_says_so(tmp_path: Path) -> None:
    listener = Listener()
    values = {**DIGITS, "data": {"source": "digits", "batch_size": 50}, "pretrain": {"epochs": 2, "lr": 0.1}}
    outcome = experiment.compress(make_recipe({**values, "finetune": {"epochs": 1, "lr": 3}}), tmp_path, listener)
    accuracy = outcome.report.accuracy
    assert accuracy["finetuned"] == accuracy["converted"]
    harmless = [note for note in outcome.report.notes if note.startswith("Fine-tuning made the network no better")]
    assert len(harmless) == 1 and "lower lr (now 3)" in harmless[0] and "143 images held out of train" in harmless[0]
    assert harmless[0] in listener.said and harmless[0] in str(outcome.report)
    weights = [(tmp_path / f"weights-{state}.safetensors").read_bytes() for state in ("converted", "finetuned")]
    assert weights[0] == weights[1]


def test_checkpoints_that_are_all_damaged_are_told_before_the_long_work(tmp_path: Path) -> None:
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "epoch-0001.safetensors").write_bytes(b"damaged")
    listener = Listener()
    with pytest.raises(RunError, match="is damaged"):
        experiment.compress(make_recipe(DIGITS), tmp_path, listener)
    assert not any("Training" in said or "Fitting" in said for said in listener.said)


def test_a_teacher_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    made = ghostify.convert(resnet8(in_channels=1), torch.randn(1, 1, 16, 16))
    source = ghostify.recipe.ModelSettings(source="ghostify:resnet8", args={"in_channels": 1})
    ghostify.save(made, tmp_path / "run", model=source)
    settings = {"model": {"source": str(tmp_path / "run")}, "data": DIGITS["data"], "finetune": {"distill": 0.9}}
    with pytest.raises(RecipeError, match="distill"):
        experiment.train(make_recipe(settings), tmp_path / "more", Listener())


def test_training_without_images_is_an_error(tmp_path: Path) -> None:
    recipe = make_recipe({"model": DIGITS["model"], "finetune": {"epochs": 1}})
    with pytest.raises(DataError, match="--data"):
        experiment.compress(recipe, tmp_path / "run", Listener())


def test_synthetic_images_are_called_synthetic(tmp_path: Path) -> None:
    values = {"model": {"source": "ghostify:resnet8"}, "data": {"source": "fake", "limit": 20}}
    recipe = make_recipe({**values, "budget": {"measure": False}})
    outcome = experiment.compress(recipe, tmp_path / "run", Listener())
    assert any("synthetic" in note for note in outcome.report.notes)
