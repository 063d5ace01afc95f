"""Checkpoints survive what happens to files, and what does not fit is refused before anything is changed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blobs import Unheld, Watcher, net, results, same_weights, stopped, train

from ghostify.errors import RunError
from ghostify.finetuning import check_checkpoint, has_checkpoint, load_checkpoint, remove_checkpoint
from ghostify.finetuning.checkpoint import FILE
from ghostify.recipe import TrainSettings
from ghostify.runtimes import pinned_threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads than on one."""
    with pinned_threads(1):
        yield


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": TrainSettings(epochs=3, lr=0.2, warmup=0.2)}, "lr = 0.1, not 0.2"),
        ({"settings": TrainSettings(epochs=9, lr=0.1, warmup=0.2)}, "epochs = 3, not 9"),
        ({"seed": 7}, "seed = 0, not 7"),
    ],
    ids=["lr", "epochs", "seed"],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    stopped(net(), tmp_path, 1)
    with pytest.raises(RunError, match=said):
        train(net(), checkpoint=tmp_path, **change)


def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    stopped(net(), tmp_path, 1)
    model = net(4, classes=5)
    with pytest.raises(RunError, match=r"another network: 'head.bias' was float32 \(3,\) and is float32 \(5,\)"):
        train(model, checkpoint=tmp_path)
    assert same_weights(model, net(4, classes=5))


def _truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip_a_weight(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def _rewrite_history(content: bytes) -> bytes:
    return content.replace(b'epoch\\":1', b'epoch\\":2')


def _empty(content: bytes) -> bytes:
    return b""


def _of_another_format(content: bytes) -> bytes:
    return b"PK\3\4" * 9


def _grow(content: bytes) -> bytes:
    return content + b"\0" * 64


DAMAGES = [_truncate, _flip_a_weight, _rewrite_history, _empty, _of_another_format, _grow]


def file(folder: Path, epoch: int) -> Path:
    """What lies there after an epoch."""
    return folder / FILE.format(epoch, 0)


def spoil(path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole


def one_line(call: Callable[[], Any]) -> str:
    with pytest.raises(RunError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("data", [None, Unheld()])
def test_of_a_damaged_checkpoint_the_one_before_it_is_taken_and_said(
    tmp_path: Path, damage: Callable[[bytes], bytes], data: Unheld | None
) -> None:
    options = {} if data is None else {"data": data}
    straight, resumed, watcher = net(), net(), Watcher()
    history = train(straight, **options)
    stopped(resumed, tmp_path, 2, **options)
    spoil(file(tmp_path, 2), damage)
    check_checkpoint(tmp_path)
    assert results(train(resumed, checkpoint=tmp_path, progress=watcher, **options)) == results(history)
    assert same_weights(resumed, straight)
    assert (
        "is damaged" in watcher.told[0] and f"goes on from the one before it, {FILE.format(1, 0)}." in watcher.told[0]
    )
    assert watcher.told[1] == ("start", 6)
    assert load_checkpoint(tmp_path).problem == "", "it was written anew"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("after", [1, 2])
def test_when_all_checkpoints_are_damaged_one_line_says_so(
    tmp_path: Path, damage: Callable[[bytes], bytes], after: int
) -> None:
    stopped(net(), tmp_path, after)
    for path in tmp_path.iterdir():
        spoil(path, damage)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for call in (check_checkpoint, load_checkpoint, lambda folder: train(net(), checkpoint=folder)):
        text = one_line(lambda call=call: call(tmp_path))
        assert "is damaged" in text and f"delete {str(tmp_path)!r} to train from the beginning" in text
        assert ("and so is the one before it" in text) == (after == 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "nothing is removed"


def test_two_checkpoints_stay_and_nothing_else_of_ours(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".epoch-0001-step-000000.safetensors.partial").write_bytes(b"half")
    (tmp_path / ".epoch-mine.partial").write_bytes(b"mine")
    train(net(), checkpoint=tmp_path)
    left = {".epoch-mine.partial", "notes.txt", FILE.format(2, 0), FILE.format(3, 0)}
    assert {path.name for path in tmp_path.iterdir()} == left
    remove_checkpoint(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".epoch-mine.partial", "notes.txt"}
    assert not has_checkpoint(tmp_path)


def test_a_folder_with_checkpoints_alone_goes_with_them(tmp_path: Path) -> None:
    train(net(), checkpoint=tmp_path / "run")
    remove_checkpoint(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    remove_checkpoint(tmp_path / "run")


def test_a_missing_checkpoint_is_an_error_to_load_and_none_to_check(tmp_path: Path) -> None:
    assert "no checkpoint" in one_line(lambda: load_checkpoint(tmp_path))
    assert "no checkpoint" in one_line(lambda: load_checkpoint(tmp_path / "none"))
    check_checkpoint(tmp_path)
    check_checkpoint(tmp_path / "none")


def test_a_disk_that_is_full_leaves_the_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(net(), tmp_path, 1)
    whole = file(tmp_path, 1).read_bytes()

    def crash(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    assert "cannot be written: disk full" in one_line(lambda: train(net(), checkpoint=tmp_path))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [FILE.format(1, 0)]
    assert file(tmp_path, 1).read_bytes() == whole
    train(net(), checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE.format(2, 0), FILE.format(3, 0)]


@pytest.mark.parametrize("lr", [0.1, 5.0])
def test_the_kept_epoch_survives_a_resume(tmp_path: Path, lr: float) -> None:
    """Also where it lies before the newest, or before the first."""
    settings = TrainSettings(epochs=4, lr=lr, warmup=0)
    straight, resumed = net(), net()
    history = train(straight, settings)
    for after in (1, 2, 3):
        stopped(resumed, tmp_path, after, settings)
        saved = load_checkpoint(tmp_path)
        assert saved.run.history.before == history.before
    again = net(7)
    assert train(again, settings, checkpoint=tmp_path).kept == history.kept
    assert same_weights(again, straight)


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import torch
from blobs import Blobs, net
from ghostify.finetuning import finetune
from ghostify.recipe import TrainSettings
torch.set_num_threads(1)
calls = 0
def killing(name, real):
    def called(*args, **options):
        global calls
        calls += name == {point!r}
        if name == {point!r} and calls == {call}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return called
os.fsync = killing("fsync", os.fsync)
Path.replace = killing("replace", Path.replace)
Path.unlink = killing("unlink", Path.unlink)
finetune(net(), Blobs(), TrainSettings(epochs=3, lr=0.1, warmup=0.2), batch_size=16, checkpoint=Path({folder!r}))
"""


@pytest.mark.parametrize(
    ("point", "call", "finished"),
    [
        ("fsync", 3, 1),  # all of it, under another name
        ("replace", 2, 1),  # and flushed
        ("fsync", 4, 2),  # it has its name, which is not flushed
        ("unlink", 4, 3),  # before the oldest of three is removed
    ],
)
def test_training_that_is_killed_while_it_saves_goes_on_to_the_same_bits(
    tmp_path: Path, point: str, call: int, finished: int
) -> None:
    folder = tmp_path / "run"
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = KILLED.format(paths=paths, point=point, call=call, folder=str(folder))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    check_checkpoint(folder)
    assert len(load_checkpoint(folder).run.history.epochs) == finished
    straight, resumed = net(), net()
    history = train(straight)
    assert results(train(resumed, checkpoint=folder)) == results(history)
    assert same_weights(resumed, straight)
    if finished < 3:
        assert sorted(path.name for path in folder.iterdir()) == [FILE.format(2, 0), FILE.format(3, 0)], (
            "and it is swept"
        )
