"""What a network reads of inputs it was fitted to, and which others lead it out of that."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from command import TINY, Cli
from torch import Tensor, nn

from ghostify.measuring.span import HELD, LEAST, LayerSpan, Span

CPU = torch.device("cpu")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def images(count: int, seed: int, directions: Tensor) -> Tensor:
    """Images that are combinations of ``directions`` (k, 3, 8, 8)."""
    weights = torch.randn(count, len(directions), generator=torch.Generator().manual_seed(seed))
    return torch.einsum("nk,kchw->nchw", weights, directions)


FEW = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
OTHERS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(6))


def span_of(model: nn.Module, x: Tensor) -> Span:
    found = Span.of(model, ["2", "5", "gone"], x, CPU)
    assert found is not None
    return found


def outside(span: Span, model: nn.Module, x: Tensor) -> int:
    with span.watching(model) as watch, torch.no_grad():
        for part in x.split(50):
            model(part)
    found = watch.outside(len(x))
    assert found is not None
    return found.outside


def test_inputs_of_the_same_kind_lie_outside_by_chance_alone_and_others_do() -> None:
    model, drawn = net().eval(), images(16 * 512, 0, FEW).split(256)
    same = 0
    for calibration, test in zip(drawn[::2], drawn[1::2], strict=True):
        span = span_of(model, calibration)
        same += outside(span, model, test)
        assert outside(span, model, images(200, 1, OTHERS)) > 100
    assert 0 < same < 2 * 16 * 256 / (256 / HELD + 1)


def test_a_residual_is_what_no_combination_of_what_was_seen_gives() -> None:
    seen = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) @ torch.eye(3, 7)
    held = seen[:5] + torch.tensor([0.0, 0, 0, 2, 0, 0, 0])
    span = LayerSpan.of(seen, held)
    assert span is not None
    torch.testing.assert_close(span.distances(held), torch.ones(5), rtol=0.05, atol=0)
    assert span.distances(seen.mean(0, keepdim=True) + torch.eye(3, 7)).max() < 0.02


def test_few_images_or_nothing_that_varies_tell_no_span() -> None:
    model = net().eval()
    assert Span.of(model, ["2"], images(LEAST - 1, 0, FEW), CPU) is None
    assert Span.of(model, ["2"], torch.ones(LEAST, 3, 8, 8), CPU) is None
    assert Span.of(model, [], images(LEAST, 0, FEW), CPU) is None


def test_a_layer_that_runs_twice_for_each_input_is_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(self.once(x)).relu())

    found = Span.of(Twice().eval(), ["once", "twice"], torch.randn(LEAST, 6), CPU)
    assert found is not None and set(found.layers) == {"once"}


def test_the_network_is_left_without_hooks_and_in_its_mode_and_a_copy_is_watched_as_well() -> None:
    model = net().train()
    span = span_of(model, images(128, 0, FEW))
    with span.watching(model) as watch:
        copy.deepcopy(model)(images(10, 1, FEW))
    assert watch.outside(10) is not None
    assert model.training and not any(part._forward_pre_hooks for part in model.modules())


def test_a_span_survives_its_file() -> None:
    model, x = net().eval(), images(60, 9, OTHERS)
    span = span_of(model, images(128, 0, FEW))
    again = Span.from_tensors(span.tensors())
    assert outside(again, model, x) == outside(span, model, x) > 0
    assert again.held == span.held == 16


OTHER_IMAGES = """
def digits(test):
    from sklearn.datasets import load_digits
    from torch.utils.data import TensorDataset
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8).repeat(1, 3, 1, 1) / 16, torch.tensor(y)
    # Hands change along the set, so that every other digit is of the same ones.
    return TensorDataset(x[:800:2], y[:800:2]), TensorDataset(x[1:600:2] if test is None else test, y[1:600:2])

def same():
    return digits(None)

def others():
    return digits(3 * torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
"""


def test_a_run_warns_of_test_images_unlike_those_it_was_fitted_to(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TINY + OTHER_IMAGES)
    forced = ("--no-measure", "--min-saving", "0")
    done = cli("compress", "mine:tiny", "--data", "mine:same", *forced, "--calibration", "256", "-o", "run")
    assert done.code == 0, done.err
    assert "lie outside" not in done.out + done.err
    assert "test inputs outside calibration" in cli("report", "run").out
    like, unlike = cli("eval", "run", "--data", "mine:same"), cli("eval", "run", "--data", "mine:others")
    assert like.code == 0 and "lie outside" not in like.err
    assert "300 of 300 test inputs lie outside what the weights were fitted to" in " ".join(unlike.err.split())
