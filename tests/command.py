"""The command line as the tests run it: in this process, in an empty folder with a module of the user's own in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from ghostify.cli import main

TINY = """
import torch
from torch import nn

def tiny(classes=10, width=32):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )

def no_convolutions():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

class Resisting(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = tiny()[:6]
        self.loose = nn.Conv2d(32, 8, 1)

    def forward(self, x):
        y = torch.vmap(lambda one: one / (1 + one.abs().amax()))(self.backbone(x))
        y = self.loose(y).flatten()
        return y[y > 0]

def resisting():
    return Resisting()

def not_a_model():
    return 3
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``ghostify`` in this process, in an empty folder that holds the module ``mine``."""
    (tmp_path / "mine.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def run(*args: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["ghostify", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Answer(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def images(tmp_path: Path) -> str:
    """A folder of 24 small real JPEG files in two classes, as ``folder:`` takes it."""
    for split in ("train", "test"):
        for shade, name in ((40, "dark"), (200, "light")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (8, 8), (shade + number, shade, shade)).save(folder / f"{number}.jpg")
    return "folder:images"


def refused(answer: Answer, *words: str, code: int = 1) -> None:
    """One line on stderr with these words in it, nothing on stdout."""
    assert answer.code == code, answer
    lines = [line for line in answer.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, answer.err
    assert "Traceback" not in answer.err
    assert not answer.out
    for word in words:
        assert word in lines[0], lines[0]
