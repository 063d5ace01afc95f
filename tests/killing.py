"""Trains in processes of its own that are killed at points drawn from a seed, and go on, until the numbers asked for.

    python tests/killing.py FOLDER KILLS PROCESSES SEED

Every process is forked from this one, which has imported all there is, and ends by a real SIGKILL: before a forward
pass (of any micro-batch), before the optimiser moves the weights, while images held out are measured, or while a
checkpoint is written, flushed, renamed or swept.  Each run that comes to its end must have the weights and the history
of the run that was never killed.  Prints one line of JSON: how many were killed, at which kinds of points, and which
runs differed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from ghostify.errors import GhostifyError
from ghostify.finetuning import finetune, objective
from ghostify.recipe import DataSettings, TrainSettings
from ghostify.sources import load_data

SIZE, CLASSES = 72, 3  # larger than what is kept in memory, so that loader processes are used
PATIENCE = 120.0
TOLD = 3
POINTS = {"forward": 24, "update": 12, "measure": 3, "write": 8, "flush": 16, "rename": 8, "sweep": 8}
"""What a process may be killed at, and how often a run passes it, more or less."""
WRITING = ("write", "flush", "rename", "sweep")
"""What the first process alone does."""
COMMON = {"epochs": 2, "lr": 0.05, "warmup": 0.2}
VARIANTS: tuple[dict[str, Any], ...] = (
    {"accumulate": 2, "save_every": 1, "ema": 0.9, "label_smoothing": 0.1},
    {"accumulate": 3, "save_every": 2, "mixup": 0.3, "cutmix": 0.5, "clip": 1.0},
    {"optimizer": "adamw", "lr": 0.003, "schedule": "one-cycle", "save_every": 3, "distill": 0.5, "renew_norms": 2},
    {"amp": "bf16", "save_every": 2, "freeze": ("conv",)},
    {"amp": "fp16", "save_every": 2, "channels_last": True},
    {"lr": "auto", "save_every": 2},
)


class Net(nn.Module):
    """What must be gone on with: a norm's statistics and a dropout's draws."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 5, stride=4)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return torch.as_tensor(self.head(self.drop(self.second(x).relu().mean((2, 3)))))


@dataclass
class Ticks:
    """Counts the points of one kind that a process passes, and kills it at one of them."""

    kind: str
    last: int
    note: Path
    passed: int = 0

    def wrap(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def called(*args: Any, **options: Any) -> Any:
            self.passed += kind == self.kind
            if kind == self.kind and self.passed == self.last:
                self.note.write_text(kind)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return called

    def install(self) -> None:
        self.objective = objective.Objective
        self.objective.__call__ = self.wrap("forward", self.objective.__call__)  # type: ignore[method-assign]
        torch.optim.SGD.step = self.wrap("update", torch.optim.SGD.step)  # type: ignore[method-assign]
        torch.optim.AdamW.step = self.wrap("update", torch.optim.AdamW.step)  # type: ignore[method-assign]
        os.fsync = self.wrap("flush", os.fsync)
        Path.replace = self.wrap("rename", Path.replace)  # type: ignore[method-assign]
        Path.unlink = self.wrap("sweep", Path.unlink)  # type: ignore[method-assign]
        Path.write_bytes = self.wrap("write", Path.write_bytes)  # type: ignore[method-assign]


def images(folder: Path) -> str:
    """Noise in the colour of its class: 78 images to train on (of which some are held out), 6 to test."""
    draws = numpy.random.default_rng(0)
    for split, count in (("train", 26), ("test", 2)):
        for label in range(CLASSES):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 120, (SIZE, SIZE, 3))
                pixels[..., label] += 100
                Image.fromarray(pixels.astype("uint8")).save(place / f"{number}.png")
    return f"folder:{folder}"


def train(variant: dict[str, Any], source: str, folder: Path, workers: int, ticks: Ticks | None) -> None:
    """Train to the end, and put down what came of it; what is counted is killed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, teacher = Net(), Net()
    data = load_data(DataSettings(source=source), (3, SIZE, SIZE), CLASSES)
    measured = data.held_loader
    if ticks is not None:
        ticks.install()
        object.__setattr__(data, "held_loader", ticks.wrap("measure", measured))
    settings = TrainSettings(**{**COMMON, **variant})
    history = finetune(
        model, data, settings, teacher=teacher, batch_size=13, workers=workers, checkpoint=folder / "checkpoint"
    )
    if os.environ.get("RANK", "0") == "0":
        told = [epoch.model_dump(exclude={"seconds", "throughput"}) for epoch in history.epochs]
        torch.save({"weights": model.state_dict(), "epochs": told}, folder / "result.pt")


def forked(work: Callable[[], None], **environment: str) -> int:
    """The number of a process that does some work, in a copy of this one."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ |= environment
        work()
        code = 0
    except GhostifyError:  # one process of two is told that the other is gone
        code = TOLD
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def launched(processes: int, rank: int, work: Callable[[bool], None]) -> list[int]:
    """The exit codes of processes that train together; ``work(True)`` is what ``rank`` does, who may be killed."""
    if processes == 1:
        return ended([forked(lambda: work(True))])
    port = _free_port()
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return ended(
        [
            forked(lambda one=one: work(one == rank), RANK=str(one), LOCAL_RANK=str(one), **common)  # type: ignore[misc]
            for one in range(processes)
        ]
    )


def ended(children: list[int]) -> list[int]:
    """What came of some processes; one that hangs is an error."""
    until, codes = time.monotonic() + PATIENCE, dict.fromkeys(children)
    while time.monotonic() < until:
        for child in (child for child, code in codes.items() if code is None):
            found, status = os.waitpid(child, os.WNOHANG)
            codes[child] = os.waitstatus_to_exitcode(status) if found else None
        if None not in codes.values():
            return [code for code in codes.values() if code is not None]
        time.sleep(0.01)
    for child in (child for child, code in codes.items() if code is None):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise TimeoutError(f"processes did not end: {codes}")


def _free_port() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return str(held.getsockname()[1])


def same(one: Path, other: Path) -> bool:
    first, second = torch.load(one / "result.pt"), torch.load(other / "result.pt")
    weights = first["weights"], second["weights"]
    equal = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    return equal and first["epochs"] == second["epochs"]


def main(folder: Path, kills: int, processes: int, seed: int) -> dict[str, Any]:
    """Kill so many processes in runs of all variants in turn, and compare what comes of the runs."""
    draws, source = random.Random(seed), images(folder / "images")
    (folder / "here").mkdir()
    # so that what is imported late is there before any fork
    train(VARIANTS[2], source, folder / "here", 0, None)
    killed: Counter[str] = Counter()
    ended_runs, different, number = 0, [], 0
    while sum(killed.values()) < kills:
        variant = VARIANTS[number % len(VARIANTS)]
        straight, run = folder / f"straight-{number % len(VARIANTS)}", folder / f"run-{number}"
        number += 1
        if not straight.exists():
            straight.mkdir()
            assert set(launched(processes, 0, lambda _: train(variant, source, straight, 0, None))) == {0}  # noqa: B023
        run.mkdir()
        while not (run / "result.pt").exists():
            # of the kinds that fewest were killed at, so that few kills are at all kinds, too
            rarest = [kind for kind in POINTS if killed[kind] == min(killed[kind] for kind in POINTS)]
            kind, workers, rank = draws.choice(rarest), draws.choice((0, 0, 2, 4)), draws.randrange(processes)
            last = draws.randint(1, POINTS[kind]) if sum(killed.values()) < kills else 0
            rank = 0 if kind in WRITING else rank
            note = run / "killed-at"
            note.unlink(missing_ok=True)

            def work(marked: bool) -> None:
                train(variant, source, run, workers, Ticks(kind, last, note) if marked else None)  # noqa: B023

            codes = launched(processes, rank, work)
            if note.exists():
                assert codes[rank] == -signal.SIGKILL and set(codes) <= {-signal.SIGKILL, TOLD, 0}, codes
                killed[note.read_text()] += 1
            else:
                assert set(codes) == {0}, codes
        ended_runs += 1
        if not same(straight, run):
            different.append({"run": run.name, **variant})
    return {"killed": sum(killed.values()), "at": dict(killed), "runs": ended_runs, "different": different}


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    print(json.dumps(main(Path(place), *map(int, numbers))))
