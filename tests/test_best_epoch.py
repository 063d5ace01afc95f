"""Training delivers the best epoch by images held out, and never makes a network worse by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from blobs import Blobs, Unheld, held_images, net, same_weights, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ghostify.errors import GhostifyError
from ghostify.finetuning import History, finetune, top1
from ghostify.finetuning.history import KNOWN, Epoch
from ghostify.measuring import evaluate
from ghostify.recipe import TrainSettings
from ghostify.runtimes import pinned_threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads than on one."""
    with pinned_threads(1):
        yield


RUINOUS = TrainSettings(epochs=3, lr=900.0, warmup=0)


def trained() -> nn.Module:
    model = net()
    train(model)
    return model


class Wrong(Blobs):
    """Training images under labels of other classes: the more is learnt of them, the worse."""

    def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
        images, labels = self._tensors(self.n, 0)
        return DataLoader(TensorDataset(images, (labels + 1) % self.labels), batch_size)


@pytest.mark.parametrize(
    ("data", "settings"),
    [(Blobs(), RUINOUS), (Wrong(), TrainSettings(epochs=2, lr=0.1)), (Wrong(), TrainSettings(epochs=1, lr=0.1))],
)
def test_training_that_does_harm_leaves_the_network_as_it_was(data: Blobs, settings: TrainSettings) -> None:
    model = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = train(model, settings, data=data)
    assert history.kept == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    text = history.verdict("Fine-tuning", settings, "30 images held out of train")
    assert text.startswith("Fine-tuning made the network no better: on 30 images held out of train it had ")
    assert f"a lower lr (now {settings.lr:g})" in text and "distill 0.7" in text


def test_the_weights_are_those_of_the_best_epoch() -> None:
    """Right labels for two epochs, then wrong ones: the second is kept, with all that belongs to it."""

    class Turning(Blobs):
        def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
            return (Wrong if epoch >= 2 else Blobs).train_loader(self, batch_size, seed, epoch, workers)  # type: ignore[arg-type]

    model, settings = net(), TrainSettings(epochs=5, lr=0.1, warmup=0)
    history = train(model, settings, data=Turning())
    held = [epoch.held for epoch in history.epochs]
    assert history.kept in (1, 2) and held[history.kept - 1] == max(held) > held[-1]  # type: ignore[type-var, operator]
    assert evaluate(model, held_images()).top1 == max(held)
    text = history.verdict("Fine-tuning", settings, "30 images held out of train")
    assert f"epoch {history.kept} of 5 is kept" in text and "30 images held out of train" in text
    assert f"Epoch {history.kept} is kept." in str(history)


@pytest.mark.parametrize(
    ("before", "held", "kept"),
    [
        (0.5, (0.5, 0.5), 0),
        (0.5, (0.4, 0.3), 0),
        (0.5, (0.6, 0.6), 1),
        (0.5, (0.6, 0.7, 0.65), 2),
        (-9.0, (-8.0, -8.5), 1),
        (-3.0, (-4.0,), 0),
        (None, (None, None), 2),
        (0.5, (), 0),
    ],
)
def test_ties_go_to_the_earlier_epoch(before: float | None, held: tuple[float | None, ...], kept: int) -> None:
    history = History(before=before)
    for number, value in enumerate(held, start=1):
        history = history.plus(Epoch(epoch=number, lr=1, loss=1, train_top1=1, held=value, seconds=1))
    assert history.kept == kept
    assert History.model_validate_json(history.model_dump_json()) == history


@pytest.mark.parametrize(("held", "kept"), [((0.495,), 1), ((0.493, 0.495), 2), ((0.49,), 0), ((0.3, 0.6), 2)])
def test_where_the_images_may_be_known_the_network_as_it_was_must_lead_by_more(
    held: tuple[float, ...], kept: int
) -> None:
    history = History(before=0.5, handicap=KNOWN)
    for number, value in enumerate(held, start=1):
        history = history.plus(Epoch(epoch=number, lr=1, loss=1, train_top1=1, held=value, seconds=1))
    assert history.kept == kept
    told = "may have learned these very images" in history.verdict("Fine-tuning", TrainSettings(), "9 images of val")
    assert told == (kept > 0 and max(held) <= 0.5)


@pytest.mark.parametrize("known", [False, True])
def test_a_network_that_knows_the_images_is_told_from_one_that_does_not(known: bool) -> None:
    """Training does harm either way; by how much, decides."""
    model = trained()
    assert train(model, RUINOUS, known=known).kept == 0
    history = train(model, RUINOUS.model_copy(update={"lr": 1e-9}), known=known)
    assert history.handicap == (KNOWN if known else 0) and history.kept == known


def test_the_verdict_tells_the_numbers_of_any_measure() -> None:
    history = History(before=-9.0).plus(
        Epoch(epoch=1, lr=1, loss=1, train_top1=1, held=-10.0, seconds=1, measure="minus_error")
    )
    text = history.verdict("Fine-tuning", TrainSettings(distill=0.5), "9 images of val")
    assert "on 9 images of val it had -9 before and -10 after its best epoch" in text and "distill 0.7" not in text


def test_without_images_held_out_the_last_epoch_stays_and_that_is_said() -> None:
    model = trained()
    history = train(model, RUINOUS, data=Unheld())
    assert history.before is None and [epoch.held for epoch in history.epochs] == [None] * 3 and history.kept == 3
    assert not same_weights(model, trained())
    text = history.verdict("Fine-tuning", RUINOUS, why_not="18 training images are too few to hold any out")
    assert text == (
        "Fine-tuning: the last epoch is kept without being compared, because 18 training images are too few to hold "
        "any out."
    )


def test_the_measure_may_be_ones_own() -> None:
    seen: list[bool] = []

    def minus_loss(model: nn.Module, loader: Iterable[Any]) -> float:
        seen.append(model.training or torch.is_grad_enabled())
        return -evaluate(model, loader).loss

    model = net()
    history = finetune(model, Blobs(), TrainSettings(epochs=2, lr=0.1), batch_size=16, measure=minus_loss)
    assert history.before is not None and history.before < 0
    assert history.epochs[history.kept - 1].held == pytest.approx(minus_loss(model.eval(), held_images()))
    assert [epoch.measure for epoch in history.epochs] == ["minus_loss"] * 2
    assert seen[:-1] == [False] * 3


def test_a_measure_that_is_no_number_is_one_line() -> None:
    def nothing(model: nn.Module, loader: Iterable[Any]) -> float:
        return float("nan")

    with pytest.raises(GhostifyError, match="measure nothing gives nan for the images held out"):
        finetune(net(), Blobs(), TrainSettings(epochs=1), measure=nothing)


def test_top1_is_accuracy() -> None:
    model = trained()
    assert top1(model, held_images()) == evaluate(model, held_images()).top1


def test_an_interrupted_run_leaves_the_best_epoch_so_far() -> None:
    class Interrupted(Wrong):
        def train_loader(self, batch_size: int, seed: int, epoch: int, workers: int) -> DataLoader[Any]:
            if epoch == 1:
                raise KeyboardInterrupt
            return super().train_loader(batch_size, seed, epoch, workers)

    model = trained()
    with pytest.raises(KeyboardInterrupt):
        train(model, TrainSettings(epochs=3, lr=0.1), data=Interrupted())
    assert same_weights(model, trained())


# --- the default rate


def test_the_default_rate_is_found_after_a_fit_alone() -> None:
    assert TrainSettings().resolved(fitted=True).lr == "auto"
    assert TrainSettings().resolved(fitted=False).lr == TrainSettings().peak == 0.02
    for given in (0.001, 0.02, 0.1):
        assert TrainSettings(lr=given).resolved(fitted=True).lr == TrainSettings(lr=given).resolved(False).lr == given
