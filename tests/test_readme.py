"""The README is true: each of its blocks runs, and prints the figures that stand there.

What the clock gives is only asked to be a number.  Other machines add in another order, so shares (accuracy, agreement)
may be off by two points, and which epoch of a training is kept is not compared.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from command import Cli
from PIL import Image
from typer.main import get_command

from ghostify.cli.app import app
from ghostify.networks import resnet14
from ghostify.tables import quantity, ratio

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SHORTER = {"sweep": ("--no-neighbours", "--calibration", "16")}
"""What commands are given besides, for they would take minutes; tests of their own see to what that leaves out."""

MYPACKAGE = """
from torch import nn
from ghostify.networks import resnet14

def build():
    return nn.Sequential(nn.AvgPool2d(7), resnet14(num_classes=2))
"""


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block, whose lines may go on behind a backslash."""
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]


def as_told(printed: str) -> tuple[str, list[float]]:
    """(the words and figures of what was printed, its shares in percent), without what differs from run to run.

    Those are times and the ratio of times, which epoch was kept, and how lines are broken and columns filled.
    """
    text = " ".join(printed.split())
    text = re.sub(r"(Training the original|Fine-tuning)( made|:).*?(?= Fine-tuning| In this table)", r"\1 #", text)
    text = re.sub(r"[\d.]+ ms(?: [\d.]+x)?", "# ms", text)  # of the last time, with how many times faster
    text = re.sub(r"in \d+ s\b", "in # s", text)
    text = re.sub(r"--+", "--", text)
    shares = [float(share) for share in re.findall(r"([\d.]+) ?%", text)]
    return re.sub(r"[\d.]+ ?%", "#%", text), shares


def test_the_versions_of_the_readme_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"Python": project["requires-python"]}
    needed |= {name: version for name, _, version in (line.partition(">=") for line in project["dependencies"])}
    for name in ("Python", "torch", "torchvision"):
        assert f"{name} {needed[name].removeprefix('>=')} or newer" in section("Install")


def test_the_table_of_what_to_expect_has_the_counts_that_its_commands_give(cli: Cli) -> None:
    """A row for each command, in their order."""
    (block,) = blocks(section("What to expect"), "sh")
    rows = [row for row in section("What to expect").splitlines() if row.startswith("| ")][1:]
    for row, (_, script, network, *settings) in zip(rows, commands(block), strict=True):
        assert (ROOT / script).is_file()
        changes = [word for setting in settings for word in ("--set", f"ghost.{setting}")]
        plan = json.loads(cli("plan", network, *changes, "--json").out)
        before, after = plan["before"]["macs"], plan["after"]["macs"]
        assert f"{quantity(before)} → {quantity(after)} ({ratio(before, after)} fewer)" in row
        assert len(re.findall(r"\| \d\.\d\dx(?: faster|: no gain)", row)) == 2


def test_the_accuracy_to_expect_stands_in_the_table_it_is_from() -> None:
    (sentence,) = re.findall(r"On CIFAR-10 .*?\.md\)", section("What to expect"), re.DOTALL)
    page = (ROOT / re.findall(r"\((\S*\.md)\)", sentence)[0]).read_text(encoding="utf-8")
    told = re.findall(r"\d\d\.\d\d", sentence)
    assert len(told) == 2
    assert [share for share in told if share not in page] == []


@pytest.fixture
def slow_model(tmp_path: Path) -> None:
    """What the day begins with: code, a checkpoint, and images of two classes."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage/models.py").write_text(MYPACKAGE)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(7), resnet14(num_classes=2))
    torch.save(network.state_dict(), tmp_path / "checkpoint.pt")
    for split, count in (("train", 16), ("test", 4)):
        for shade, name in ((40, "dark"), (200, "light")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (shade + number, shade, shade - number)).save(folder / f"{number}.jpg")


@pytest.mark.usefixtures("slow_model")
def test_the_day_with_a_slow_model_can_be_spent(cli: Cli, tmp_path: Path) -> None:
    for block in blocks(section("A day with a slow model"), "sh"):
        for name, *words in commands(block):
            assert name == "ghostify"
            answer = cli(*words, *SHORTER.get(words[0], ()))
            assert answer.code == 0, answer.err
            assert answer.out
    assert (tmp_path / "runs/mine/run.json").is_file()


def test_the_python_runs_and_prints_what_stands_behind_it(tmp_path: Path) -> None:
    (block,) = blocks(section("In Python"), "python")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = [said for said in re.findall(r"^print\(.*?\)  # (.*)$", block, re.MULTILINE) if re.search(r"\d", said)]
    assert figures
    assert all(said in done.stdout for said in figures), done.stdout


def command_of(line: str) -> list[str]:
    """The arguments of a line of the demo: of ``ghostify`` in its place, or of what the Makefile runs for a target."""
    program, *words = shlex.split(line)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return shlex.split(re.findall(rf"^{words[0]}:.*\n\t\$\(BIN\)/ghostify (.*)$", makefile, re.MULTILINE)[0])
    assert program == ".venv/bin/ghostify"
    return words


def test_the_demo_prints_what_is_shown(cli: Cli) -> None:
    """Each command with what stands below it."""
    lines, shown = blocks(section("The demo"), "sh"), blocks(section("The demo"), "text")
    for line, expected in zip(lines, shown, strict=True):
        answer = cli(*command_of(line))
        assert answer.code == 0, answer.err
        (words, shares), (printed, found) = as_told(expected), as_told(answer.out)
        assert printed == words
        assert found == pytest.approx(shares, abs=2, rel=0.1)


def test_every_option_in_the_text_exists() -> None:
    verbs = get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {
        "--help",
        *(name for verb in verbs for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)),
    }
    named = re.findall(r"(?<=[` ])--[a-z][a-z-]*", README)
    assert sorted(set(named) - known) == []
