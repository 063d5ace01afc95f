"""Run folders: what is written comes back bit by bit; what was changed or half-written does not come back at all."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ghostify
from ghostify import saving
from ghostify.errors import ModelError, RunError
from ghostify.networks import resnet8
from ghostify.recipe import ModelSettings
from ghostify.saving import installing, load_original, read_report, read_run, reserve

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def ghosted(module: nn.Module | None = None) -> ghostify.Ghosted:
    torch.manual_seed(0)
    return ghostify.convert(module or resnet8(), IMAGE[:1])


def outputs(module: nn.Module) -> torch.Tensor:
    return module.eval()(IMAGE).detach()


def test_outputs_come_back_bit_by_bit(tmp_path: Path) -> None:
    made = ghosted()
    ghostify.save(made, tmp_path / "run", model="ghostify:resnet8")
    loaded = ghostify.load(tmp_path / "run")
    assert torch.equal(outputs(loaded.module), outputs(made.module))
    assert loaded.plan == made.plan
    assert (loaded.before, loaded.after) == (made.before, made.after)


@pytest.mark.parametrize("cheap", ["pointwise", "pointwise 2", "depthwise 3 + pointwise", "depthwise 1 + pointwise 2"])
def test_cheap_operations_come_back_with_the_plan(tmp_path: Path, cheap: str) -> None:
    made = ghostify.convert(resnet8(), IMAGE[:1], cheap=cheap)
    for parameter in made.module.parameters():  # as if trained
        nn.init.normal_(parameter, std=0.1)
    ghostify.save(made, tmp_path / "run", model="ghostify:resnet8", report=ghostify.compare(made))
    loaded = ghostify.load(tmp_path / "run")
    assert torch.equal(outputs(loaded.module), outputs(made.module))
    assert loaded.plan == made.plan and {str(swap.cheap) for swap in loaded.plan.swaps} == {cheap}
    assert read_report(tmp_path / "run") == ghostify.compare(made)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    ghostify.save(ghosted(), tmp_path / "run", model="ghostify:resnet8", original=resnet8())
    suffixes = {path.suffix for path in (tmp_path / "run").iterdir()}
    assert suffixes == {".json", ".yaml", ".safetensors", ".md"}


def test_half_precision_comes_back_as_half_precision(tmp_path: Path) -> None:
    made = ghosted()
    made.module.to(torch.bfloat16)
    ghostify.save(made, tmp_path / "run", model="ghostify:resnet8")
    loaded = ghostify.load(tmp_path / "run").module
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), made.module.parameters(), strict=True))


def test_a_run_without_a_source_needs_the_module(tmp_path: Path) -> None:
    original = resnet8()
    made = ghosted(original)
    ghostify.save(made, tmp_path / "run")
    with pytest.raises(RunError, match="without a model source"):
        ghostify.load(tmp_path / "run")
    other_weights = resnet8()
    loaded = ghostify.load(tmp_path / "run", model=other_weights)
    assert torch.equal(outputs(loaded.module), outputs(made.module))


def test_another_module_does_not_fit(tmp_path: Path) -> None:
    ghostify.save(ghosted(), tmp_path / "run", model="ghostify:resnet8")
    with pytest.raises(RunError, match="does not fit"):
        ghostify.load(tmp_path / "run", model=resnet8(num_classes=7))


@pytest.mark.parametrize("name", ["plan.yaml", "scan.json", "weights-converted.safetensors"])
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    ghostify.save(ghosted(), tmp_path / "run", model="ghostify:resnet8")
    path = tmp_path / "run" / name
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.raises(RunError, match=name) as refused:
        ghostify.load(tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_a_damaged_report_is_refused(tmp_path: Path) -> None:
    made = ghosted()
    ghostify.save(made, tmp_path / "run", model="ghostify:resnet8", report=ghostify.compare(made))
    assert read_report(tmp_path / "run") == ghostify.compare(made)
    path = tmp_path / "run" / "report.json"
    path.write_text(path.read_text().replace('"macs": ', '"macs": 1'))
    with pytest.raises(RunError, match=r"report\.json"):
        read_report(tmp_path / "run")


def test_a_key_that_is_missing_in_a_run_file_is_named(tmp_path: Path) -> None:
    ghostify.save(ghosted(), tmp_path / "run", model="ghostify:resnet8")
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"state"', '"stat"'))
    with pytest.raises(RunError, match=r"run\.json' cannot be read: .*'(stat|state)'"):
        ghostify.load(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99'])
def test_a_broken_run_file_is_one_line(tmp_path: Path, text: str) -> None:
    ghostify.save(ghosted(), tmp_path / "run", model="ghostify:resnet8")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json") as refused:
        ghostify.load(tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_a_run_of_a_later_format_is_refused(tmp_path: Path) -> None:
    ghostify.save(ghosted(), tmp_path / "run", model="ghostify:resnet8")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(RunError, match="format 2"):
        ghostify.load(tmp_path / "run")


def test_a_crash_while_updating_leaves_the_run_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuned weights that could not all be written: the converted network is still there, whole."""
    made = ghosted()
    before = outputs(made.module)
    ghostify.save(made, tmp_path / "run", model="ghostify:resnet8")
    trained = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in trained.module.parameters():
            parameter.add_(1)

    def full(module: nn.Module, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.runs, "write_weights", full)
    with pytest.raises(RunError, match="No space left"):
        ghostify.save(trained, tmp_path / "run", model="ghostify:resnet8", state="finetuned")
    assert torch.equal(outputs(ghostify.load(tmp_path / "run").module), before)
    assert not list((tmp_path / "run").glob(".*"))


def test_an_update_keeps_what_was_there(tmp_path: Path) -> None:
    made = ghosted()
    ghostify.save(made, tmp_path / "run", model="ghostify:resnet8", original=resnet8())
    ghostify.save(made, tmp_path / "run", model="ghostify:resnet8", state="finetuned")
    run = read_run(tmp_path / "run")
    assert run.weights == "weights-finetuned.safetensors"
    assert {"weights-converted.safetensors", "weights-original.safetensors"} <= set(run.files)
    assert load_original(tmp_path / "run") is not None


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("state", ["converted", "finetuned"])
def test_another_run_is_not_overwritten_unless_that_is_said(tmp_path: Path, state: str) -> None:
    """And then nothing of it is left: no report, no original's weights."""
    made, other = ghosted(), ghostify.convert(resnet8(num_classes=7), IMAGE[:1])
    folder = tmp_path / "run"
    report = ghostify.compare(made)
    ghostify.save(made, folder, model="ghostify:resnet8", report=report, original=resnet8(), state=state)
    before = everything(folder)
    source = ModelSettings(source="ghostify:resnet8", args={"num_classes": 7})
    for again in ("converted", "finetuned"):
        with pytest.raises(RunError, match=r"holds a run already.*overwrite=True") as refused:
            ghostify.save(other, folder, model=source, state=again)
        assert "\n" not in str(refused.value) and everything(folder) == before
    ghostify.save(other, folder, model=source, overwrite=True)
    files = {"run.json", "README.md", "plan.yaml", "scan.json", "environment.json", "weights-converted.safetensors"}
    assert set(everything(folder)) == files and set(read_run(folder).files) == files - {"run.json"}
    assert torch.equal(outputs(ghostify.load(folder).module), outputs(other.module))
    assert load_original(folder) is None


@pytest.mark.parametrize("name", ["plan.yaml", "scan.json", "report.json", "environment.json", "run.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_no_runs_is_never_overwritten(tmp_path: Path, name: str, overwrite: bool) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("precious")
    (folder / "notes.txt").write_text("precious, too")
    before = everything(folder)
    made = ghosted()
    report = ghostify.compare(made)
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        ghostify.save(made, folder, model="ghostify:resnet8", report=report, overwrite=overwrite)
    assert everything(folder) == before


def test_a_run_goes_beside_files_of_its_user(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    ghostify.save(ghosted(), tmp_path, model="ghostify:resnet8")
    ghostify.save(ghosted(), tmp_path, model="ghostify:resnet8", overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert "notes.txt" not in read_run(tmp_path).files


class Killed(BaseException):
    """The process died here."""


@pytest.mark.parametrize("at", range(9))
def test_a_process_that_dies_while_it_overwrites_leaves_one_of_the_two_runs(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file took its name last, with no chance to tidy up; and the next save goes through."""
    made, other = ghosted(), ghostify.convert(resnet8(num_classes=7), IMAGE[:1], s=4)
    source = ModelSettings(source="ghostify:resnet8", args={"num_classes": 7})
    folder = tmp_path / "run"
    report = ghostify.compare(made)
    ghostify.save(made, folder, model="ghostify:resnet8", report=report)
    count = iter(range(100))
    replace = Path.replace

    def dying(path: Path, target: Path) -> Path:
        if next(count) == at:
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        patched.setattr(installing.Installation, "undo", lambda self: None)
        patched.setattr(ghostify.files.Made, "undo", lambda self: None)
        with contextlib.suppress(Killed):
            ghostify.save(other, folder, model=source, report=ghostify.compare(other), overwrite=True)
    found = ghostify.load(folder)
    assert found.plan == (made.plan if at < 7 else other.plan)
    assert torch.equal(outputs(found.module), outputs((made if at < 7 else other).module))
    assert read_report(folder) == ghostify.compare(made if at < 7 else other)
    ghostify.save(other, folder, model=source, overwrite=True)
    assert torch.equal(outputs(ghostify.load(folder).module), outputs(other.module))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("at", range(7))
def test_a_process_that_dies_while_it_saves_first_can_save_again(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, folder = ghosted(), tmp_path / "run"
    count = iter(range(100))
    replace = Path.replace

    def dying(path: Path, target: Path) -> Path:
        if next(count) == at:
            raise Killed
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dying)
        patched.setattr(installing.Installation, "undo", lambda self: None)
        patched.setattr(ghostify.files.Made, "undo", lambda self: None)
        with contextlib.suppress(Killed):
            ghostify.save(made, folder, model="ghostify:resnet8")
    ghostify.save(made, folder, model="ghostify:resnet8", overwrite=saving.is_run(folder))
    assert torch.equal(outputs(ghostify.load(folder).module), outputs(made.module))
    assert not list(folder.glob(".*"))


def test_a_source_found_from_another_folder_is_told_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "home" / "nets_at_home.py").write_text("from ghostify.networks import resnet8 as build")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.syspath_prepend(tmp_path / "home")
    ghostify.save(ghosted(), "run", model="nets_at_home:build")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "nets_at_home")
    monkeypatch.chdir(tmp_path / "away")
    with pytest.raises(ModelError, match=r"no Python module 'nets_at_home'.*The run was made in .*home.*load it from"):
        ghostify.load(tmp_path / "home" / "run")
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.syspath_prepend(tmp_path / "home")
    assert ghostify.load("run").plan


def test_reserved_folders_never_collide(tmp_path: Path) -> None:
    folders = [reserve(tmp_path / "a" / "run") for _ in range(3)]
    assert [folder.name for folder in folders] == ["run", "run-2", "run-3"]


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3, padding=1)
            self.body = nn.Conv2d(32, 32, 3, padding=1)
            self.first = nn.Linear(32, 32)
            self.second = nn.Linear(32, 32)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(self.body(self.stem(x)).mean((2, 3))))

    made = ghosted(Tied())
    ghostify.save(made, tmp_path / "run")
    loaded = ghostify.load(tmp_path / "run", model=Tied()).module
    assert loaded.get_parameter("first.weight") is loaded.get_parameter("second.weight")
    assert torch.equal(outputs(loaded), outputs(made.module))


# -- the model card --------------------------------------------------------------------------------------------


def test_the_model_card_tells_what_the_folder_holds(tmp_path: Path) -> None:
    saved = ghosted()
    folder = ghostify.save(saved, tmp_path / "run", model="ghostify:resnet8")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert str(ghostify.compare(saved).summary()) in card
    assert "`ghostify:resnet8`" in card
    others = {path.name for path in folder.iterdir()} - {"README.md", "run.json"}
    assert others == set(re.findall(r"^\| `(.*?)` \|", card, re.MULTILINE))


def test_the_model_cards_lines_load_a_copied_folder(tmp_path: Path) -> None:
    saved = ghosted()
    ghostify.save(saved, tmp_path / "run", model="ghostify:resnet8")
    copy = shutil.copytree(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    card = (copy / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(lines[0].replace("PATH OF THIS FOLDER", str(copy)), names)
    assert torch.equal(outputs(names["network"]), outputs(saved.module))


def test_a_readme_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    with pytest.raises(RunError, match=r"README\.md"):
        ghostify.save(ghosted(), folder, model="ghostify:resnet8")
    assert (folder / "README.md").read_text() == "mine"
