"""The loop from any step on: signals, checkpoints between epochs, memory that is too small, numbers that overflow."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from blobs import Blobs, Unheld, Watcher, near, net, results, same_weights, train
from torch import Tensor, nn

from ghostify.errors import GhostifyError, ModelError, RecipeError, RunError, Stopped
from ghostify.finetuning import load_checkpoint, loop, pace, tuning
from ghostify.finetuning.checkpoint import FILE
from ghostify.finetuning.objective import Objective
from ghostify.recipe import TrainSettings
from ghostify.runtimes import pinned_threads

SETTINGS = TrainSettings(epochs=3, lr=0.1, warmup=0.2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads than on one."""
    with pinned_threads(1):
        yield


def plain() -> nn.Sequential:
    """A network without norms, of which a batch in parts gives what it gives as a whole."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


@dataclass
class Signalling(Watcher):
    """Sends signals after a step."""

    at: int = 0
    numbers: tuple[int, ...] = ()
    steps: int = field(default=0)

    def step(self, loss: float) -> None:
        super().step(loss)
        self.steps += 1
        for number in self.numbers if self.steps == self.at else ():
            os.kill(os.getpid(), number)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_be_finished_and_saved(tmp_path: Path, at: int, number: int) -> None:
    """Of data, too, that cannot begin in the middle, and draw from the global generators."""
    straight, resumed = net(), net()
    history = train(straight)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        train(resumed, checkpoint=tmp_path, progress=Signalling(at=at, numbers=(number,)))
    assert caught.value.number == number and signal.getsignal(number) is before
    saved = load_checkpoint(tmp_path).run
    # after an epoch's last step, what it gave is still to be measured
    assert 3 * len(saved.history.epochs) + saved.begun.steps == at and saved.begun.steps > 0
    watcher = Watcher()
    assert results(train(resumed, checkpoint=tmp_path, progress=watcher)) == results(history)
    assert same_weights(resumed, straight) and watcher.told[0] == ("start", 9 - at)


def test_a_signal_while_images_are_measured_ends_that_at_once(tmp_path: Path) -> None:
    calls = []

    def measure(model: nn.Module, loader: Any) -> float:
        calls.append("begun")
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        calls.append("done")
        return len(calls) / 100

    with pytest.raises(Stopped):
        train(net(), measure=measure, checkpoint=tmp_path, progress=Watcher())
    assert calls == ["begun", "done", "begun"]
    assert load_checkpoint(tmp_path).run.begun.steps == 3


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(net(), checkpoint=tmp_path, progress=Signalling(at=2, numbers=(signal.SIGTERM, signal.SIGTERM)))
    assert not list(tmp_path.iterdir())


# --- when it is saved -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_checkpoint_stands_after_so_many_steps_and_at_the_ends_of_epochs(tmp_path: Path, every: int) -> None:
    settings = SETTINGS.model_copy(update={"save_every": every, "ema": 0.5})
    straight, resumed = net(), net()
    history = train(straight, settings, data=Blobs(80))
    killed = Signalling(at=9, numbers=(signal.SIGTERM, signal.SIGTERM))  # the second lets nothing be saved
    with pytest.raises(Stopped):
        train(resumed, settings, data=Blobs(80), checkpoint=tmp_path, progress=killed)
    steps = {1: [(1, 2), (1, 3)], 2: [(1, 0), (1, 2)], 5: [(0, 5), (1, 0)]}[every]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE.format(*place) for place in steps]
    assert results(train(resumed, settings, data=Blobs(80), checkpoint=tmp_path)) == results(history)
    assert same_weights(resumed, straight)


def test_by_the_clock_saving_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    found, spent, saved = pace.Pace(), 0.0, 0
    for _ in range(100_000):
        now[0] += 0.5
        if found.due():
            with found.saving():
                now[0] += 7.0
            spent, saved = spent + 7.0, saved + 1
    assert saved > 10 and spent <= 0.02 * now[0]


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """Where a loss is finite and its gradient is not."""

    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.body(x) + (0 * self.scale).sqrt())

    settings = TrainSettings(epochs=2, lr=0.1, save_every=1)
    with pytest.raises(GhostifyError, match=r"step 2 of 3: the loss is nan \('scale' holds NaN"):
        train(Rooted(), settings, data=Unheld(), checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_an_earlier_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        train(net(), checkpoint=tmp_path, progress=Signalling(at=1, numbers=(signal.SIGTERM,)))
    monkeypatch.setattr("ghostify.finetuning.checkpoint.FORMAT", 4)
    with pytest.raises(RunError, match=r"was made by another version of ghostify; .* delete .* from the beginning"):
        train(net(), checkpoint=tmp_path)


# --- a batch in parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 3, 16])
def test_a_batch_in_parts_teaches_what_it_teaches_as_a_whole(accumulate: int) -> None:
    whole, parts = plain(), plain()
    history = train(whole, data=Blobs(43))
    other = train(parts, SETTINGS.model_copy(update={"accumulate": accumulate}), data=Blobs(43))
    assert near(whole, parts) and not same_weights(plain(), parts)
    for one, two in zip(history.epochs, other.epochs, strict=True):
        assert (one.train_top1, one.held) == (two.train_top1, two.held) and one.loss == pytest.approx(
            two.loss, rel=1e-4
        )


def full_above(most: int) -> Callable[..., tuple[Tensor, int]]:
    """An objective whose device has room for so many samples only."""
    real = Objective.__call__

    def called(self: Objective, inputs: Tensor, labels: Tensor, mix: Any = None) -> tuple[Tensor, int]:
        loss, correct = real(self, inputs, labels, mix)
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return loss, correct

    return called


def test_memory_that_is_too_small_halves_what_is_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts, watcher = plain(), plain(), Signalling(at=4, numbers=(signal.SIGTERM,))
    train(whole)
    monkeypatch.setattr(Objective, "__call__", full_above(5))
    with pytest.raises(Stopped):
        train(parts, checkpoint=tmp_path, progress=watcher)
    said = [line for line in watcher.told if "memory" in line]
    assert len(said) == 1 and "4 images are run at once from now on, and the weights move after 16" in said[0]
    again = Watcher()
    train(parts, checkpoint=tmp_path, progress=again)
    assert near(whole, parts) and not [line for line in again.told if "memory" in line]


def test_memory_for_no_image_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "__call__", full_above(0))
    with pytest.raises(ModelError, match="too small to train with even one image at a time"):
        train(plain())


# --- a teacher --------------------------------------------------------------------------------------------------------


def test_a_teacher_in_its_quick_form_teaches_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be brought into that form teaches as it is."""
    settings, teacher = SETTINGS.model_copy(update={"distill": 0.7}), net(3)
    quick, plainly = plain(), plain()
    ran: list[str] = []
    teacher.register_forward_hook(lambda module, inputs, output: ran.append("as it is"))
    train(quick, settings, teacher=net(3), data=Unheld())
    assert not ran

    def refused(*args: Any) -> None:
        raise ModelError("It cannot be recorded.")

    monkeypatch.setattr(tuning, "optimize", refused)
    train(plainly, settings, teacher=teacher, data=Unheld())
    assert near(quick, plainly) and len(ran) == 9


# --- float16, layouts, compiling --------------------------------------------------------------------------------------


def test_steps_that_overflow_in_float16_are_left_out_and_counted() -> None:
    """The scale begins at 65,536, which is too much for gradients of large images."""
    settings = SETTINGS.model_copy(update={"amp": "fp16", "lr": 1e-4, "epochs": 8})

    class Large(Blobs):
        def _tensors(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
            images, labels = super()._tensors(n, seed)
            return images * 500, labels

    model = plain()
    history = train(model, settings, data=Large())
    assert history.epochs[0].skipped and not history.epochs[-1].skipped
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_run_that_only_overflows_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MOST_SKIPPED", 4)

    class Infinite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.body(x) * (1e38 if self.training else 1) * 1e38)

    with pytest.raises(GhostifyError, match=r"step 2 of 3: 4 steps in a row overflowed in float16.*kept"):
        train(Infinite(), SETTINGS.model_copy(update={"amp": "fp16"}), data=Unheld())


def test_a_compiled_network_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def compiled(model: nn.Module) -> Callable[[Tensor], Any]:
        return lambda images: (ran.append(len(images)), model(images))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    settings, one, other = SETTINGS.model_copy(update={"compile": True}), net(), net()
    train(one, settings)
    train(other)
    assert same_weights(one, other) and ran == [16] * 9


def test_features_and_compile_exclude_each_other() -> None:
    settings = {"epochs": 1, "compile": True, "distill": 0.5, "features": 1.0}
    with pytest.raises(RecipeError, match=r"features = 1 watches modules .* set features to 0 or compile to no"):
        train(net(), settings, teacher=net())  # type: ignore[arg-type]
