"""Training learns, is the same each time, can be stopped at any epoch, and leaves no trace but the weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from blobs import SETTINGS, Blobs, Tied, Unheld, Watcher, held_images, net, results, same_weights, stopped, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ghostify import optimize
from ghostify.errors import DataError, GhostifyError, ModelError, RecipeError, RunError
from ghostify.finetuning import History, finetune, has_checkpoint, learning_rate, load_checkpoint, make_optimizer
from ghostify.finetuning.seeding import seed_all
from ghostify.measuring import agreement, evaluate
from ghostify.recipe import TrainSettings
from ghostify.running import random_states_kept
from ghostify.runtimes import pinned_threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads than on one."""
    with pinned_threads(1):
        yield


def test_it_learns_and_tells_what_happened() -> None:
    model, watcher = net(), Watcher()
    history = train(model, progress=watcher)
    assert [epoch.epoch for epoch in history.epochs] == [1, 2, 3]
    kept = history.epochs[history.kept - 1]
    assert kept.held is not None and kept.held > 0.9
    assert kept.held == evaluate(model, held_images()).top1
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert all(epoch.seconds > 0 for epoch in history.epochs)
    epochs = [told for n in (1, 2, 3) for told in ["step", "step", "step", ("epoch", n)]]
    assert watcher.told == [("start", 9), *epochs, "done"]
    assert History.model_validate_json(history.model_dump_json()) == history
    assert len(str(history).splitlines()) == 5 + len(history.epochs)


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
    settings = TrainSettings(epochs=2, lr=0.1, distill=0.5, label_smoothing=0.1, clip=1.0, amp="bf16")
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


def test_a_teacher_alone_teaches_its_answers() -> None:
    teacher, student = net(1), net(2)
    train(teacher)
    train(student, TrainSettings(epochs=6, lr=0.1, distill=1.0), teacher=teacher)
    assert agreement(student, teacher, held_images()) > 0.9


def test_each_epoch_draws_its_own_numbers_from_all_generators() -> None:
    cpu = torch.device("cpu")

    def drawn(seed: int, epoch: int) -> tuple[float, float, float]:
        with random_states_kept(cpu):
            seed_all(cpu, seed, epoch)
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
    train(model, settings, data=Unheld())
    moved = sum(
        (a - b).detach().square().sum().item() for a, b in zip(model.parameters(), net().parameters(), strict=True)
    )
    assert 0 < moved**0.5 <= 3 * 1e-3


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [Blobs, Unheld])
def test_a_loss_that_is_no_number_names_the_step_and_keeps_the_last_good_epoch(
    tmp_path: Path, held: type[Blobs]
) -> None:
    class Diverging(held):  # type: ignore[misc, valid-type]
        def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
            images, labels = self._tensors(self.n, 0)
            if epoch == 1:  # the first loss is large, the weights after it are, too, and the next loss is none
                images, labels = images * 1e30, (labels + 1) % 3
            return DataLoader(TensorDataset(images, labels), batch_size)

    model, watcher = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), Watcher()
    said = (
        r"epoch 2, step 2 of 3: the loss is (nan|inf) \(layer '1' is the first to give NaN or infinite numbers\)\. "
        r"Lower lr \(now 0.1\) or set clip\. The weights of epoch 1 are"
    )
    with pytest.raises(GhostifyError, match=said) as caught:
        train(model, data=Diverging(), checkpoint=tmp_path, progress=watcher)
    assert "\n" not in str(caught.value)
    saved = load_checkpoint(tmp_path)
    assert len(saved.run.history.epochs) == 1
    assert all(tensor.isfinite().all() for tensor in saved.model.values())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in saved.best.items())
    assert watcher.told[-1] == "done"


def test_a_loss_that_is_no_number_says_what_is_at_fault() -> None:
    class Poisoned(Blobs):
        def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
            images, labels = self._tensors(self.n, 0)
            images[40] = float("nan")
            return DataLoader(TensorDataset(images, labels), batch_size)

    model = net()
    with pytest.raises(GhostifyError, match="step 3 of 3: the loss is nan, because its images hold NaN") as caught:
        train(model, data=Poisoned())
    assert "from before training" in str(caught.value) and same_weights(model, net())
    teacher = net(1)
    teacher.head.bias.data[0] = float("nan")
    with pytest.raises(GhostifyError, match="step 1 of 3: the loss is nan, because the teacher gives NaN"):
        train(model, TrainSettings(epochs=1, distill=0.5), teacher=teacher)


def test_weights_that_blow_up_in_the_last_step_are_not_saved(tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, lr=1e38, warmup=0)
    model = net()
    with pytest.raises(GhostifyError, match=r"epoch 1, .*NaN.* Lower lr \(now 1e\+38\)"):
        finetune(model, Blobs(), settings, batch_size=48, checkpoint=tmp_path)
    assert not has_checkpoint(tmp_path) and same_weights(model, net())


def test_statistics_that_blow_up_are_not_kept_where_no_image_is_held_out_to_show_it(tmp_path: Path) -> None:
    class Huge(Unheld):
        def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
            images, labels = self._tensors(self.n, 0)
            return DataLoader(TensorDataset(images * (1e25 if epoch else 1), labels), batch_size)

    model = nn.Sequential(nn.BatchNorm2d(3), net()).requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(GhostifyError, match=r"epoch 2, .*(nan|'0.running_var' holds NaN)"):
        train(model, data=Huge(), checkpoint=tmp_path)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert len(load_checkpoint(tmp_path).run.history.epochs) == 1
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


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


def test_what_is_no_training_data_is_one_line() -> None:
    with pytest.raises(DataError, match=r"'train_loader'.*, which DataLoader does not have"):
        finetune(net(), held_images(), SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "batch_size"), [(1, 16), (3, 1)])
def test_a_batch_of_one_image_without_variance_is_one_line(n: int, batch_size: int) -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten())
    with pytest.raises(DataError, match=r"Batch norms cannot be trained on a batch of 1, .* batch_size 2"):
        finetune(pooled, Blobs(n), SETTINGS, batch_size=batch_size)


def test_one_image_trains_where_its_maps_have_variance() -> None:
    assert len(train(net(), data=Unheld(1)).epochs) == 3


def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter to train"):
        train(net().requires_grad_(False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", [False, True])
def test_trains_and_goes_on_on_a_gpu(tmp_path: Path, amp: bool) -> None:
    settings = TrainSettings(epochs=3, lr=0.1, amp="bf16" if amp else "no", distill=0.3)
    model, state = net(), torch.cuda.get_rng_state()
    stopped(model, tmp_path, 1, settings, device="cuda", teacher=net(1))
    history = train(model, settings, device="cuda", teacher=net(1), checkpoint=tmp_path)
    assert next(model.parameters()).is_cuda
    assert history.epochs[-1].train_top1 > 0.9
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_an_inference_form_is_not_trained() -> None:
    optimized = optimize(net(), next(iter(held_images()))[0])
    with pytest.raises(RunError, match="is in its inference form, which is not trained"):
        finetune(optimized, Blobs(), SETTINGS)
