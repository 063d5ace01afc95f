"""The Python API given something else: one line of the right kind of error, or what was plainly meant is done."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ghostify
from ghostify import errors
from ghostify.arguments import takes
from ghostify.measuring import agreement, evaluate
from ghostify.recipe import AnalysisSettings, FitSettings, GhostSettings, TrainSettings
from ghostify.saving import load, save


class Net(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def build() -> nn.Module:
    return Net()


@pytest.fixture(scope="module")
def things() -> dict[str, Any]:
    """The nouns, of a small network, and what people have at hand, by the names that the calls below use."""
    torch.manual_seed(0)
    model, x, images = Net(), torch.randn(1, 3, 8, 8), torch.randn(32, 3, 8, 8)
    traced = ghostify.trace(model, x)
    scan = ghostify.scan(traced)
    plan = ghostify.plan(scan, min_saving=0)
    dataset = TensorDataset(images, torch.arange(32) % 10)
    return {
        "model": model,
        "x": x,
        "images": images,
        "traced": traced,
        "scanned": scan,
        "planned": plan,
        "ghosted": ghostify.rewrite(traced, plan),
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=8),
        "Net": Net,
        "build": build,
        "evaluate": evaluate,
        "agreement": agreement,
        "GhostSettings": GhostSettings,
        "FitSettings": FitSettings,
        "TrainSettings": TrainSettings,
        "AnalysisSettings": AnalysisSettings,
        **{name: getattr(ghostify, name) for name in ghostify.__all__},
    }


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            "finetune(model, loader, TrainSettings())",
            "DataError",
            "finetune takes; DataLoader; load_data; train_loader",
        ),
        ("finetune(model, dataset, TrainSettings())", "DataError", "TensorDataset; load_data"),
        ("finetune(model, images, TrainSettings())", "DataError", "Tensor; load_data"),
        ("finetune(model, None, TrainSettings())", "DataError", "None; load_data"),
        ("finetune(model, 'digits', TrainSettings())", "DataError", "str; load_data"),
        ("finetune(Net, loader, TrainSettings())", "TraceError", "the class Net itself; Net(…)"),
        ("finetune(model, loader)", "GhostifyError", "finetune; 'settings'; finetune(model, data"),
        ("finetune(model, loader, epoch=3)", "GhostifyError", "finetune"),
        ("convert(model, x, fit='wieghts')", "RecipeError", "'wieghts'; Did you mean 'weights'"),
        ("convert(model, x, fit=3)", "RecipeError", "FitSettings(…); 3"),
        ("convert(model, x, 'cghost')", "RecipeError", "Did you mean 'c-ghost'"),
        ("convert(model, x, 2)", "RecipeError", "GhostSettings(…); 2"),
        ("convert(model, x, FitSettings())", "RecipeError", "GhostSettings(…); a FitSettings"),
        ("convert(model)", "GhostifyError", "convert; 'example'; convert(model, example"),
        ("convert(model, None)", "TraceError", "The example is None; torch.randn"),
        ("convert(model, [x])", "TraceError", "a list; tuple"),
        ("convert(model, (1, 3, 8, 8))", "TraceError", "torch.randn(1, 3, 8, 8)"),
        ("convert(model, torch.Size([1, 3, 8, 8]))", "TraceError", "torch.randn(1, 3, 8, 8)"),
        ("convert(model, '3,8,8')", "TraceError", "'3,8,8'; torch.randn"),
        ("convert(model, x.numpy())", "TraceError", "ndarray; torch.randn"),
        ("convert(model, loader)", "TraceError", "a DataLoader; torch.randn"),
        ("convert(Net, x)", "TraceError", "the class Net itself; torch.nn.Module; Net(…)"),
        ("convert(build, x)", "TraceError", "the function build; build(…)"),
        ("convert(model.state_dict(), x)", "TraceError", "a state dict; load_state_dict"),
        ("convert('torchvision:resnet18', x)", "TraceError", "command line"),
        ("convert(torch.nn, x)", "TraceError", "the Python module torch.nn"),
        ("convert(x, model)", "TraceError", "a tensor of 1x3x8x8"),
        ("convert_parts(Net, x)", "TraceError", "Net(…)"),
        ("convert_parts(model)", "GhostifyError", "'example'"),
        ("trace(Net, x)", "TraceError", "Net(…)"),
        ("trace(model, None)", "TraceError", "torch.randn"),
        ("scan(model)", "TraceError", "The example is None"),
        ("scan(planned)", "TraceError", "a Plan"),
        ("plan(model)", "PlanError", "a Net; ghostify.scan(model, example)"),
        ("plan(scanned, 4)", "RecipeError", "GhostSettings(…); 4"),
        ("rewrite(model, planned)", "TraceError", "a Net; ghostify.trace(model, example)"),
        ("rewrite(planned, traced)", "TraceError", "a Plan; ghostify.trace"),
        ("rewrite(traced, scanned)", "PlanError", "a Scan; ghostify.plan"),
        ("rewrite(traced, 'plan.yaml')", "PlanError", "'plan.yaml'; ghostify.read_plan"),
        ("rewrite_fitted(model, planned, images)", "TraceError", "ghostify.trace"),
        ("rewrite_fitted(traced, planned, images, 'dta')", "RecipeError", "Did you mean 'data'"),
        ("read_plan(3)", "PlanError", "A path; 3"),
        ("read_plan(planned)", "PlanError", "A path; a Plan"),
        ("compare(model)", "RewriteError", "a Net; ghostify.convert(model, example)"),
        ("compare(ghosted, model)", "GhostifyError", "A Comparison; a Net"),
        ("compare(ghosted, accuracy=0.5)", "DataError", "0.5; evaluate"),
        ("save(model, 'run')", "RewriteError", "a Net; ghostify.convert"),
        ("save(ghosted)", "GhostifyError", "'folder'; save(ghosted, folder"),
        ("save(ghosted, None)", "RunError", "A path; None"),
        ("save('run', ghosted)", "RewriteError", "'run'"),
        ("save(ghosted, 'run', model=model)", "RunError", "a Net; torchvision:resnet50"),
        ("save(ghosted, 'run', report='x')", "RunError", "A Report; 'x'; ghostify.compare"),
        ("save(ghosted, 'run', recipe={})", "RunError", "A Recipe; a dict"),
        ("load(123)", "RunError", "A path; 123"),
        ("load(model)", "RunError", "A path; a Net"),
        ("load('run', Net)", "TraceError", "Net(…)"),
        ("analyze(model, loader)", "DataError", "a DataLoader; one tensor"),
        ("analyze(model, [images[0]] * 9)", "DataError", "a list; torch.stack"),
        ("analyze(Net, images)", "TraceError", "Net(…)"),
        ("analyze(model, images, 3)", "RecipeError", "AnalysisSettings(…)"),
        ("evaluate(model, dataset)", "DataError", "a TensorDataset; DataLoader("),
        ("evaluate(model, images)", "DataError", "DataLoader("),
        ("evaluate(model, loader, device='gpu')", "GhostifyError", "'gpu'; Did you mean 'cuda'"),
        ("evaluate(model, loader, device='cdua:0')", "GhostifyError", "'cdua:0'; Did you mean 'cuda'"),
        ("evaluate(model, loader, device=3.5)", "GhostifyError", "'3.5'; cuda:1"),
        ("agreement(model, Net, loader)", "TraceError", "Net(…)"),
        ("GhostSettings(s=1)", "RecipeError", "s = 1"),
        ("TrainSettings(epochs=-1)", "RecipeError", "epochs = -1"),
        ("FitSettings(hwo='data')", "RecipeError", "Did you mean 'how'"),
        ("Recipe(model={'source': 'any'}, seed='x')", "RecipeError", "seed = 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) and "(" in value else "",
)
def test_a_wrong_argument_is_one_line_that_says_what_was_given_and_what_to_give(
    things: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, call: str, kind: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.GhostifyError) as problem:
        eval(call, {**things, "torch": torch})
    assert type(problem.value).__name__ == kind
    assert "\n" not in str(problem.value) and str(problem.value)[-1] in ".?"
    for word in words.split("; "):
        assert word in str(problem.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "same_as"),
    [
        ("convert(model, x, min_saving=0, fit='none')", "convert(model, x, min_saving=0)"),
        ("convert(model, x, 'width')", "convert(model, x, method='width')"),
        ("convert(model, x, {'min_saving': 0})", "convert(model, x, min_saving=0)"),
        ("convert(model, x, min_saving=0, include='2')", "convert(model, x, min_saving=0, include=['2'])"),
        ("convert(traced, x, min_saving=0)", "convert(model, x, min_saving=0)"),
        ("convert(ghosted, x, min_saving=0, also='stem')", "convert(ghosted.module, x, min_saving=0, also=['stem'])"),
        ("rewrite(traced, planned)", "convert(model, x, min_saving=0)"),
    ],
)
def test_what_is_plainly_meant_is_done(things: dict[str, Any], call: str, same_as: str) -> None:
    one, other = eval(call, things), eval(same_as, things)
    assert one.plan == other.plan


def test_nouns_are_taken_where_their_networks_are_meant(things: dict[str, Any]) -> None:
    ghosted, loader = things["ghosted"], things["loader"]
    assert evaluate(ghosted, loader) == evaluate(ghosted.module, loader)
    assert ghostify.plan(things["traced"], min_saving=0) == things["planned"]
    assert ghostify.plan(things["scanned"], {"min_saving": 0}) == things["planned"]
    assert ghostify.scan(ghosted, things["x"]) == ghostify.scan(ghosted.module, things["x"])


def test_a_word_or_a_dict_are_settings_for_a_fit(things: dict[str, Any]) -> None:
    traced, plan, images = things["traced"], things["planned"], things["images"]
    by_word, by_dict = (
        ghostify.rewrite_fitted(traced, plan, images, settings) for settings in ("data", {"how": "data"})
    )
    assert all(torch.equal(a, b) for a, b in zip(by_word.module.parameters(), by_dict.module.parameters(), strict=True))


def test_a_checked_function_keeps_its_name_its_words_and_its_signature() -> None:
    for function in (ghostify.convert, ghostify.trace, ghostify.plan, save, load):
        assert function.__doc__ and function.__module__.startswith("ghostify.")
        assert next(iter(inspect.signature(function).parameters)) in ("model", "module", "scan", "ghosted", "folder")


def test_a_type_error_from_within_is_not_taken_for_a_wrong_call() -> None:
    @takes()
    def broken(value: int) -> int:
        return value + "1"  # type: ignore[operator]

    with pytest.raises(TypeError, match="unsupported operand"):
        broken(1)
