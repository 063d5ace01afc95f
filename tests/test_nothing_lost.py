"""Only what a call made may ever be removed: files of the user survive every failing verb, wherever it fails."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from ghostify import experiment, job, judging, planned
from ghostify.cli.app import app
from ghostify.cli.runs import RunInterrupted
from ghostify.errors import GhostifyError, PlanError, RunError
from ghostify.saving import installing, locked, runs

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
    monkeypatch.setattr(job, "prepare", failing(problem))
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
    assert {name: after.get(name) for name in before} == before
    assert not list(Path("exp").rglob("state*.safetensors"))


VERBS = {
    "compress": ("compress", "tiny_net:tiny", "--input", "3,8,8", "--data", "fake", "-o", "new/run"),
    "finetune": ("finetune", "tiny_net:tiny", "--input", "3,8,8", "--data", "fake", "-o", "new/run"),
    "analyze": ("analyze", "tiny_net:tiny", "--input", "3,8,8", "--data", "fake", "-o", "new/run"),
}


def prepare_by(other: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every verb prepare its network by ``other``."""
    for room in (experiment, job):
        monkeypatch.setattr(room, "prepare", other)


@pytest.mark.parametrize("verb", VERBS)
def test_a_new_folder_goes_when_nothing_came_of_it(cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the folders above it that were made for it."""
    prepare_by(failing(GhostifyError("no")), monkeypatch)
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

    prepare_by(meanwhile, monkeypatch)
    assert cli(*VERBS[verb]).exit_code == 1
    kept = {"notes.txt": b"precious", "deep/notes.txt": b"precious", "recipe.yaml": b"precious"}
    assert contents(Path("new/run")) == kept


def test_an_interrupted_run_says_how_to_go_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before anything was trained: what was asked for is kept."""
    with monkeypatch.context() as patched:
        patched.setattr(job, "prepare", failing(KeyboardInterrupt()))
        result = cli(*VERBS["compress"])
    assert isinstance(result.exception, RunInterrupted)
    assert "ghostify compress --resume new/run" in str(result.exception)
    assert cli("compress", "--resume", "new/run").exit_code == 0


def test_sigterm_ends_a_run_as_ctrl_c_does(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the signal is afterwards dealt with as it was."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(job, "prepare", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    result = cli(*VERBS["compress"])
    assert isinstance(result.exception, RunInterrupted) and result.exception.code == 128 + signal.SIGTERM
    assert "ghostify compress --resume new/run" in str(result.exception)
    assert signal.getsignal(signal.SIGTERM) is before


# -- going on --------------------------------------------------------------------------------------------------


def interrupted(cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A run of a verb, stopped at once; what its folder holds."""
    with monkeypatch.context() as patched:
        patched.setattr(job, "prepare", failing(KeyboardInterrupt()))
        assert isinstance(cli(*VERBS[verb]).exception, RunInterrupted)
    return contents(Path("new/run"))


@pytest.mark.parametrize(("verb", "other"), [("compress", "finetune"), ("finetune", "compress")])
def test_only_the_verb_that_began_a_run_goes_on_with_it(
    cli: Cli, verb: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = interrupted(cli, verb, monkeypatch)
    problem = cli(other, "--resume", "new/run").exception
    assert isinstance(problem, RunError) and f"ghostify {verb} --resume new/run" in str(problem)
    assert contents(Path("new/run")) == before
    assert cli(verb, "--resume", "new/run").exit_code == 0


def test_a_run_of_an_earlier_version_tells_its_verb_by_what_it_left(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(cli, "compress", monkeypatch)
    Path("new/run/request.json").unlink()
    Path("new/run/pretrain").mkdir()
    problem = cli("finetune", "--resume", "new/run").exception
    assert isinstance(problem, RunError) and "ghostify compress --resume new/run" in str(problem)


@pytest.mark.parametrize("verb", ["compress", "finetune"])
def test_a_run_goes_on_where_its_code_and_images_are_found(
    cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = interrupted(cli, verb, monkeypatch)
    Path("away").mkdir()
    monkeypatch.chdir("away")
    problem = cli(verb, "--resume", "../new/run").exception
    assert isinstance(problem, RunError) and "'tiny_net:tiny'" in str(problem)
    assert f"cd {tmp_path}; ghostify {verb} --resume {tmp_path / 'new' / 'run'}" in str(problem)
    assert contents(Path("../new/run")) == before


@contextmanager
def another_process(state: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """A copy of this process that has entered ``state``, and is killed in the end."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        with state():
            os.write(here, b"in")
            time.sleep(600)
    try:
        assert os.read(there, 2) == b"in"
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(there)
        os.close(here)


forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
"""Told by newer Pythons; the copies wait for their end and do nothing else."""


@forking
@pytest.mark.parametrize("verb", ["compress", "finetune"])
def test_two_processes_do_not_go_on_with_one_folder(cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process is in it; once that is dead, however it died, one can go on."""
    before = interrupted(cli, verb, monkeypatch)
    with another_process(lambda: locked(Path("new/run"))):
        problem = cli(verb, "--resume", "new/run").exception
        assert isinstance(problem, RunError) and "'new/run' is in use by another process" in str(problem)
        assert contents(Path("new/run")) == before
    assert cli(verb, "--resume", "new/run").exit_code == 0


@forking
def test_processes_that_load_images_do_not_hold_the_lock(tmp_path: Path) -> None:
    """They may live on for a moment after the process that began them was killed."""
    with ExitStack() as began:
        began.enter_context(locked(tmp_path))
        with another_process(nullcontext):
            began.close()
            with locked(tmp_path):
                pass


def test_a_folder_with_a_foreign_file_of_a_runs_name_is_refused_before_the_work(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = users_folder(Path("exp"), RECIPE)
    Path("exp/plan.yaml").write_text("my own plan")
    monkeypatch.setattr(job, "fitted", failing(AssertionError("too late")))
    problem = cli("compress", "--resume", "exp").exception
    assert isinstance(problem, RunError) and "exp/plan.yaml" in str(problem)
    assert contents(Path("exp")) == {**before, "plan.yaml": b"my own plan"}


def test_a_network_that_would_not_come_back_is_refused_before_the_work(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("luck_net.py").write_text(LUCK)
    monkeypatch.setattr(job, "fitted", failing(AssertionError("too late")))
    args = ("--input", "3,8,8", "--data", "fake", "--method", "width", "--width", "0.5", "-o", "new/run")
    problem = cli("compress", "luck_net:build", *args).exception
    assert isinstance(problem, RunError) and "The run would not come back" in str(problem)
    assert not Path("new").exists()


LUCK = """
from torch import nn

calls = []

def build():
    calls.append(1)
    middle = 32 if len(calls) == 1 else 24
    convs = (nn.Conv2d(3, middle, 3, padding=1), nn.ReLU(), nn.Conv2d(middle, 32, 3, padding=1))
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
"""


# -- injected failures -----------------------------------------------------------------------------------------

CHAPTERS: dict[str, tuple[Any, str]] = {
    "prepare": (job, "prepare"),
    "plan": (planned, "agreed"),
    "rehearse": (job, "rehearse"),
    "fit": (job, "fitted"),
    "test": (judging, "evaluate"),
    "report": (job, "compare"),
    "train": (job, "finetune"),
    "save": (job, "save_rehearsed"),
    "weights": (runs, "write_weights"),
    "read back": (runs.blanks, "require_readable"),
    "install": (installing.Installation, "add"),
    "commit": (installing.Installation, "commit"),
    "rename": (Path, "replace"),
    "flush": (installing, "flush"),
    "clear": (job, "remove_checkpoint"),
}
PROBLEMS: dict[str, Callable[[], BaseException]] = {
    "ours": lambda: GhostifyError("no"),
    "a defect": lambda: ValueError("a defect"),
    "full disk": lambda: OSError(28, "No space left on device"),
    "Ctrl-C": KeyboardInterrupt,
    "memory": MemoryError,
}
INJECTED = random.Random(20).sample([*product(CHAPTERS, PROBLEMS, ("compress", "finetune"), (False, True))], 32)


@pytest.mark.parametrize(("chapter", "problem", "verb", "resume"), INJECTED, ids=lambda value: str(value))
def test_files_of_the_user_survive_a_failure_anywhere(
    cli: Cli, chapter: str, problem: str, verb: str, resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder to go on with, and in a new one that they were put into while the run went on.

    What is there afterwards can be gone on with, or is gone, unless it is the user's.
    """
    folder = Path("exp") if resume else Path("new/run")
    theirs = users_folder(folder, RECIPE) if resume else {}
    with monkeypatch.context() as patched:
        if not resume:
            theirs = {"notes.txt": b"precious", "finetune/thoughts.txt": b"precious, too"}
            patched.setattr(job, "pick_device", first_writing(folder, theirs, job.pick_device))
        holder, name = CHAPTERS[chapter]
        # a folder is not written to for the first time here, which the tests above do
        patched.setattr(holder, name, failing_sometimes(getattr(holder, name), PROBLEMS[problem], chapter))
        args = (verb, "--resume", "exp") if resume else (*VERBS[verb], "--epochs", "1", *QUICK)
        result = cli(*args)
    after = contents(folder)
    assert {name: after.get(name) for name in theirs} == theirs
    if result.exit_code and (folder / "recipe.yaml").is_file():
        again = cli(verb, "--resume", str(folder))
        assert again.exit_code == 0 or "finished already" in str(again.exception), again.exception
        after = contents(folder)
        assert {name: after.get(name) for name in theirs} == theirs


QUICK = ("--set", "data.limit=16", "--batch-size", "8", "--set", "finetune.warmup=0")


def first_writing(folder: Path, files: dict[str, bytes], then: Callable[..., Any]) -> Callable[..., Any]:
    """What a person does while a run goes on, and then what it would have done."""

    def write(*args: Any, **kwargs: Any) -> Any:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return then(*args, **kwargs)

    return write


def failing_sometimes(real: Callable[..., Any], problem: Callable[[], BaseException], chapter: str) -> Any:
    """Fails at one of its calls: the first, but where files are moved or flushed, one in the middle of it."""
    calls = iter(range(1000))
    at = {"rename": 9, "flush": 3, "install": 2}.get(chapter, 0)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise problem()
        return real(*args, **kwargs)

    return fail


def start(*args: str, folder: Path) -> subprocess.Popen[str]:
    """The command as a process of its own that Ctrl-C reaches, with one thread."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "ghostify", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, env=environment, preexec_fn=listen, **pipes)


LONG = RECIPE.replace("epochs: 1", "epochs: 3")
SIGNALS = [
    ("SIGTERM", "Network", False),
    ("SIGTERM", "epoch 1", True),
    ("SIGINT", "Fitting", True),
    ("SIGKILL", "Fine-tuning", False),
    ("SIGKILL", "epoch 2", True),
]


@pytest.mark.parametrize(("name", "at", "resume"), SIGNALS)
def test_files_of_the_user_survive_every_signal(cli: Cli, tmp_path: Path, name: str, at: str, resume: bool) -> None:
    """And the run can be gone on with; where the process could still say something, it said how."""
    theirs = users_folder(tmp_path / "exp", LONG)
    (tmp_path / "recipe.yaml").write_text(LONG)
    args = ("--resume", "exp") if resume else ("--recipe", "recipe.yaml", "-o", "new")
    folder = tmp_path / ("exp" if resume else "new")
    said = []
    with start("compress", *args, folder=tmp_path) as process:
        assert process.stderr
        for line in process.stderr:
            said.append(line)
            if at in line:
                if not resume:
                    (folder / "notes.txt").write_text("precious")
                process.send_signal(getattr(signal, name))
    assert any(at in line for line in said), said
    codes = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}
    assert process.returncode == codes[name]
    if name != "SIGKILL":
        assert f"--resume {folder.name}" in said[-1]
    assert cli("compress", "--resume", folder.name).exit_code == 0
    after = contents(folder)
    wanted = theirs if resume else {"notes.txt": b"precious"}
    assert {key: after.get(key) for key in wanted} == wanted
    assert not [key for key in after if Path(key).name.startswith(".") or "state" in key]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A folder on a disk of so many kilobytes of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here")
        mounted.append(place)
        return place

    yield mount
    for one in mounted:
        subprocess.run(["umount", "-l", str(one)], check=True)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("size", [8, 24, 100])
def test_files_of_the_user_survive_a_full_disk(
    cli: Cli, small_disk: Callable[[int], Path], verb: str, size: int
) -> None:
    """One line says so, and nothing half-written is left; what is left can be gone on with."""
    disk = small_disk(size)
    (disk / "notes.txt").write_text("precious")
    output = ("-o", str(disk / "run"))
    result = cli(*VERBS[verb][:-2], *output, *(QUICK if verb == "finetune" else ("--set", "data.limit=16")))
    assert result.exit_code or size > 30
    if result.exit_code:
        assert isinstance(result.exception, GhostifyError), result.exception
        left = contents(disk)
        if set(left) != {"notes.txt"}:
            assert "run/recipe.yaml" in left, sorted(left)
            assert not [name for name in left if Path(name).name.startswith(".")], sorted(left)
    assert (disk / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("full", [True, False])
def test_a_plan_is_written_entirely_or_not_at_all(cli: Cli, small_disk: Callable[[int], Path], full: bool) -> None:
    disk = small_disk(12)
    (disk / "filling").write_bytes(bytes(12288 if full else 4096))
    plan = ("plan", "tiny_net:tiny", "--input", "3,8,8", "-o", str(disk / "plan.yaml"))
    result = cli(*plan)
    if full:
        assert isinstance(result.exception, PlanError) and not (disk / "plan.yaml").exists()
    else:
        before = contents(disk)
        assert "already" in str(cli(*plan).exception) and contents(disk) == before


def failing(problem: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise problem

    return fail
