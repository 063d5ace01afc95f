"""What networks of several inputs, of whole numbers, of keywords are fitted to: the same as a network of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import ZOO, conv_bn

from ghostify import convert, rewrite_fitted, trace
from ghostify.batches import call, count, join, map_tensors, move, split, take
from ghostify.errors import FitError
from ghostify.fitting.interpreter import batched
from ghostify.pipeline import convert_parts
from ghostify.planning import plan
from ghostify.recipe import GhostSettings
from ghostify.scanning import scan

METHODS: dict[str, dict[str, Any]] = {
    "plain": {"min_saving": 0, "also": ("stem",), "cheap": "depthwise 3"},
    "pointwise": {"min_saving": 0, "also": ("stem",), "cheap": "pointwise"},
    "width": {"method": "width", "width": 0.5, "round_to": 1},
    "thin": {"method": "thin", "width": 0.5, "round_to": 1},
}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def body(c: int, n: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(c, n), conv_bn(n, n), conv_bn(n, n))


class Flow(nn.Module):
    """Two images, by position."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = body(6, 16), nn.Conv2d(16, 2, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(self.body(torch.cat([first, second], 1)))


class Conditioned(nn.Module):
    """An image, a step for each (a scalar), and a mask; by name."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.body, self.head = nn.Embedding(20, 8), body(3, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.body(x) + self.steps(t)[:, :, None, None]
        return self.head(y if mask is None else y * mask[:, None])


class Tokens(nn.Module):
    """Whole numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 12)
        self.body = nn.Sequential(nn.Conv1d(12, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU())
        self.more = nn.Sequential(nn.Conv1d(24, 24, 3, padding=1), nn.BatchNorm1d(24), nn.ReLU())
        self.head = nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.more(self.body(self.table(tokens).transpose(1, 2))).mean(2))


class Scaled(nn.Module):
    """A tensor, and a number that is the same for all."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body(3, 8)

    def forward(self, x: Tensor, by: float, offset: Tensor) -> Tensor:
        return self.body(x * by + offset)


KINDS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "two images": (Flow, (seeded(48, 3, 8, 8), seeded(48, 3, 8, 8, seed=1))),
    "two images by name": (Flow, {"first": seeded(48, 3, 8, 8), "second": seeded(48, 3, 8, 8, seed=1)}),
    "image and step": (Conditioned, {"x": seeded(48, 3, 8, 8), "t": whole(48, below=20)}),
    "image, step and mask": (Conditioned, (seeded(48, 3, 8, 8), whole(48, below=20), whole(48, 8, 8, below=2).bool())),
    "tokens": (Tokens, whole(48, 20, below=50)),
    "tokens of 32 bits": (Tokens, {"tokens": whole(48, 20, below=50).int()}),
    "a number besides": (Scaled, (seeded(48, 3, 8, 8), 0.5, torch.tensor(1.0))),
    **{net.name: (net.build, map_tensors(lambda leaf: seeded(48, *leaf.shape[1:]), net.example()))
       for net in ZOO if not isinstance(net.example(), Tensor)},
}  # fmt: skip


def settled(model: nn.Module, images: Any) -> nn.Module:
    """Its norms have the statistics of the images, as a trained one's have."""
    model.train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None
    with torch.no_grad():
        call(model, images)
    return model.eval()


@pytest.mark.parametrize("method", ["plain", "pointwise"])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_any_input_are_fitted(kind: str, method: str) -> None:
    """Nearer to the original than unfitted on samples held out; the images stay as they were."""
    torch.manual_seed(0)
    build, images = KINDS[kind]
    model, kept = settled(build(), images), copy.deepcopy(images)
    ghosted = convert(model, take(images, slice(2)), images=images, **METHODS[method])
    assert ghosted.fit and ghosted.fit.images == 48 and ghosted.fit.layers
    assert ghosted.fit.error < 0.8 * ghosted.fit.unfitted
    assert all(torch.equal(one, other) for one, other in zip(_leaves(images), _leaves(kept), strict=True))


@pytest.mark.parametrize("how", ["weights", "polish"])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_any_input_are_fitted_to_noise_and_polished(kind: str, how: str) -> None:
    torch.manual_seed(0)
    build, images = KINDS[kind]
    model = settled(build(), images)
    given = images if how == "polish" else None
    fit = {"how": "polish", "seconds": 0.5} if how == "polish" else {"how": "weights", "images": 40}
    ghosted = convert(model, images, images=given, fit=fit, **METHODS["plain"])
    assert ghosted.fit and ghosted.fit.error < ghosted.fit.unfitted
    assert (ghosted.fit.polished is not None) == (how == "polish")


@pytest.mark.parametrize(("kind", "method"), [("two images", "width"), ("by-name", "width"), ("by-name", "thin")])
def test_narrower_networks_of_any_input_are_fitted(kind: str, method: str) -> None:
    torch.manual_seed(0)
    build, images = KINDS[kind]
    ghosted = convert(settled(build(), images), take(images, slice(2)), images=images, **METHODS[method])
    assert ghosted.fit and ghosted.fit.error < ghosted.fit.unfitted


def test_two_inputs_are_fitted_as_one_tensor_of_both() -> None:
    """Where the network does nothing but put them side by side, to the bit."""

    class Together(nn.Module):
        def __init__(self, flow: Flow) -> None:
            super().__init__()
            self.body, self.head = flow.body, flow.head

        def forward(self, both: Tensor) -> Tensor:
            return self.head(self.body(both))

    torch.manual_seed(0)
    pair = KINDS["two images"][1]
    flow = settled(Flow(), pair)
    both = torch.cat(pair, 1)
    one = convert(flow, take(pair, slice(2)), images=pair, **METHODS["plain"])
    other = convert(Together(flow), both[:2], images=both, **METHODS["plain"])
    assert one.fit and other.fit and one.fit.error == pytest.approx(other.fit.error, rel=1e-9)
    assert torch.equal(one.module(*pair), other.module(both))


def test_the_dtype_of_whole_numbers_stays() -> None:
    seen = set()

    class Watching(Tokens):
        def forward(self, tokens: Tensor) -> Tensor:
            seen.add(tokens.dtype)
            return super().forward(tokens)

    images = whole(48, 20, below=50).int()
    convert(settled(Watching(), images), images[:2], images=images, **METHODS["plain"])
    assert seen == {torch.int32}


def test_a_fit_tells_the_networks_own_precision() -> None:
    """Not that of the work, so that whoever loads the run feeds it in that."""
    images = move(KINDS["image and step"][1], torch.device("cpu"), torch.float64)
    ghosted = convert(settled(Conditioned().double(), images), take(images, slice(2)), images=images, min_saving=0)
    assert ghosted.before.kinds == ghosted.after.kinds == ("float64", "int64") and ghosted.before.names == ("x", "t")


REFUSED: dict[str, tuple[str, Any, str]] = {
    "one tensor": ("two images", seeded(8, 3, 8, 8), "takes other inputs than one tensor of images; give a tuple"),
    "one too few": ("two images", (seeded(8, 3, 8, 8),), "tensors of N x 3 x 8 x 8 and N x 3 x 8 x 8, is needed"),
    "not as many": ("two images", (seeded(8, 3, 8, 8), seeded(9, 3, 8, 8)), "as many of each, not 8, 9"),
    "another size": ("two images", (seeded(8, 3, 8, 8), seeded(8, 3, 4, 4)), "are 3x8x8 and 3x4x4 and Flow was"),
    "another name": ("two images by name", {"first": seeded(8, 3, 8, 8)}, "a dict of first, second, N samples of each"),
    "none": ("two images", (seeded(0, 3, 8, 8), seeded(0, 3, 8, 8)), "no calibration images"),
    "floats for indices": ("tokens", seeded(8, 20), "float32 where Tokens was recorded on torch.int64"),
    "another length": ("tokens", whole(8, 9, below=5), r"are 9 \(int64\) and Tokens was recorded on 20 \(int64\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_images_that_are_not_what_a_network_takes_are_refused(case: str) -> None:
    kind, images, reason = REFUSED[case]
    build, right = KINDS[kind]
    traced = trace(build().eval(), take(right, slice(2)))
    proposal = plan(scan(traced), GhostSettings(min_saving=0))
    with pytest.raises(FitError, match=reason) as refused:
        rewrite_fitted(traced, proposal, images)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_a_part_with_several_inputs_is_fitted() -> None:
    """It is given a tensor by position and another by name; the whole, a tuple, cannot be recorded."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Conditioned()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            y = self.net(x, t=t)
            return y[y > y.mean()].sort().values

    torch.manual_seed(0)
    images = (seeded(24, 3, 8, 8), whole(24, below=20))
    model = settled(Whole(), images)
    fit = convert_parts(model, take(images, slice(1)), images=images, **METHODS["plain"]).whole.fit
    assert fit and fit.images == 24 and fit.error < fit.unfitted
    assert all(layer.target.startswith("net.") for layer in fit.layers)


# -- batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_parts_joined_is_the_batch(kind: str) -> None:
    images = KINDS[kind][1]
    assert count(images) == 48 and [count(part) for part in split(images, 20)] == [20, 20, 8]
    together = join(list(split(images, 20)))
    assert type(together) is type(images)
    assert all(torch.equal(one, other) for one, other in zip(_leaves(together), _leaves(images), strict=True))
    assert sum(map(count, batched(images))) == 48 and len(batched(images)) >= 8


def test_floats_alone_are_cast_where_a_batch_is_moved() -> None:
    batch = {"x": seeded(2, 3), "t": whole(2, below=5), "on": torch.tensor([True, False]), "by": 2}
    moved = move(batch, torch.device("cpu"), torch.float64)
    assert moved["by"] == 2
    assert [moved[key].dtype for key in ("x", "t", "on")] == [torch.float64, torch.int64, torch.bool]


def test_what_holds_no_samples_or_not_as_many_of_each_counts_none() -> None:
    assert count(()) == count((1, "two")) == count(torch.tensor(1.0)) == count((seeded(2, 3), seeded(3, 3))) == 0


def _leaves(batch: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([torch.randn(4, 3, 8, 8)], "a list"),
        (DataLoader(TensorDataset(torch.randn(8, 3, 8, 8))), "a DataLoader"),
        (torch.randn(8, 3, 8, 8).numpy(), "an? ndarray"),
        (5, "5"),
        ((torch.randn(4, 3, 8, 8), torch.zeros(4)), "a tuple"),
    ],
    ids=["list", "loader", "array", "number", "tuple"],
)
def test_images_that_are_none_are_called_what_they_are(given: Any, said: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(FitError, match=rf"a tensor of N x 3 x 8 x 8 is needed, and {said} was given"):
        convert(model, torch.randn(1, 3, 8, 8), images=given, min_saving=0, also="classifier")
