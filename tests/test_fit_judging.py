"""What is told of a fit: it is measured on images that no solve has seen, however few there are, and is a number."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import conv_bn, head

import ghostify
from ghostify import Ghosted, convert
from ghostify.errors import FitError
from ghostify.fit_result import Fit
from ghostify.fitting.calibration import Calibration
from ghostify.fitting.judging import squared_difference

INF, NAN = math.inf, math.nan
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"min_saving": 0, "cheap": "depthwise 3"},
    "pointwise": {"min_saving": 0},
    "thin": {"method": "thin", "width": 0.5},
    "g-ghost": {"method": "g-ghost", "ratio": 0.5},
}
each_method = pytest.mark.parametrize("method", METHODS)


def by_method(counts: Sequence[int], of_others: Sequence[int]) -> Any:
    """Numbers of images: all of them for the default method, and some for each other."""
    cases = [(count, method) for method in METHODS for count in (counts if method == "pointwise" else of_others)]
    return pytest.mark.parametrize(("count", "method"), cases)


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth ones, whose maps can be told from each other by few of them."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(count, 3, 4, 4, generator=generator), size=8, mode="bilinear")


def network(seed: int = 0, width: int = 12, blocks: int = 3) -> nn.Module:
    """Residual blocks, whose norms know the images."""
    torch.manual_seed(seed)
    model = nn.Sequential(conv_bn(3, width), *(Block(width) for _ in range(blocks)), head(width))
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 1.0
    model.train()(images(256, seed=3))
    return model.eval()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(width, width), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def converted(count: int, method: str, model: nn.Module | None = None, given: Tensor | None = None) -> Ghosted:
    given = images(count) if given is None else given
    return convert(model or network(), given[:1], METHODS[method], images=given)


@cache
def plainly_converted(count: int, method: str) -> Ghosted:
    """The network by itself, with its own images."""
    return converted(count, method)


def missed(model: nn.Module, module: nn.Module, others: Tensor) -> float:
    with torch.no_grad():
        wanted, found = model(others).double(), module(others).double()
    return float((found - wanted).square().mean() / wanted.var(0).mean())


def weights(module: nn.Module) -> dict[str, Tensor]:
    """But those of norms, which hold the statistics of all images and leave the function as it is."""
    norms = {name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    return {name: value for name, value in module.state_dict().items() if name.rpartition(".")[0] not in norms}


# -- images that no solve has seen -----------------------------------------------------------------------------


@by_method([2, 5, 16, 33], of_others=[5, 16])
def test_the_images_that_judge_have_no_part_in_the_weights(count: int, method: str) -> None:
    """With others in their place every weight is the same, and what is told is not."""
    split = Calibration.of(torch.arange(count)[:, None])
    judged = torch.cat([*split.judging])[:, 0]
    assert 1 <= len(judged) <= max(1, count // 3)
    given = images(count)
    given[judged] = images(len(judged), seed=5)
    one, other = plainly_converted(count, method), converted(count, method, given=given)
    assert one.fit is not None and other.fit is not None and one.fit.judged == len(judged)
    assert one.fit.error != other.fit.error
    if not any("worse" in note for fit in (one.fit, other.fit) for note in fit.notes):
        wanted = weights(one.module)
        assert all(torch.equal(value, wanted[name]) for name, value in weights(other.module).items())


@by_method([16, 64, 200], of_others=[16, 200])
def test_what_is_told_is_what_is_missed_on_other_images(count: int, method: str) -> None:
    """Within what so few images can tell; each layer's error with it."""
    ghosted = plainly_converted(count, method)
    assert ghosted.fit is not None and ghosted.fit.error is not None
    elsewhere = missed(network(), ghosted.module, images(512, seed=7))
    near = 1.3 + 8 / ghosted.fit.judged
    assert elsewhere / near < ghosted.fit.error < elsewhere * near


@by_method([2, 4, 7], of_others=[5])
def test_a_fit_to_few_images_is_not_said_to_be_perfect(count: int, method: str) -> None:
    ghosted = plainly_converted(count, method)
    assert ghosted.fit is not None and ghosted.fit.error is not None
    elsewhere = missed(network(), ghosted.module, images(512, seed=7))
    assert ghosted.fit.error > 0.01 * elsewhere and "0.0 % is missed" not in ghosted.fit.summary
    assert all(layer.error is not None and layer.before is not None for layer in ghosted.fit.layers)


@each_method
def test_of_a_single_image_nothing_is_told(method: str) -> None:
    """It is fitted to, and a report says that nothing was measured."""
    ghosted = converted(1, method)
    fit = ghosted.fit
    assert fit is not None and fit.layers and fit.judged == 0
    assert (fit.error, fit.unfitted) == (None, None) and {layer.error for layer in fit.layers} == {None}
    assert "was not measured" in fit.summary and "not measured" in str(fit.table())
    assert "was not measured" in str(ghostify.compare(ghosted))


@pytest.mark.parametrize("count", [24, 512])
def test_images_that_come_sorted_are_all_fitted_to(count: int) -> None:
    """Every batch is spread over all of them, and so is what judges."""
    split = Calibration.of(torch.arange(count))
    for part in (split.seen, split.choosing, split.judging):
        middle = torch.cat([*part]).double().mean()
        assert count * 0.3 < middle < count * 0.7


# -- what is not finite ----------------------------------------------------------------------------------------


def test_what_is_the_same_without_being_finite_is_no_difference() -> None:
    wanted = torch.tensor([1.0, -INF, INF, NAN, -INF, 2.0, INF, NAN])
    found = torch.tensor([3.0, -INF, INF, NAN, 5.0, INF, -INF, 0.0])
    square, compared = squared_difference(found, wanted, 7.0)
    assert square.tolist() == [4, 0, 0, 0, 7, 7, 7, 7]
    assert compared.tolist() == [True, False, False, False, True, True, True, True]


class Masked(nn.Module):
    """Scores of which some are masked: the same for all images, by the image, or those that are not among the best."""

    def __init__(self, how: str, value: float) -> None:
        super().__init__()
        self.body, self.how, self.value = network(blocks=1), how, value

    def forward(self, x: Tensor) -> Tensor:
        scores = self.body(x)
        if self.how == "constant":
            mask = torch.arange(scores.shape[1]) < 3
        elif self.how == "by image":
            mask = (x.mean((1, 2, 3)) > 0)[:, None] & (torch.arange(scores.shape[1]) < 3)
        elif self.how == "added":
            return scores + torch.zeros_like(scores).masked_fill(x.mean((1, 2, 3))[:, None] > 0, self.value)
        elif self.how == "added in front, in place":
            mask = torch.where(x[:, 0, 0, : scores.shape[1]] > 0, 0.0, self.value)
            mask += scores
            return mask
        elif self.how == "added by score":
            return scores + torch.where(scores >= scores.topk(4).values[:, -1:], 0.0, self.value)
        else:
            mask = scores < scores.topk(4).values[:, -1:]
        return scores.masked_fill(mask, self.value)


@pytest.mark.parametrize("value", [-INF, INF, NAN])
@pytest.mark.parametrize("how", ["constant", "by image", "best", "added", "added in front, in place", "added by score"])
def test_masked_scores_are_fitted_and_the_report_is_json(how: str, value: float) -> None:
    model = Masked(how, value).eval()
    ghosted = converted(64, "plain" if value == INF else "pointwise", model)
    assert ghosted.fit is not None and ghosted.fit.error is not None and ghosted.fit.unfitted is not None
    assert 0 < ghosted.fit.error < ghosted.fit.unfitted < INF
    assert not any("worse" in note for note in ghosted.fit.notes)
    report = ghostify.compare(ghosted).model_dump_json()
    json.loads(report, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


@pytest.mark.parametrize("how", ["added", "added in front, in place", "added by score"])
def test_a_mask_that_is_added_does_not_hide_what_is_fitted(how: str) -> None:
    """A large number drowns the score that it is added to: a layer is fitted to what it gave before that."""
    weights = [converted(64, "plain", Masked(how, value)).module.state_dict() for value in (-INF, -1e9)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("value", [-INF, NAN])
def test_polish_goes_by_what_is_finite(value: float) -> None:
    given = images(64)
    fit = {"how": "polish", "seconds": 0.5}
    ghosted = convert(Masked("by image", value).eval(), given[:1], METHODS["plain"], images=given, fit=fit)
    assert ghosted.fit is not None and ghosted.fit.polished is not None and ghosted.fit.error is not None
    assert ghosted.fit.polished <= ghosted.fit.error
    assert all(tensor.isfinite().all() for tensor in ghosted.module.state_dict().values())


class Several(nn.Module):
    """Scores, which class that is, a mask and a complex spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = self.body(x)
        return scores, scores.argmax(1), scores > 0, torch.fft.rfft(scores), scores.sum()


def test_outputs_of_every_kind_are_compared() -> None:
    ghosted = converted(64, "plain", Several().eval())
    assert ghosted.fit is not None and ghosted.fit.error is not None and ghosted.fit.unfitted is not None
    assert 0 < ghosted.fit.error < ghosted.fit.unfitted


class Random(nn.Module):
    """Random in eval mode: a sampled code, dropout left on, or noise from outside of torch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = network(), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.how == "code":
            return y + torch.randn_like(y)
        if self.how == "dropout":
            return F.dropout(y, 0.5, training=True)
        return y * (1 + random.random())


@pytest.mark.parametrize("how", ["code", "dropout", "python"])
def test_a_random_network_is_said_to_be_random(how: str) -> None:
    """And where, if it is an operation of torch's."""
    with pytest.raises(FitError, match="is random in eval mode, too") as refused:
        converted(16, "plain", Random(how).eval())
    named = {"code": "randn_like", "dropout": "dropout", "python": ""}[how]
    assert named in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("error", "polished", "alarms"), [(0.49, None, False), (0.5, None, True), (0.7, 0.2, False)])
def test_a_fit_that_loses_most_of_the_outputs_says_so(error: float, polished: float | None, alarms: bool) -> None:
    fit = Fit(how="data", images=9, judged=2, seconds=1, layers=(), error=error, unfitted=2.0, polished=polished)
    assert ("more than half" in fit.summary) == alarms
