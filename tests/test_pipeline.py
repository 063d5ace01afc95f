"""The chapters in order, by Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import ghostify
from ghostify import experiment
from ghostify.errors import DataError, PlanError, RecipeError
from ghostify.finetuning import Progress
from ghostify.finetuning.loop import _Silent
from ghostify.networks import resnet8
from ghostify.recipe import GhostSettings, make_recipe
from ghostify.saving import load_original

IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DIGITS = {
    "model": {"source": "ghostify:resnet8", "args": {"in_channels": 1}, "input": [1, 16, 16]},
    "data": {"source": "digits", "limit": 150, "batch_size": 50},
    "pretrain": {"epochs": 1},
    "finetune": {"epochs": 1, "distill": 0.5},
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
    assert {(swap.s, swap.d) for swap in made.plan.swaps} == {(2, 5)}


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
        "environment.json",
        "plan.yaml",
        "recipe.yaml",
        "report.json",
        "run.json",
        "scan.json",
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
    recipe = make_recipe({"model": {"source": "ghostify:resnet8"}, "data": {"source": "fake", "limit": 20}})
    outcome = experiment.compress(recipe, tmp_path / "run", Listener())
    assert any("synthetic" in note for note in outcome.report.notes)
