"""Only what a call made may ever be removed: files of the user survive every failing verb, wherever it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ghostify import experiment
from ghostify.cli.app import app
from ghostify.cli.runs import RunInterrupted
from ghostify.errors import GhostifyError

TINY = """
from torch import nn

def tiny():
    convs = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
"""
RECIPE = """
model: {source: "tiny_net:tiny", input: [3, 8, 8]}
data: {source: fake, limit: 16, batch_size: 8}
fit: {images: 8}
finetune: {epochs: 1, warmup: 0}
"""
MISSING = RECIPE.replace("source: fake", 'source: "folder:nowhere"')

Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command in a folder with a module ``tiny_net``."""
    (tmp_path / "tiny_net.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    return lambda *args: CliRunner().invoke(app, list(args))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def users_folder(path: Path, recipe: str = MISSING) -> dict[str, bytes]:
    """A folder a person made, with files of their own and a recipe to go on with; what it holds."""
    (path / "finetune").mkdir(parents=True)
    (path / "finetune" / "thoughts.txt").write_text("precious, too")
    (path / "notes.txt").write_text("precious")
    (path / "recipe.yaml").write_text(recipe)
    return contents(path)


@pytest.mark.parametrize("verb", ["compress", "finetune"])
@pytest.mark.parametrize("problem", [GhostifyError("no"), ValueError("a defect"), KeyboardInterrupt(), MemoryError()])
def test_a_folder_to_go_on_with_survives_what_goes_wrong(
    cli: Cli, verb: str, problem: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = users_folder(Path("exp"), RECIPE)
    monkeypatch.setattr(experiment, "prepare", failing(problem))
    result = cli(verb, "--resume", "exp")
    assert result.exit_code != 0
    assert contents(Path("exp")) == before


@pytest.mark.parametrize("verb", ["compress", "finetune"])
def test_a_folder_to_go_on_with_survives_missing_data(cli: Cli, verb: str) -> None:
    before = users_folder(Path("exp"))
    result = cli(verb, "--resume", "exp")
    assert isinstance(result.exception, GhostifyError)
    assert contents(Path("exp")) == before


def test_a_finished_run_leaves_foreign_files_beside_its_checkpoints(cli: Cli) -> None:
    before = users_folder(Path("exp"), RECIPE)
    assert cli("compress", "--resume", "exp").exit_code == 0
    after = contents(Path("exp"))
    assert {name: after.get(name) for name in before if name != "recipe.yaml"} == {
        name: content for name, content in before.items() if name != "recipe.yaml"
    }
    assert not list(Path("exp").rglob("state*.safetensors"))


VERBS = {
    "compress": ("compress", "tiny_net:tiny", "--input", "3,8,8", "--data", "fake", "-o", "new/run"),
    "finetune": ("finetune", "tiny_net:tiny", "--input", "3,8,8", "--data", "fake", "-o", "new/run"),
    "analyze": ("analyze", "tiny_net:tiny", "--input", "3,8,8", "--data", "fake", "-o", "new/run"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_new_folder_goes_when_nothing_came_of_it(cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the folders above it that were made for it."""
    monkeypatch.setattr(experiment, "prepare", failing(GhostifyError("no")))
    assert cli(*VERBS[verb]).exit_code == 1
    assert not Path("new").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_person_puts_into_a_new_folder_survives(cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any name, changed files of ours among them, and the folders they lie in."""

    def meanwhile(*args: Any, **kwargs: Any) -> None:
        Path("new/run/deep").mkdir()
        for name in ("notes.txt", "deep/notes.txt", "recipe.yaml"):
            Path("new/run", name).write_text("precious")
        raise GhostifyError("no")

    monkeypatch.setattr(experiment, "prepare", meanwhile)
    assert cli(*VERBS[verb]).exit_code == 1
    kept = {"notes.txt": b"precious", "deep/notes.txt": b"precious", "recipe.yaml": b"precious"}
    assert contents(Path("new/run")) == kept


def test_an_interrupted_run_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before anything was trained: what was asked for is kept."""
    with monkeypatch.context() as patched:
        patched.setattr(experiment, "prepare", failing(KeyboardInterrupt()))
        result = cli(*VERBS["compress"])
    assert isinstance(result.exception, RunInterrupted)
    assert "ghostify compress --resume new/run" in str(result.exception)
    assert cli("compress", "--resume", "new/run").exit_code == 0


def failing(problem: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise problem

    return fail
