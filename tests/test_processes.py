"""Processes that train one network together do what one does, and the first alone writes and tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import Blobs, Watcher, net
from command import Cli, cli
from killing import launched
from safetensors.torch import load_file
from test_loop import Signalling, near, plain
from torch import Tensor, nn

from ghostify.analysis import analyze
from ghostify.cli.entry import tell
from ghostify.errors import DataError, GhostifyError, RunError, Stopped
from ghostify.finetuning import finetune
from ghostify.finetuning.feeding import Feed
from ghostify.finetuning.measures import renewed
from ghostify.fitting.interpreter import Interpreter
from ghostify.networks import resnet8, resnet20
from ghostify.pipeline import convert
from ghostify.processes import Processes, group, rank, world
from ghostify.recipe import DataSettings, TrainSettings
from ghostify.runtimes import pinned_threads
from ghostify.sources import Data, load_data
from ghostify.tracing import trace

__all__ = ["cli"]  # a fixture

SETTINGS = TrainSettings(epochs=2, lr=0.1, warmup=0.2)
BATCH = 10


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Processes are forked: threads would not come with them, and what is imported late would be so in each."""
    import accelerate  # noqa: F401

    finetune(net(), Blobs(), TrainSettings(epochs=1))
    images = torch.randn(8, 3, 8, 8)
    analyze(resnet20(3), images, layers=("conv1",))
    convert(resnet8(3), images[:1], images=images, min_saving=0)
    with pinned_threads(1):
        yield


def data(hold_out: float = 0.2) -> Data:
    """43 images to train on, of which a batch of 10 leaves 3 over, and 43 held out: shares that are not even."""
    return load_data(DataSettings(source="fake", limit=43, hold_out=hold_out), (3, 4, 4), 3)


class Partly(nn.Module):
    """A network with a branch that is never run, and a buffer that follows what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()
        self.idle = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += x.detach().mean()
        return torch.as_tensor(self.body(x))


MAKERS = {"plain": plain, "normed": lambda: net(0), "partly": Partly}


def trained(folder: Path, maker: str, stop: int = 0, source: Any = None, **settings: Any) -> None:
    """Train, and put down what this process holds at the end and what it was told."""
    torch.manual_seed(7 * rank())  # processes may begin with other weights, and get those of the first
    model = MAKERS[maker]()
    if rank():
        for parameter in model.parameters():
            parameter.data += 0.1
    watcher = Signalling(at=stop, numbers=(signal.SIGTERM,))
    place = folder / ("checkpoint" if not rank() else "of-another")
    options = {"batch_size": BATCH, "checkpoint": place, "progress": watcher}
    try:
        history = finetune(model, source or data(), SETTINGS.model_copy(update=settings), **options)
        epochs = [epoch.model_dump(exclude={"seconds"}) for epoch in history.epochs]
    except Stopped:
        epochs = []
    torch.save({"state": model.state_dict(), "epochs": epochs, "told": watcher.told}, folder / f"{rank()}.pt")


def of(folder: Path, processes: int, maker: str = "plain", **options: Any) -> list[dict[str, Any]]:
    """What each of some processes holds that train a network together."""
    folder.mkdir(exist_ok=True)
    codes = launched(processes, 0, lambda _: trained(folder, maker, **options))
    assert set(codes) == {0}
    return [torch.load(folder / f"{one}.pt") for one in range(processes)]


def loaded(found: dict[str, Any], maker: str = "plain") -> nn.Module:
    model = MAKERS[maker]()
    model.load_state_dict(found["state"])
    return model


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("processes", "settings"), [(2, {}), (3, {"accumulate": 2, "clip": 0.5, "ema": 0.8})])
def test_several_processes_learn_what_one_learns(tmp_path: Path, processes: int, settings: dict[str, Any]) -> None:
    """Up to rounding, for a network without norms; with every sample counted once, in training and in measuring."""
    one = of(tmp_path / "one", 1, **settings)[0]
    several = of(tmp_path / "several", processes, **settings)
    for found in several:
        assert near(loaded(one), loaded(found)) and equal(found["state"], several[0]["state"])
        for mine, other in zip(found["epochs"], one["epochs"], strict=True):
            assert (mine["train_top1"], mine["held"]) == (other["train_top1"], other["held"])
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_data_that_cannot_be_shared_are_shared_all_the_same(tmp_path: Path) -> None:
    """By taking each process's part of whole batches."""
    one, two = (of(tmp_path / str(n), n, source=Steady(41)) for n in (1, 2))
    assert near(loaded(one[0]), loaded(two[1])) and one[0]["epochs"][-1]["held"] == two[1]["epochs"][-1]["held"]


class Steady(Blobs):
    """Blobs in one order, without noise of their own."""

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> Any:
        images, labels = self._tensors(self.n, 0)
        return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def test_norms_and_buffers_are_the_same_in_all_processes(tmp_path: Path) -> None:
    for maker in ("normed", "partly"):
        first, second = of(tmp_path / maker, 2, maker=maker, source=data(hold_out=0))
        assert equal(first["state"], second["state"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        idle = Partly().idle.weight
    assert torch.equal(first["state"]["idle.weight"], idle), "what has no part in the loss does not decay"
    assert first["state"]["seen"] != 0


@pytest.mark.parametrize("batches", [3, 1])
def test_norms_renewed_by_several_processes_are_those_of_one(tmp_path: Path, batches: int) -> None:
    """Each runs whole batches, be they more for one than for another, or none."""

    def renew(folder: Path) -> None:
        model, processes = net(0), group(cpu=True)
        feed = Feed(data(), BATCH, 0, 0, torch.device("cpu"), processes)
        renewed(model, feed, 0, batches)
        torch.save(model.state_dict(), folder / f"{processes.world}-{processes.rank}.pt")

    for processes in (1, 2):
        assert set(launched(processes, 0, lambda _: renew(tmp_path))) == {0}
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert equal(first, second)
    for name, value in one.items():
        torch.testing.assert_close(first[name], value)
    counted = [value for name, value in one.items() if name.endswith("num_batches_tracked")]
    assert counted and all(value == batches for value in counted)


def test_only_the_first_process_writes_and_is_told(tmp_path: Path) -> None:
    first, second = of(tmp_path, 2)
    assert first["told"] and not second["told"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt", "checkpoint"]


@pytest.mark.parametrize(("then", "now"), [(2, 1), (1, 2), (2, 3)])
def test_other_processes_go_on_with_the_same_batches(tmp_path: Path, then: int, now: int) -> None:
    one = of(tmp_path / "one", 1)[0]
    of(tmp_path / "run", then, stop=3)
    found = of(tmp_path / "run", now)[0]
    assert near(loaded(one), loaded(found))
    assert f"Training was begun by {then} process" in found["told"][0] and f"goes on with {now}" in found["told"][0]


def test_alone_nothing_is_joined_or_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = group(cpu=True)
    assert alone == Processes() and alone.first and (rank(), world()) == (0, 1)
    assert alone.total([1, 2.5]) == [1, 2.5] and alone.same("x") == "x" and alone.decided(lambda: 3) == 3


def test_another_engine_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RunError, match=r"configured for FSDP, .* accelerate launch --multi_gpu, or torchrun"):
        finetune(net(), Blobs(), SETTINGS, progress=Watcher())
    assert "RANK" not in os.environ


# --- what is found together -------------------------------------------------------------------------------------------


def numbers(found: Any) -> list[Any]:
    """The leaves of what JSON has of an analysis, but for how long it took."""
    if isinstance(found, dict):
        return [leaf for key, value in found.items() if key != "seconds" for leaf in numbers(value)]
    return [leaf for value in found for leaf in numbers(value)] if isinstance(found, list) else [found]


def analyzed_by(folder: Path, processes: int, count: int) -> list[list[Any]]:
    """What each of some processes finds of a network with stages, by so many images."""
    images = torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    def look(last: bool) -> None:
        group(cpu=True)
        torch.manual_seed(0)
        found = analyze(resnet20(3), images, layers=("layer1",))
        (folder / f"{processes}-{rank()}.json").write_text(json.dumps(found.model_dump(mode="json")))

    assert set(launched(processes, 0, look)) == {0}
    return [numbers(json.loads((folder / f"{processes}-{one}.json").read_text())) for one in range(processes)]


@pytest.mark.parametrize(("processes", "count"), [(2, 9), (3, 17)])
def test_several_processes_analyze_as_one_does(tmp_path: Path, processes: int, count: int) -> None:
    """Each by batches of its own, of which one has more than another, and to the same bits."""
    alone = analyzed_by(tmp_path, 1, count)[0]
    first, *others = analyzed_by(tmp_path, processes, count)
    assert all(other == first for other in others)
    for mine, other in zip(first, alone, strict=True):
        assert mine == (pytest.approx(other, rel=1e-7, abs=1e-9) if isinstance(other, float) else other)


FORMS: dict[str, dict[str, Any]] = {
    "pointwise": {"method": "c-ghost", "min_saving": 0},
    "both": {"method": "c-ghost", "cheap": "depthwise 3 + pointwise", "min_saving": 0},
    "depthwise": {"method": "c-ghost", "cheap": "depthwise 3", "min_saving": 0},
    "thin": {"method": "thin", "width": 0.5},
}


def fitted_by(folder: Path, processes: int, count: int, form: str) -> list[dict[str, Any]]:
    """What each of some processes makes of a network with norms, by so many images."""
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def fit(last: bool) -> None:
        group(cpu=True)
        made = convert(normed(), images[:1], images=images, **FORMS[form])
        assert made.fit is not None
        found = {"state": made.module.state_dict(), "fit": made.fit.model_dump(exclude={"seconds"})}
        torch.save(found, folder / f"{processes}-{rank()}.pt")

    assert set(launched(processes, 0, fit)) == {0}
    return [torch.load(folder / f"{processes}-{one}.pt") for one in range(processes)]


def normed() -> nn.Module:
    """A network whose norms all differ."""
    torch.manual_seed(0)
    model = resnet8(3)
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(torch.as_tensor(norm.running_mean))
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
def test_several_processes_fit_as_one_does(tmp_path: Path, form: str) -> None:
    """Weights, statistics of norms and what is told: up to rounding those of one, and the same bits in all."""
    alone = fitted_by(tmp_path, 1, 7, form)[0]
    first, second = fitted_by(tmp_path, 2, 7, form)
    assert equal(first["state"], second["state"]) and first["fit"] == second["fit"]
    for name, value in alone["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-3, atol=1e-4)
    assert first["fit"]["error"] == pytest.approx(alone["fit"]["error"], rel=1e-3)
    for mine, other in zip(first["fit"]["layers"], alone["fit"]["layers"], strict=True):
        assert (mine["target"], mine["ridge"], mine["positions"]) == (
            other["target"],
            other["ridge"],
            other["positions"],
        )


def test_each_batch_is_run_by_one_process() -> None:
    """However many there are; and a process that is told so runs others', too."""
    traced, images = trace(normed(), torch.zeros(1, 3, 8, 8)), [torch.zeros(1, 3, 8, 8)] * 7
    walks = [Interpreter(traced, traced.module, images, processes=Processes(one, 3)) for one in range(3)]
    assert sorted(batch for walk in walks for batch in walk.own) == list(range(7))
    for walk in walks:
        walk.advance(5)
        assert [batch for batch, reached in enumerate(walk.reached) if reached == 5] == walk.own
    assert Interpreter(traced, traced.module, images).own == list(range(7))


# --- the command of a process that is not the first -------------------------------------------------------------------


def test_only_what_is_done_together_has_work_for_other_processes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    for asked in (("scan", "mine:tiny", "--input", "3,8,8"), ("env",), ("compress", "mine:tiny", "--dry-run")):
        assert cli(*asked) == (0, "", ""), asked


def test_other_processes_tell_their_own_problems_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What all of them know, and that another one failed, is told by the first, or by that one."""
    problems = (
        DataError("A file is gone."),
        RunError("Another process was stopped."),
        GhostifyError("Training stopped."),
    )
    for number, told in (("0", 3), ("1", 1)):
        monkeypatch.setenv("RANK", number)
        for problem in problems:
            tell(problem)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == told and lines[0].endswith("A file is gone.")
    assert lines == ["Error: (process 1) A file is gone."]


# --- the command ------------------------------------------------------------------------------------------------------


def torchrun(folder: Path, *args: str) -> subprocess.Popen[str]:
    """``ghostify`` in two processes, as a person starts them."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ghostify"]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*start, *args], cwd=folder, env=environment, text=True, **pipes)


COMMAND = ("ghostify.networks:resnet8", "--input", "3,16,16", "--data", "fake", "--set", "data.limit=100")


@pytest.mark.slow
def test_the_command_stops_and_goes_on_in_two_processes_as_in_one(tmp_path: Path) -> None:
    """SIGTERM reaches all; the first says how to go on, and alone prints what came of it."""
    said = []
    with torchrun(tmp_path, "finetune", *COMMAND, "--epochs", "200", "-o", "run") as running:
        assert running.stderr
        for line in running.stderr:
            said.append(line)
            if "epoch 2:" in line:
                running.send_signal(signal.SIGTERM)
    told = [line for line in said if line.startswith("Error: ")]
    assert told == ["Error: Interrupted. Go on with: ghostify finetune --resume run\n"], said
    saved = [path.name for path in (tmp_path / "run" / "finetune").iterdir()]
    assert saved and all(name.startswith("epoch-") for name in saved)
    with torchrun(tmp_path, "finetune", "--resume", "run") as running:
        answer, problems = running.communicate()
    assert answer.count("accuracy after fine-tuning") == 1, problems
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_the_command_fits_in_two_processes_what_it_fits_in_one(tmp_path: Path) -> None:
    """Under a budget, too, whose trials are fits: the first process plans, and all fit."""
    asked = ("compress", *COMMAND, "--target", "macs=0.6x", "--set", "fit.images=40", "--epochs", "0", "-o")
    with torchrun(tmp_path, *asked, "two") as running:
        _, problems = running.communicate()
    assert running.returncode == 0 and problems.count("Saved in two") == 1, problems
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "ghostify", *asked, "one"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    one, two = (load_file(tmp_path / name / "weights-converted.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-3)
