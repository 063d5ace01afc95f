"""The modes of torch that a caller is in make no difference, and are afterwards as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import test_fit_judging
import torch
from torch import Tensor, nn

import ghostify
from ghostify import Ghosted
from ghostify.measuring import evaluate
from ghostify.recipe import TrainSettings

network = partial(test_fit_judging.network, width=8, blocks=3)
MODEL = network()
X = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@contextmanager
def default_dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AMBIENTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients off": lambda: torch.set_grad_enabled(False),
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "autocast in inference mode": lambda: _both(torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)),
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "meta by default": lambda: default_device("meta"),
    "within a device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=False),
}
each_ambient = pytest.mark.parametrize("ambient", AMBIENTS)
KINDS = ("inference mode", "autocast bfloat16", "float64 by default", "meta by default")
"""One of each kind of mode: of gradients, of autocast, of default dtypes and of default devices."""
quietly = pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:In CPU autocast")


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


def modes() -> tuple[Any, ...]:
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    wanted = state(one)
    assert wanted.keys() == state(other).keys()
    for name, value in state(other).items():
        assert (value.dtype, value.device) == (wanted[name].dtype, wanted[name].device), name
        assert torch.equal(value, wanted[name]), name
        assert not value.is_inference(), name


def assert_trains(module: nn.Module) -> None:
    module.train()(X[:4]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


CONVERSIONS: dict[str, dict[str, Any]] = {
    "c-ghost": {"min_saving": 0},
    "c-ghost, fitted": {"min_saving": 0, "images": X},
    "plain, fitted": {"min_saving": 0, "pointwise": "none", "images": X},
    "g-ghost, fitted": {"method": "g-ghost", "images": X},
    "thin, fitted": {"method": "thin", "width": 0.5, "round_to": 4, "images": X},
    "to noise": {"min_saving": 0, "fit": {"how": "weights", "images": 16}},
}


@cache
def conversion(how: str) -> Ghosted:
    """In no mode at all."""
    return ghostify.convert(MODEL, X[:1], **CONVERSIONS[how])


@quietly
@pytest.mark.parametrize(
    ("how", "ambient"),
    [
        *(("c-ghost, fitted", ambient) for ambient in AMBIENTS),
        *((how, ambient) for how in CONVERSIONS if how != "c-ghost, fitted" for ambient in KINDS),
    ],
)
def test_a_conversion_gives_the_same(how: str, ambient: str) -> None:
    """Fitted in every mode there is; by every method in each kind of them."""
    model, wanted = network(), conversion(how)
    with AMBIENTS[ambient]():
        before = modes()
        found = ghostify.convert(model, X[:1], **CONVERSIONS[how])
        assert modes() == before
    assert_same(wanted.module, found.module)
    assert found.plan == wanted.plan
    assert_trains(found.module)


@quietly
@pytest.mark.parametrize("ambient", [*KINDS, "no_grad", "anomalies"])
def test_polish_descends(ambient: str) -> None:
    """It needs gradients, which most of these modes are about."""
    with AMBIENTS[ambient]():
        found = ghostify.convert(MODEL, X[:1], images=X, min_saving=0, fit={"how": "polish", "seconds": 0.2})
    assert found.fit is not None and found.fit.polished is not None and found.fit.error is not None
    assert found.fit.polished <= found.fit.error
    assert_trains(found.module)


@quietly
@each_ambient
def test_the_chapters_one_by_one_give_the_same(ambient: str, tmp_path: Path) -> None:
    """Recorded, scanned, planned, rewritten, compared, saved, loaded, analysed, trained and tested."""
    wanted = chapters_in_no_mode()
    with AMBIENTS[ambient]():
        before = modes()
        found = chapters(tmp_path)
        assert modes() == before
    for one, other in zip(wanted, found, strict=True):
        if isinstance(one, Ghosted):
            assert_same(one.module, other.module)
        else:
            assert one == other


@dataclass
class Batches:
    batches: list[Any]

    def train_loader(self, *args: Any, **settings: Any) -> list[Any]:
        return self.batches

    def held_loader(self, *args: Any, **settings: Any) -> None:
        return None


@cache
def chapters_in_no_mode() -> list[Any]:
    with TemporaryDirectory() as folder:
        return chapters(Path(folder))


def chapters(folder: Path) -> list[Any]:
    traced = ghostify.trace(MODEL, X[:1])
    scan = ghostify.scan(traced)
    plan = ghostify.plan(scan, min_saving=0)
    ghosted = ghostify.rewrite(traced, plan)
    report = ghostify.compare(ghosted)
    ghostify.save(ghosted, folder)
    again = ghostify.load(folder, model=MODEL, example=X[:1])
    redundancy = ghostify.analyze(MODEL, X).model_copy(update={"seconds": 0}).model_dump(exclude={"seconds"})
    batches = [(X[:8], torch.arange(8, device="cpu") % 4), (X[8:16], torch.arange(8, device="cpu") % 4)]
    ghostify.finetune(again.module, Batches(batches), TrainSettings(epochs=1, lr=0.001))
    accuracy = evaluate(again.module, batches)
    return [scan, plan, ghosted, report, redundancy, again, accuracy]


class Counts(nn.Module):
    """Makes a tensor while it runs, where the caller's tensors are made."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * torch.arange(y.shape[1]).to(y)


def test_a_network_is_run_where_the_callers_tensors_are_made() -> None:
    """Or else what it makes would not be where it expects it."""
    seen = []
    model = Counts().eval()
    model.body.register_forward_pre_hook(lambda module, args: seen.append(torch.get_default_device()))
    with torch.device("meta"), pytest.raises(ghostify.GhostifyError):
        ghostify.convert(model, X[:1], min_saving=0, images=X)
    assert {str(device) for device in seen} == {"meta"}
