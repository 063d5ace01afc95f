"""What the command says of weights and images, where a number alone would mislead."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ghostify.cli import main
from ghostify.networks import resnet8

NETS = """
from ghostify.networks import resnet8
def net(classes=10):
    return resnet8(num_classes=classes)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a network, images of two classes, and a checkpoint of two networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "spoken", raising=False)
    (tmp_path / "spoken.py").write_text(NETS)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(6):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    torch.manual_seed(0)
    one, other = resnet8(), resnet8()
    torch.save({"model": one.state_dict(), "model_ema": other.state_dict()}, tmp_path / "both.pt")
    torch.save({"model.conv1.weight": nn.Conv2d(3, 16, 3).weight}, tmp_path / "little.pt")
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """What a command printed on stdout and on stderr, with single spaces."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ghostify", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    printed = capsys.readouterr()
    assert stop.value.code in (0, None), printed.err
    return printed.out, " ".join(printed.err.split())


def test_fewer_classes_than_outputs_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = ran(capsys, "eval", "spoken:net", "--data", "folder:images")
    assert "10 outputs and the data 2 classes" in err and "accuracy" in out
    out, _ = ran(capsys, "eval", "spoken:net", "--data", "folder:images", "--json")
    assert "10 outputs and the data 2 classes" in json.loads(out)["notes"][0]
    out, _ = ran(capsys, "compress", "spoken:net", "--data", "folder:images", "--fit", "none", "--json")
    assert any("10 outputs and the data 2 classes" in note for note in json.loads(out)["notes"])


def test_as_many_classes_as_outputs_are_not(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "model.args={classes: 2}", "--data", "folder:images", "--json")
    assert "notes" not in json.loads(ran(capsys, "eval", "spoken:net", *settings)[0])


@pytest.mark.parametrize("verb", ["scan", "plan", "eval", "compress"])
def test_every_verb_says_which_weights_were_taken(here: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    more = {"eval": ("--data", "folder:images"), "plan": ("--min-saving", "0"), "compress": ("--min-saving", "0")}
    command = (verb, "spoken:net", "--input", "3,32,32", "--weights", "both.pt", *more.get(verb, ()))
    assert "'model_ema' were taken" in ran(capsys, *command)[1]
    assert "were taken" not in ran(capsys, *command, "--weights-key", "model")[1]


def test_what_does_not_fit_is_left_where_asked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("scan", "spoken:net", "--input", "3,32,32", "--weights", "little.pt", "--weights-strict", "no")
    assert "1 entry that fits was loaded" in ran(capsys, *command)[1]
