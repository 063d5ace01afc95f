"""What the command writes where: any encoding, closed streams, readers that go away, and JSON that is nothing else."""

from __future__ import annotations

import atexit
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghostify.cli import main, show, streams

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


def ghostify(*args: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, with ``more`` in its environment."""
    command = [sys.executable, "-m", "ghostify", *args]
    return subprocess.run(command, capture_output=True, env={**os.environ, **more})


def through(shell: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash in which ``$G`` is the command."""
    environment = {**os.environ, "G": f"{sys.executable} -m ghostify"}
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command in this process; what it keeps for the end of its own is not done at the end of this one."""

    def run(*args: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ghostify", *args])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    yield run
    atexit.unregister(os.dup2)
    if "noisy" in sys.modules:
        atexit.unregister(sys.modules.pop("noisy").shout)


@pytest.fixture
def printed(here: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the command prints to a stdout of some encoding, which is how Python begins with PYTHONIOENCODING."""

    def run(encoding: str, *args: str) -> str:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
        assert here(*args) == 0
        return written.getvalue().decode(encoding)

    return run


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module that writes to stdout in every way there is, at every moment it is called."""
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


# -- encodings -------------------------------------------------------------------------------------------------


def is_a_plan(table: str, arrow: str) -> bool:
    return f"16{arrow}32 3x3" in table and "?" not in table


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16", "utf-8"])
def test_a_plan_is_printed_in_every_encoding(printed: Callable[..., str], encoding: str) -> None:
    assert is_a_plan(printed(encoding, "plan", "ghostify:resnet8"), "→" if encoding.startswith("utf") else ">")


def test_a_plan_is_printed_in_the_encoding_that_a_process_is_told() -> None:
    answer = ghostify("plan", "ghostify:resnet8", PYTHONIOENCODING="cp1252")
    assert answer.returncode == 0, answer.stderr
    assert is_a_plan(answer.stdout.decode("cp1252"), ">")


def test_columns_stay_below_each_other_where_a_letter_is_missing(printed: Callable[..., str]) -> None:
    plain, full = (printed(encoding, "scan", "ghostify:resnet8") for encoding in ("ascii", "utf-8"))
    assert plain != full and [len(line) for line in plain.splitlines()] == [len(line) for line in full.splitlines()]


@pytest.mark.parametrize("verb", ["compress", "analyze"])
def test_help_is_printed_in_the_plainest_locale(verb: str) -> None:
    answer = ghostify(verb, "--help", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert answer.returncode == 0 and answer.stdout.isascii()


def test_an_error_is_one_line_in_the_plainest_locale() -> None:
    answer = ghostify("recipes", "show", "résnet→", PYTHONIOENCODING="ascii")
    assert answer.returncode == 1 and answer.stderr.isascii()
    assert answer.stderr.startswith(b"Error: ") and len(answer.stderr.splitlines()) == 1


def test_json_is_the_same_in_every_encoding(printed: Callable[..., str]) -> None:
    told = [json.loads(printed(each, "plan", "ghostify:resnet8", "--json")) for each in ("cp1252", "ascii", "utf-8")]
    assert told[0] == told[1] == told[2] and "→" in told[0]["swaps"][0]["geometry"]


def test_a_name_that_no_encoding_has_can_be_told(tmp_path: Path) -> None:
    """Names of files need not be text: Python keeps their odd bytes as lone surrogates."""
    answer = through("$G recipes show $'caf\\xe9.yaml' 2>&1; $G recipes check $'caf\\xe9'", tmp_path)
    assert answer.returncode == 1 and "Traceback" not in answer.stdout + answer.stderr
    assert answer.stdout.startswith("Error: ") and answer.stderr.startswith("Error: ")


def test_a_terminal_without_colours_or_cursor_is_written_to_plainly() -> None:
    answer = ghostify("recipes", "show", "nothing", NO_COLOR="1", TERM="dumb", FORCE_COLOR="1")
    assert answer.returncode == 1 and b"\x1b" not in answer.stderr


# -- streams that are closed, full, or left --------------------------------------------------------------------


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader has gone: nothing depends on who is faster."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["table", "json"])
def test_a_reader_may_go_away(unread: int, more: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "ghostify", "recipes", "list", *more]
    answer = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE)
    assert answer.returncode == 141 and not answer.stderr


def test_a_run_is_saved_though_nobody_reads_what_happens(unread: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ghostify", "compress", "ghostify:resnet8", "-o", "run"]
    answer = subprocess.run(command, cwd=tmp_path, stdout=unread, stderr=unread)
    assert answer.returncode == 141 and (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize("closed", [">&-", "--json >&-", "2>&-", "--json <&- >&- 2>&-"])
def test_streams_may_be_closed(tmp_path: Path, closed: str) -> None:
    answer = through(f"$G recipes list {closed}", tmp_path)
    assert answer.returncode == 0 and "Traceback" not in answer.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("more", ["recipes list", "recipes list --json", "compress --help"])
def test_a_full_disk_is_told_in_one_line(tmp_path: Path, more: str) -> None:
    answer = through(f"$G {more} > /dev/full", tmp_path)
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1 and "No space left" in answer.stderr


# -- JSON and nothing else -------------------------------------------------------------------------------------

MOMENTS = ("import by print", "build by the system", "import by a child")


@pytest.mark.parametrize(
    "args",
    [
        ("scan", "noisy:build", "--input", "3,8,8"),
        ("plan", "noisy:build", "--input", "3,8,8", "--min-saving", "0", "-o", "plan.yaml"),
        ("compress", "noisy:build", "--input", "3,8,8", "--min-saving", "0", "--dry-run"),
        ("eval", "noisy:build", "--data", "noisy:images"),
        ("analyze", "noisy:build", "--data", "noisy:images", "--images", "16"),
    ],
    ids=lambda args: args[0],
)
def test_json_is_all_there_is_on_stdout_whatever_the_users_code_prints(
    noisy: Path, here: Callable[..., int], capfd: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    code = here(*args, "--json")
    told = capfd.readouterr()
    assert code == 0, told.err
    assert isinstance(json.loads(told.out), dict)
    for how in MOMENTS:
        assert how in told.err, how


def test_json_is_all_there_is_on_stdout_until_the_process_has_ended(noisy: Path) -> None:
    """Also what C keeps for later, and what is printed last of all."""
    asked = ("--data", "noisy:images", "--min-saving", "0", "--epochs", "1")
    answer = ghostify("compress", "noisy:build", *asked, "--json")
    assert answer.returncode == 0, answer.stderr
    assert isinstance(json.loads(answer.stdout), dict)
    for how in (*MOMENTS, "forward by C", "the end by stdout"):
        assert how.encode() in answer.stderr, how


def test_an_error_leaves_stdout_empty_though_the_users_code_prints(
    noisy: Path, here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert here("scan", "noisy:build", "--json") == 1
    told = capfd.readouterr()
    assert not told.out and "\nError: " in told.err.replace("later", "\n")


def test_without_json_what_the_users_code_prints_stays_where_it_was_printed(
    noisy: Path, here: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert here("scan", "noisy:build", "--input", "3,8,8") == 0
    assert "import by print" in capfd.readouterr().out


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
