"""What the command writes where: any encoding, closed streams, readers that go away, and JSON that is nothing else."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghostify.cli import show, streams

NOISY = """
import atexit, ctypes, os, subprocess, sys

def shout(where):
    print(where, "by print")
    sys.stdout.write(where + " by stdout")
    sys.__stdout__.write(where + " by the stdout of the interpreter")
    os.write(1, where.encode() + b" by the system")
    subprocess.run(["echo", where + " by a child"])
    ctypes.CDLL(None).printf(where.encode() + b" by C, which keeps it for later")

shout("import")
atexit.register(shout, "the end")
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Sequential):
    def forward(self, x):
        shout("forward")
        return super().forward(x)

def build():
    shout("build")
    return Net(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1),
               nn.Flatten(), nn.Linear(32, 10))

def images():
    shout("data")
    data = TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 10)
    return data, data
"""


def ghostify(*args: str, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, with ``more`` in its environment."""
    command = [sys.executable, "-m", "ghostify", *args]
    return subprocess.run(command, capture_output=True, cwd=folder, env={**os.environ, **more})


def through(shell: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash in which ``$G`` is the command; its exit code is the command's, not that of what reads it."""
    script = f"set -o pipefail; {shell}"
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "G": f"{sys.executable} -m ghostify"},
    )


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A folder with a module that writes to stdout in every way there is, at every moment it is called."""
    (tmp_path / "noisy.py").write_text(NOISY)
    return tmp_path


# -- encodings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16", "utf-8"])
def test_a_plan_is_printed_in_every_encoding(encoding: str) -> None:
    answer = ghostify("plan", "ghostify:resnet8", PYTHONIOENCODING=encoding)
    assert answer.returncode == 0, answer.stderr
    table = answer.stdout.decode(encoding)
    arrow = "→" if encoding.startswith("utf") else ">"
    assert f"16{arrow}32 3x3" in table and "?" not in table


def test_columns_stay_below_each_other_where_a_letter_is_missing() -> None:
    plain, full = (
        ghostify("scan", "ghostify:resnet8", PYTHONIOENCODING=encoding).stdout.decode(encoding)
        for encoding in ("ascii", "utf-8")
    )
    assert [len(line) for line in plain.splitlines()] == [len(line) for line in full.splitlines()]


@pytest.mark.parametrize("verb", ["compress", "analyze"])
def test_help_is_printed_in_the_plainest_locale(verb: str) -> None:
    answer = ghostify(verb, "--help", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert answer.returncode == 0 and answer.stdout.isascii()


def test_an_error_is_one_line_in_the_plainest_locale() -> None:
    answer = ghostify("scan", "torchvision:résnet→", PYTHONIOENCODING="ascii")
    assert answer.returncode == 1 and answer.stderr.isascii()
    assert answer.stderr.startswith(b"Error: ") and len(answer.stderr.splitlines()) == 1


def test_json_is_the_same_in_every_encoding() -> None:
    told = [
        json.loads(ghostify("plan", "ghostify:resnet8", "--json", PYTHONIOENCODING=encoding).stdout.decode(encoding))
        for encoding in ("cp1252", "ascii", "utf-8")
    ]
    assert told[0] == told[1] == told[2] and "→" in told[0]["swaps"][0]["geometry"]


def test_a_name_that_no_encoding_has_can_be_told(tmp_path: Path) -> None:
    """Names of files need not be text: Python keeps their odd bytes as lone surrogates."""
    answer = through("$G scan mine:build --weights $'caf\\xe9.pt' 2>&1; $G report $'caf\\xe9'", tmp_path)
    assert answer.returncode == 1 and "Traceback" not in answer.stdout + answer.stderr
    assert answer.stderr.startswith("Error: ")


def test_a_terminal_without_colours_or_cursor_is_written_to_plainly() -> None:
    answer = ghostify("scan", "nothing", NO_COLOR="1", TERM="dumb", FORCE_COLOR="1")
    assert answer.returncode == 1 and b"\x1b" not in answer.stderr


# -- streams that are closed, full, or left --------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_reader_may_go_away(tmp_path: Path, more: str) -> None:
    answer = through(f"$G scan ghostify:resnet8 {more} | true", tmp_path)  # it is gone before anything is written
    assert answer.returncode == 141 and not answer.stderr


def test_a_run_is_saved_though_nobody_reads_what_happens(tmp_path: Path) -> None:
    answer = through("$G compress ghostify:resnet8 -o run 2> >(exec 0<&-) | head -c 1; true", tmp_path)
    assert answer.returncode == 0 and (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize("closed", [">&-", "--json >&-", "2>&-", "--json <&- >&- 2>&-"])
def test_streams_may_be_closed(tmp_path: Path, closed: str) -> None:
    answer = through(f"$G scan ghostify:resnet8 {closed}", tmp_path)
    assert answer.returncode == 0 and "Traceback" not in answer.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("more", ["scan ghostify:resnet8", "scan ghostify:resnet8 --json", "compress --help"])
def test_a_full_disk_is_told_in_one_line(tmp_path: Path, more: str) -> None:
    answer = through(f"$G {more} > /dev/full", tmp_path)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1 and "No space left" in answer.stderr


# -- JSON and nothing else -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("scan", "noisy:build", "--input", "3,8,8"),
        ("plan", "noisy:build", "--input", "3,8,8", "--min-saving", "0", "-o", "plan.yaml"),
        ("compress", "noisy:build", "--data", "noisy:images", "--min-saving", "0", "--epochs", "1"),
        ("compress", "noisy:build", "--input", "3,8,8", "--min-saving", "0", "--dry-run"),
        ("eval", "noisy:build", "--data", "noisy:images"),
        ("analyze", "noisy:build", "--data", "noisy:images", "--images", "16"),
    ],
    ids=lambda args: " ".join(args)[:30],
)
def test_json_is_all_there_is_on_stdout_whatever_the_users_code_prints(noisy: Path, args: tuple[str, ...]) -> None:
    answer = ghostify(*args, "--json", folder=noisy)
    assert answer.returncode == 0, answer.stderr
    assert isinstance(json.loads(answer.stdout), dict)
    for how in (b"import by print", b"build by the system", b"import by a child", b"the end by stdout"):
        assert how in answer.stderr, how


def test_an_error_leaves_stdout_empty_though_the_users_code_prints(noisy: Path) -> None:
    answer = ghostify("scan", "noisy:build", "--json", folder=noisy)
    assert answer.returncode == 1 and not answer.stdout
    assert b"\nError: " in answer.stderr.replace(b"later", b"\n")


def test_without_json_what_the_users_code_prints_stays_where_it_was_printed(noisy: Path) -> None:
    answer = ghostify("scan", "noisy:build", "--input", "3,8,8", folder=noisy)
    assert answer.returncode == 0 and b"import by print" in answer.stdout


def test_json_has_null_where_a_number_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    show.json({"error": math.nan, "inner": [math.inf, 1.5, {"more": -math.inf}]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "error": None,
        "inner": [None, 1.5, {"more": None}],
    }


def test_stdout_is_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    kept = streams.Kept()
    kept.begin()
    print("meanwhile")
    with kept.answering():
        print("the answer")
    os.write(1, b"and after it")
    kept.end()
    print("afterwards")
    captured = capfd.readouterr()
    assert captured.out == "the answer\nafterwards\n"
    assert captured.err == "meanwhile\nand after it"
