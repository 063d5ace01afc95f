"""What is written down of training: complete after a resume, readable by machines, drawn for people."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from blobs import SETTINGS, Blobs, Small, Watcher
from image_trees import data

from ghostify.cli import main, show
from ghostify.errors import RecipeError, RunError
from ghostify.finetuning import Epoch, History, Recorder, Step, finetune, read_histories, require_tensorboard
from ghostify.finetuning.curves import _levels, curves
from ghostify.finetuning.history import MOST_STEPS
from ghostify.finetuning.recording import write_history
from ghostify.measuring import Accuracy, evaluate
from ghostify.reporting.by_class import class_table
from ghostify.sources.loaders import Loader


def recorded(folder: Path, **options: Any) -> History:
    recorder = Recorder(Watcher(options.pop("stop_after", None)), folder, "finetune", 0.9)
    torch.manual_seed(0)
    return finetune(Small(3), Blobs(), SETTINGS, batch_size=16, progress=recorder, **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_and_json_say_the_same_as_the_history(tmp_path: Path) -> None:
    history = recorded(tmp_path)
    kept = read_histories(tmp_path)["finetune"]
    assert kept == history.model_copy(update={"original": 0.9})
    epochs, steps = (
        rows(tmp_path / "training" / "finetune-epochs.csv"),
        rows(tmp_path / "training" / "finetune-steps.csv"),
    )
    assert [float(row["held"]) for row in epochs] == [epoch.held for epoch in history.epochs]
    assert [float(row["loss"]) for row in steps] == [step.loss for step in history.steps]
    assert [int(row["step"]) for row in steps] == list(range(1, len(steps) + 1)) and len(steps) % 3 == 0
    for row in steps:
        assert float(row["throughput"]) == pytest.approx(int(row["samples"]) / float(row["seconds"]))
    per_epoch = len(steps) // 3
    assert [float(row["epochs"]) for row in steps][per_epoch - 1 :: per_epoch] == [1, 2, 3]
    losses = [step.loss * step.samples for step in history.steps[:per_epoch]]
    assert sum(losses) / sum(step.samples for step in history.steps[:per_epoch]) == pytest.approx(
        history.epochs[0].loss
    )


def test_a_run_that_goes_on_has_what_was_before(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path / "run", checkpoint=tmp_path / "checkpoint", stop_after=1)
    assert len(read_histories(tmp_path / "run")["finetune"].epochs) == 1
    recorded(tmp_path / "run", checkpoint=tmp_path / "checkpoint")
    resumed = read_histories(tmp_path / "run")["finetune"]
    untimed = {"seconds": 0.0}
    assert [step.model_copy(update=untimed) for step in resumed.steps] == [
        step.model_copy(update=untimed) for step in whole.steps
    ]
    assert [epoch.held for epoch in resumed.epochs] == [epoch.held for epoch in whole.epochs]


@pytest.mark.parametrize("total", [1, 399, 401, 12_345, 1_000_000])
def test_of_many_steps_a_few_are_kept_and_always_the_last(total: int) -> None:
    every = math.ceil(total / MOST_STEPS)
    history = History()
    for number in sorted({*range(every, total + 1, every), *range(1, min(total, 900) + 1), total}):
        history = history.noted(Step(step=number, epochs=1, loss=1, lr=1, samples=1, seconds=1), total)
    kept = [step.step for step in history.steps]
    assert kept[-1] == total and len(kept) <= MOST_STEPS + 1
    assert all(number % every == 0 for number in kept[:-1])


def example(epochs: int = 3, original: float | None = 0.9, **changes: Any) -> History:
    steps = [
        Step(step=n, epochs=n / 5, loss=1 / n, lr=0.1 / n, samples=8, seconds=0.5) for n in range(1, 5 * epochs + 1)
    ]
    told = [
        Epoch(epoch=n, lr=0.1, loss=1 / n, train_top1=0.1 * n, held=0.2 * n, seconds=1).model_copy(update=changes)
        for n in range(1, epochs + 1)
    ]
    return History(before=0.1, epochs=tuple(told), steps=tuple(steps), original=original)


def drawn(history: History) -> tuple[list[str], list[list[tuple[float, float]]]]:
    """The texts and the lines of a picture."""
    root = ElementTree.fromstring(curves(history))
    texts = [node.text or "" for node in root.iter() if node.tag.endswith("}text")]
    lines = [node.attrib["points"] for node in root.iter() if node.tag.endswith("polyline")]
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    places = [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]
    assert all(0 <= x <= width and 0 <= y <= height for line in places for x, y in line)
    return texts, places  # type: ignore[return-value]


def test_curves_show_loss_accuracy_and_rate() -> None:
    texts, lines = drawn(example())
    assert {"loss of training", "top-1", "learning rate", "original", "held out", "100%"} <= {*texts}
    assert [len(line) for line in lines] == [15, 3, 3, 4, 15]
    held = lines[3]
    assert all(before[1] > after[1] for before, after in pairwise(held)), "better is further up"


@pytest.mark.parametrize(
    "history",
    [
        example(1, None),
        example(2, None, held=None, train_top1=None),
        example(2, loss=float("nan")),
        example(3, -2.5, measure="minus <error> & more", held=-3.0),
        History(),
    ],
)
def test_curves_of_any_history_are_a_picture(history: History) -> None:
    texts, _ = drawn(history)
    assert not any("nan" in text for text in texts)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.32), (-5, -4.9), (7, 7), (0, 0), (1e-9, 3e6)])
def test_levels_hold_what_is_between_them(low: float, high: float) -> None:
    levels = _levels(low, high)
    assert levels[0] <= low and levels[-1] >= high and 2 <= len(levels) <= 9 and levels == sorted(set(levels))


def test_tensorboard_gets_each_step_and_epoch(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorder = Recorder(Watcher(), tmp_path, "finetune", tensorboard=True)
    history = finetune(Small(3), Blobs(), SETTINGS, batch_size=16, progress=recorder)
    events = reading.EventAccumulator(str(tmp_path / "training" / "tensorboard" / "finetune"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == [step.step for step in history.steps]
    assert [event.value for event in events.Scalars("epoch/held out")] == pytest.approx(
        [epoch.held for epoch in history.epochs]
    )


def test_tensorboard_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"^--tensorboard needs TensorBoard: pip install 'ghostify\[tensorboard\]'\.$"
    ):
        require_tensorboard()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written to .*file"):
        write_history(tmp_path / "file", "finetune", example())
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "finetune-history.json").write_text("{")
    with pytest.raises(RunError, match=r"finetune-history\.json' cannot be read; delete it"):
        read_histories(tmp_path)


def test_what_holds_training_up_is_told_once(tmp_path: Path) -> None:
    watcher = Watcher()
    recorder = Recorder(watcher, tmp_path, "finetune", slowed=lambda: "It waits.")
    finetune(Small(3), Blobs(), SETTINGS, batch_size=16, progress=recorder)
    assert watcher.told.count("It waits.") == 1


def test_a_loader_knows_how_long_it_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = data("fake", limit=32)
    batch = type(loaded.train).batch

    def slow(*arguments: Any) -> Any:
        time.sleep(0.03)
        return batch(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(type(loaded.train), "batch", slow)
        for _ in loaded.train_loader(4, 0, 0):
            time.sleep(0.01)
    waits = loaded.feeding.waits
    assert 0.24 <= waits.waited < waits.total and waits.share > 0.5
    before = waits.total
    list(loaded.test_loader(4))
    assert waits.total == before, "testing is not training"
    assert isinstance(loaded.test_loader(4), Loader)


# -- on the screen ---------------------------------------------------------------------------------------------


def test_plain_lines_tell_loss_accuracy_the_originals_and_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    progress, history = show.TrainingProgress(), example(1)
    progress.start(10, "Training")
    for step in history.steps:
        progress.step(step)
    progress.epoch(history.epochs[0].model_copy(update={"throughput": 1234.5}), history)
    progress.done()
    said = capsys.readouterr().err
    assert "epoch 1: loss 1.0000, held out 20.00%, original 90.00%, 1,234 samples/s, " in said and "s left" in said


def test_long_epochs_tell_how_far_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show.Steps, "SECONDS_BETWEEN_LINES", -1.0)
    progress = show.TrainingProgress()
    progress.start(10, "Training, 2 epochs")
    progress.step(example().steps[1])
    assert "Training, 2 epochs: 1 of 10, loss 0.500, 16 samples/s, " in capsys.readouterr().err


def test_a_report_has_the_trainings_and_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fed = ("--data", "digits", "--input", "1,8,8", "--set", "model.args={in_channels: 1}", "--set", "data.limit=64")
    asked = ("--set", "pretrain.epochs=1", "--epochs", "1", "--fit", "none", "--no-measure", "--min-saving", "0")

    def ran(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["ghostify", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert stop.value.code in (0, None), printed.err
        return printed.out, printed.err

    _, said = ran("compress", "ghostify:resnet8", *fed, *asked, "-o", "run")
    assert said.count("samples/s") == 2 and said.count(", original ") == 1
    out, said = ran("report", "run", "--layers")
    assert "Training the original" in out and "Fine-tuning\n" in out and "run/training/finetune-curves.svg" in said
    assert "Accuracy by class" in out and "after fine-tuning" in out
    told = json.loads(ran("report", "run", "--json")[0])
    assert set(told["training"]) == {"pretrain", "finetune"} and told["classes"] == list("0123456789")
    _, said = ran("finetune", "run", "--data", "digits", "--set", "data.limit=64", "-o", "further")
    assert said.count("samples/s") == said.count(", original ") == 1, "also of a run that is trained further"
    counts = told["accuracy"]["finetuned"]["by_class"]
    assert sum(total for total, _ in counts) == 64
    assert sum(right for _, right in counts) == told["accuracy"]["finetuned"]["correct"]


# -- class by class --------------------------------------------------------------------------------------------


def test_accuracy_is_counted_class_by_class() -> None:
    class Told(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(x.flatten().long(), 5).float()

    said, labels = torch.tensor([0, 1, 1, 3, 3, 0]), torch.tensor([0, 1, 0, 3, 3, 3])
    batches = [(said[:4].view(4, 1, 1, 1), labels[:4]), (said[4:].view(2, 1, 1, 1), labels[4:])]
    found = evaluate(Told(), batches)
    assert found.by_class == ((2, 1), (1, 1), (0, 0), (3, 2)) and found.correct == 4


def counted(*rights: int) -> Accuracy:
    return Accuracy(
        top1=0, correct=sum(rights), total=100 * len(rights), loss=0, by_class=tuple((100, n) for n in rights)
    )


def test_of_many_classes_the_worst_are_shown() -> None:
    names, stages = [f"n{index}" for index in range(30)], {"original": "original", "converted": "converted"}
    few = class_table({"original": counted(5, 9), "converted": counted(4, 8)}, names, stages)
    assert few is not None and few.rows == [["n0", "100", "5.00%", "4.00%"], ["n1", "100", "9.00%", "8.00%"]]
    many = class_table({"converted": counted(*range(60, 30, -1))}, names[:20], stages)
    assert many is not None and "10 worst of 30" in many.title
    assert [row[0] for row in many.rows] == [f"class {index}" for index in range(29, 19, -1)]
    assert class_table({"original": Accuracy(top1=0, correct=0, total=1, loss=0)}, names, stages) is None
