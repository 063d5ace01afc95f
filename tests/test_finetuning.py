"""Training learns, is the same each time, can be stopped at any epoch, and leaves no trace but the weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ghostify.errors import DataError, GhostifyError, ModelError, RecipeError, RunError
from ghostify.finetuning import Epoch, History, finetune, learning_rate, load_checkpoint
from ghostify.finetuning.checkpoint import FILE
from ghostify.finetuning.loop import make_optimizer, random_states_kept, seed_epoch, training_loss
from ghostify.measuring import agreement, evaluate
from ghostify.measuring.latency import pinned_threads
from ghostify.recipe import TrainSettings


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads than on one."""
    with pinned_threads(1):
        yield


SETTINGS = TrainSettings(epochs=3, lr=0.1, warmup=0.2)


class Jittered(Dataset[tuple[Tensor, Tensor]]):
    """Images with noise from the global generators, as an augmentation by a user's own function may draw it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shift = random.random() + float(numpy.random.rand())
        return self.images[index] + 0.1 * torch.randn(3, 4, 4) + 0.01 * shift, self.labels[index]


@dataclass
class Blobs:
    """Images whose mean colour is their class."""

    n: int = 48
    labels: int = 3

    def _tensors(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % self.labels
        images = torch.randn(n, 3, 4, 4, generator=generator)
        return images + 2 * nn.functional.one_hot(labels, max(3, self.labels))[:, :3, None, None], labels

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        return DataLoader(Jittered(*self._tensors(self.n, 0)), batch_size, shuffle=True, num_workers=workers)

    def test_loader(self, batch_size: int, workers: int) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self._tensors(30, 1)), batch_size, num_workers=workers)


@dataclass
class Watcher:
    """Writes down what it is told, and interrupts after an epoch when asked to."""

    stop_after: int | None = None
    told: list[Any] = field(default_factory=list)

    def start(self, total_steps: int, title: str) -> None:
        self.told.append(("start", total_steps))

    def step(self, loss: float) -> None:
        self.told.append("step")

    def epoch(self, epoch: Epoch) -> None:
        self.told.append(("epoch", epoch.epoch))
        if epoch.epoch == self.stop_after:
            raise KeyboardInterrupt

    def done(self) -> None:
        self.told.append("done")


class Tied(nn.Module):
    """One convolution registered twice, its weight stored as a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.first = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.first.weight = nn.Parameter(torch.randn(6, 6, 3, 3).transpose(0, 1) * 0.1)
        self.second = self.first
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(self.stem(x)).relu())).relu().mean((2, 3))
        return torch.as_tensor(self.head(x))


class Small(nn.Module):
    """A convolution, its norm, some dropout, and a classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3))))


def net(seed: int = 0, classes: int = 3) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small(classes)


def train(model: nn.Module, settings: TrainSettings = SETTINGS, **options: Any) -> History:
    return finetune(model, options.pop("data", Blobs()), settings, batch_size=16, **options)


def stopped(model: nn.Module, folder: Path, after: int, settings: TrainSettings = SETTINGS, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(model, settings, checkpoint=folder, progress=Watcher(stop_after=after), **options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def results(history: History) -> list[dict[str, Any]]:
    return [epoch.model_dump(exclude={"seconds"}) for epoch in history.epochs]


def test_it_learns_and_tells_what_happened() -> None:
    model, watcher = net(), Watcher()
    history = train(model, progress=watcher)
    assert [epoch.epoch for epoch in history.epochs] == [1, 2, 3]
    assert history.epochs[-1].test_top1 > 0.9
    assert history.epochs[-1].test_top1 == evaluate(model, Blobs().test_loader(16, 0)).top1
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert all(epoch.seconds > 0 for epoch in history.epochs)
    epochs = [told for n in (1, 2, 3) for told in ["step", "step", "step", ("epoch", n)]]
    assert watcher.told == [("start", 9), *epochs, "done"]
    assert History.model_validate_json(history.model_dump_json()) == history
    assert len(str(history).splitlines()) == 3 + len(history.epochs)


def test_no_epochs_change_nothing() -> None:
    model = net()
    assert train(model, TrainSettings(epochs=0)) == History()
    assert same_weights(model, net())


# --- the same each time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_seed_alone_decides(workers: int) -> None:
    settings = TrainSettings(epochs=1, lr=0.1)
    one, again, other = net(), net(), net()
    first = train(one, settings, workers=workers)
    torch.manual_seed(1234)
    random.seed(1234)
    numpy.random.seed(1234)
    assert results(train(again, settings, workers=workers)) == results(first)
    assert same_weights(one, again)
    train(other, settings, seed=1, workers=workers)
    assert not same_weights(one, other)


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("make", [net, Tied])
def test_stop_and_go_on_gives_the_same_bits(tmp_path: Path, after: int, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    straight = make()
    resumed, fresh = make(), make()
    resumed.load_state_dict(straight.state_dict())
    history = train(straight)
    stopped(resumed, tmp_path, after)
    watcher = Watcher()
    assert results(train(fresh, checkpoint=tmp_path, progress=watcher)) == results(history)
    assert same_weights(fresh, straight)
    assert watcher.told[0] == ("start", 3 * (3 - after))


def test_stop_and_go_on_with_all_settings(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=2, lr=0.1, distill=0.5, label_smoothing=0.1, clip=1.0, amp=True)
    straight, resumed = net(), net()
    train(straight, settings, teacher=net(9))
    stopped(resumed, tmp_path, 1, settings, teacher=net(9))
    train(resumed, settings, teacher=net(9), checkpoint=tmp_path)
    assert same_weights(straight, resumed)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    one, again = net(), net(5)
    history = train(one, checkpoint=tmp_path)
    watcher = Watcher()
    assert train(again, checkpoint=tmp_path, progress=watcher) == history
    assert same_weights(one, again)
    assert watcher.told == ["done"]


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    stopped(model, tmp_path, 1)
    train(model, checkpoint=tmp_path)
    assert model.first.weight is model.second.weight
    saved = load_checkpoint(tmp_path)
    assert torch.equal(saved.model["first.weight"], saved.model["second.weight"])
    assert torch.equal(saved.model["first.weight"], model.first.weight)


# --- no trace ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, 1])
def test_modes_and_random_states_are_put_back(stop: int | None) -> None:
    model, teacher = net().eval(), net(1).train()
    model.drop.train()
    teacher.norm.eval()
    modes = [m.training for one in (model, teacher) for m in one.modules()]
    buffers = [buffer.clone() for buffer in teacher.buffers()]
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index]
    try:
        train(model, TrainSettings(epochs=2, distill=0.5), teacher=teacher, progress=Watcher(stop))
    except KeyboardInterrupt:
        assert stop
    assert [m.training for one in (model, teacher) for m in one.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, teacher.buffers(), strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == numpy.random.get_state()[1].tolist()  # type: ignore[index]


def test_the_teacher_gets_no_gradient() -> None:
    teacher = net(1)
    train(net(), TrainSettings(epochs=1, distill=1.0), teacher=teacher)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_frozen_parameters_stay() -> None:
    model = net()
    model.conv.requires_grad_(False)
    train(model)
    assert torch.equal(model.conv.weight, net().conv.weight)
    assert not torch.equal(model.head.weight, net().head.weight)


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 10, 97])
def test_learning_rate_rises_in_a_line_then_falls_to_zero(total: int, warmup: float) -> None:
    settings = TrainSettings(lr=0.3, warmup=warmup)
    rates = [learning_rate(step, total, settings) for step in range(total + 1)]
    warm = round(warmup * total)
    assert rates[warm] == max(rates) == pytest.approx(0.3)
    assert all(0 < rate <= 0.3 for rate in rates[:total])
    rises = [b - a for a, b in pairwise(rates[: warm + 1])]
    assert rises == pytest.approx([0.3 / (warm + 1)] * warm)
    assert all(b < a for a, b in pairwise(rates[warm:]))
    if warm < total:
        assert rates[total] == pytest.approx(0.0)


def test_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    z, t, y = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    p, q = softmax(t / 3, 1), softmax(z / 3, 1)
    kl = (p * (p / q).log()).sum(1).mean()
    settings = TrainSettings(distill=0.25, temperature=3.0)
    assert training_loss(z, y, t, settings) == pytest.approx(0.75 * cross_entropy(z, y) + 0.25 * 9 * kl)
    assert training_loss(z, y, None, settings) == pytest.approx(cross_entropy(z, y))
    soft = TrainSettings(label_smoothing=0.2)
    by_hand = 0.8 * cross_entropy(z, y) - 0.2 * z.log_softmax(1).mean()
    assert training_loss(z, y, None, soft) == pytest.approx(by_hand)


def test_a_teacher_alone_teaches_its_answers() -> None:
    teacher, student = net(1), net(2)
    train(teacher)
    train(student, TrainSettings(epochs=6, lr=0.1, distill=1.0), teacher=teacher)
    assert agreement(student, teacher, Blobs().test_loader(16, 0)) > 0.9


def test_each_epoch_draws_its_own_numbers_from_all_generators() -> None:
    cpu = torch.device("cpu")

    def drawn(seed: int, epoch: int) -> tuple[float, float, float]:
        with random_states_kept(cpu):
            seed_epoch(seed, epoch, cpu)
            return random.random(), float(numpy.random.rand()), torch.rand(()).item()

    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (10, 1), (1, 11)]
    assert [drawn(*pair) for pair in pairs] == [drawn(*pair) for pair in pairs]
    assert all(len(set(numbers)) == len(pairs) for numbers in zip(*(drawn(*pair) for pair in pairs), strict=True))


def test_schedule_runs_over_all_epochs() -> None:
    history = train(net())
    assert [epoch.lr for epoch in history.epochs] == [learning_rate(step, 9, SETTINGS) for step in (2, 5, 8)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_is_nesterovs(momentum: float) -> None:
    optimizer = make_optimizer(net(), TrainSettings(momentum=momentum))
    assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(momentum, momentum > 0)}


def test_only_matrices_and_kernels_decay() -> None:
    decayed, free = make_optimizer(net(), TrainSettings(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in free["params"]] == [1, 1, 1, 1]


def test_clip_bounds_a_step() -> None:
    model, settings = net(), TrainSettings(epochs=1, lr=1.0, warmup=0, momentum=0, weight_decay=0, clip=1e-3)
    train(model, settings)
    moved = sum(
        (a - b).detach().square().sum().item() for a, b in zip(model.parameters(), net().parameters(), strict=True)
    )
    assert 0 < moved**0.5 <= 3 * 1e-3


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_before_the_checkpoint(tmp_path: Path) -> None:
    class Poisoned(Blobs):
        def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
            images, labels = self._tensors(self.n, 0)
            images = images * (float("nan") if epoch == 1 else 1)
            return DataLoader(TensorDataset(images, labels), batch_size)

    model, watcher = net(), Watcher()
    with pytest.raises(GhostifyError, match=r"epoch 2: the loss is nan\. Lower lr \(now 0.1\) or set clip") as caught:
        train(model, data=Poisoned(), checkpoint=tmp_path, progress=watcher)
    assert "\n" not in str(caught.value)
    saved = load_checkpoint(tmp_path)
    assert len(saved.run.history.epochs) == 1
    assert all(tensor.isfinite().all() for tensor in saved.model.values())
    assert watcher.told[-1] == "done"


def test_weights_that_blow_up_in_the_last_step_are_not_saved(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, lr=1e38, warmup=0)
    with pytest.raises(GhostifyError, match="NaN"):
        finetune(net(), Blobs(), settings, batch_size=48, checkpoint=tmp_path)
    assert not (tmp_path / FILE).exists()


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


@pytest.mark.parametrize(
    "damage", [_truncate, _flip_a_weight, _rewrite_history, lambda _: b"", lambda _: b"PK\3\4" * 9]
)
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    stopped(net(), tmp_path, 1)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(damage(whole))
    assert (tmp_path / FILE).read_bytes() != whole
    with pytest.raises(RunError, match="is damaged") as caught:
        train(net(), checkpoint=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_an_error_to_load(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        load_checkpoint(tmp_path)


def test_a_crash_while_writing_leaves_the_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(net(), tmp_path, 1)
    whole = (tmp_path / FILE).read_bytes()

    def crash(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(RunError, match="cannot be written: disk full"):
        train(net(), checkpoint=tmp_path)
    monkeypatch.undo()
    assert (tmp_path / FILE).read_bytes() == whole
    train(net(), checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_distilling_needs_a_teacher_of_the_same_classes() -> None:
    settings = TrainSettings(epochs=1, distill=0.5)
    with pytest.raises(RecipeError, match=r"distill = 0.5 needs"):
        train(net(), settings)
    with pytest.raises(ModelError, match="3 and 8 outputs"):
        train(net(), settings, teacher=net(1, classes=8))


def test_data_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(DataError, match=r"3 outputs .* label 3"):
        train(net(), data=Blobs(labels=4))

    class Empty(Blobs):
        def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
            return DataLoader(TensorDataset(torch.zeros(3, 3), torch.zeros(3)), batch_size, drop_last=True)

    with pytest.raises(DataError, match="no batch"):
        train(net(), data=Empty())


def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter to train"):
        train(net().requires_grad_(False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", [False, True])
def test_trains_and_goes_on_on_a_gpu(tmp_path: Path, amp: bool) -> None:
    settings = TrainSettings(epochs=3, lr=0.1, amp=amp, distill=0.3)
    model, state = net(), torch.cuda.get_rng_state()
    stopped(model, tmp_path, 1, settings, device="cuda", teacher=net(1))
    history = train(model, settings, device="cuda", teacher=net(1), checkpoint=tmp_path)
    assert next(model.parameters()).is_cuda
    assert history.epochs[-1].test_top1 > 0.9
    assert torch.equal(torch.cuda.get_rng_state(), state)
