"""The loss is its formula, also where networks rule classes out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from ghostify.finetuning import training_loss
from ghostify.recipe import TrainSettings

OUT = float("-inf")


DISTILLED = TrainSettings(distill=1.0, temperature=2.0)


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


def test_a_class_the_teacher_rules_out_adds_nothing() -> None:
    """KL by hand: p is 1/4 and 3/4 of two classes, q is a third of three."""
    t = torch.tensor([[0.0, 2 * math.log(3.0), OUT]])
    z = torch.zeros(1, 3, requires_grad=True)
    loss = training_loss(z, torch.tensor([1]), t, DISTILLED)
    kl = 0.25 * math.log(0.25 * 3) + 0.75 * math.log(0.75 * 3)
    assert loss.item() == pytest.approx(4 * kl, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[0].tolist() == pytest.approx([2 * (1 / 3 - p) for p in (0.25, 0.75, 0.0)], rel=1e-5)


def test_a_class_the_student_rules_out_is_not_taught() -> None:
    """The teacher's 1/6, 3/6, 2/6 become 1/4, 3/4 of the two classes that the student gives."""
    t = 2 * torch.tensor([[1.0, 3.0, 2.0]]).log()
    z = torch.tensor([[0.0, 0.0, OUT]], requires_grad=True)
    loss = training_loss(z, torch.tensor([1]), t, DISTILLED)
    kl = 0.25 * math.log(0.25 * 2) + 0.75 * math.log(0.75 * 2)
    assert loss.item() == pytest.approx(4 * kl, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[0].tolist() == pytest.approx([2 * (0.5 - 0.25), 2 * (0.5 - 0.75), 0.0], rel=1e-5)


def test_of_a_class_ruled_out_nothing_remains() -> None:
    """The loss is that of networks without the class, whether both, or for some images only, rule it out."""
    torch.manual_seed(0)
    z, t, y = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    masked = torch.cat([z, torch.full((6, 1), OUT)], 1), torch.cat([t, torch.full((6, 1), OUT)], 1)
    for settings in (TrainSettings(distill=0.5), TrainSettings(label_smoothing=0.2, distill=0.3), TrainSettings()):
        plain = training_loss(z, y, t if settings.distill else None, settings)
        found = training_loss(masked[0], y, masked[1] if settings.distill else None, settings)
        assert found == pytest.approx(plain)
    same = training_loss(masked[1], y, masked[1], DISTILLED)
    assert same == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("mask", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gradients_are_finite_wherever_classes_are_ruled_out(mask: tuple[int, int]) -> None:
    torch.manual_seed(1)
    z, t = torch.randn(8, 5), torch.randn(8, 5)
    z[::2, 4] = OUT if mask[0] else 0.0
    t[1::3, 3] = OUT if mask[1] else 0.0
    z.requires_grad_()
    settings = TrainSettings(distill=0.5, label_smoothing=0.1)
    loss = training_loss(z, torch.arange(8) % 3, t, settings)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite() and gradient.isfinite().all()
    assert not gradient[z == OUT].any()


def test_a_teacher_that_is_no_number_is_not_hidden() -> None:
    for bad in (float("nan"), float("inf")):
        t = torch.tensor([[0.0, bad, OUT]])
        assert not training_loss(torch.zeros(1, 3), torch.tensor([0]), t, DISTILLED).isfinite()
