"""Accuracy is counted as by hand, borrows the model, and says in one line what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ghostify.errors import DataError, GhostifyError, ModelError
from ghostify.measuring import Accuracy, agreement, evaluate
from ghostify.measuring.borrowing import device_for, on_device

Batch = tuple[Tensor, Tensor]


class Wrapped(nn.Module):
    """A linear classifier whose scores come out as ``wrap`` makes them."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.net(images))


class Heads(NamedTuple):
    main: Tensor
    auxiliary: Tensor


def net(classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Dropout(0.5), nn.Flatten(), nn.Linear(20, classes))


def batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 2, 2, generator=generator), torch.randint(4, (n,), generator=generator)) for n in sizes]


def test_counts_what_one_big_batch_counts() -> None:
    model, loader = net().eval(), batches(7, 7, 3)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    scores = model(images).detach()
    found = evaluate(model, loader)
    assert found.total == 17
    assert found.correct == int((scores.argmax(1) == labels).sum())
    assert found.top1 == found.correct / 17
    assert found.loss == pytest.approx(float(cross_entropy(scores, labels)))


def test_survives_json() -> None:
    found = evaluate(net(), batches(5))
    assert Accuracy.model_validate_json(found.model_dump_json()) == found


def test_tells_progress_the_images_seen() -> None:
    seen: list[int] = []
    evaluate(net(), batches(4, 4, 1), progress=seen.append)
    assert seen == [4, 8, 9]


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(fails: bool) -> None:
    model = net().train()
    model[1].eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    loader = [*batches(4), (torch.zeros(2, 3, 2, 2), torch.tensor([0, 99]))] if fails else batches(4)
    try:
        evaluate(model, loader)
    except DataError:
        assert fails
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_evaluates_in_eval_mode_without_gradients() -> None:
    seen: list[tuple[bool, bool]] = []
    model = net().train()
    model[2].register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    evaluate(model, batches(2, 2))
    assert seen == [(False, False)] * 2


@pytest.mark.parametrize(
    "wrap",
    [
        lambda scores: {"out": scores, "aux": scores * 0},
        lambda scores: {"logits": scores},
        lambda scores: (scores, scores * 0),
        lambda scores: Heads(scores, scores * 0),
        lambda scores: scores.double(),
    ],
    ids=["out", "logits", "tuple", "namedtuple", "double"],
)
def test_finds_the_scores_in_an_output(wrap: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    model = Wrapped(wrap)
    assert evaluate(model, batches(6)) == evaluate(model.net, batches(6))


@pytest.mark.parametrize("wrap", [lambda s: {"boxes": s}, lambda s: (), lambda s: s[..., None], lambda s: "cat"])
def test_refuses_an_output_that_is_no_classification(wrap: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ModelError, match="scores"):
        evaluate(Wrapped(wrap), batches(2))


@pytest.mark.parametrize("label", [4, -1])
def test_names_the_label_that_is_no_class(label: int) -> None:
    loader = [(torch.zeros(2, 3, 2, 2), torch.tensor([3, label]))]
    with pytest.raises(DataError, match=rf"4 outputs \(labels 0 to 3\).*holds label {label}"):
        evaluate(net(), loader)


@pytest.mark.parametrize(
    "loader",
    [[], [torch.zeros(2, 3, 2, 2)], [(torch.zeros(2, 3, 2, 2), torch.zeros(2))], [(torch.zeros(1, 3, 2, 2), [1])]],
    ids=["empty", "no labels", "soft labels", "a list"],
)
def test_refuses_data_that_cannot_be_counted(loader: list[Any]) -> None:
    with pytest.raises(DataError):
        evaluate(net(), loader)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_says_that_scores_are_not_finite(value: float) -> None:
    with pytest.raises(GhostifyError, match="NaN or infinite"):
        evaluate(Wrapped(lambda scores: scores * value), batches(2))


def test_takes_narrow_labels() -> None:
    narrow = [(images, labels.to(torch.uint8)) for images, labels in batches(6)]
    assert evaluate(net(), narrow) == evaluate(net(), batches(6))


def test_agreement_is_the_share_of_equal_answers() -> None:
    one, other = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.ReLU())
    images = torch.tensor([[1.0, 2.0], [2.0, 1.0], [-1.0, -0.5], [-0.5, -1.0]])
    # ReLU makes the third row (0, 0), whose largest is the first; so they differ there alone
    assert agreement(one, other, [images[:3], (images[3:], None)]) == 0.75
    assert agreement(one, one, [images]) == 1.0


def test_agreement_needs_the_same_classes() -> None:
    with pytest.raises(ModelError, match="4 and 7 outputs"):
        agreement(net(4), net(7), batches(2))


def test_a_model_elsewhere_is_copied_not_moved() -> None:
    model = net()
    moved = on_device(model, device_for(model, "meta"))
    assert next(moved.parameters()).is_meta and not next(model.parameters()).is_meta
    assert on_device(model, device_for(model, None)) is model


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(GhostifyError, match="'warp' cannot be used") as caught:
        evaluate(net(), batches(2), device="warp")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_answers_on_a_gpu() -> None:
    model = net()
    here, there = evaluate(model, batches(9)), evaluate(model, batches(9), device="cuda")
    assert (here.correct, here.total) == (there.correct, there.total)
    assert next(model.parameters()).device.type == "cpu"


def test_a_class_that_is_ruled_out_is_never_right() -> None:
    """A mask gives -inf, which is a score like any other; NaN and inf are none."""
    mask = torch.tensor([0.0, float("-inf"), 0.0, 0.0])
    loader = batches(16)
    found = evaluate(Wrapped(lambda scores: scores + mask), loader)
    labels = loader[0][1]
    assert 0 <= found.correct <= int((labels != 1).sum())
    with pytest.raises(GhostifyError, match="NaN or infinite"):
        evaluate(Wrapped(lambda scores: scores - mask), loader)
