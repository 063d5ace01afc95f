"""Which maps are intrinsic: how far each map is from being another's ghost, the search, and networks in its order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from zoo import ZOO, conv_bn, head, residual

from ghostify import load, plan, read_plan, rewrite, save, scan, trace
from ghostify.errors import PlanError
from ghostify.fitting import rewrite_fitted
from ghostify.fitting.channel_order import Arrangement, _Layer, _own_order, _search, arranged
from ghostify.fitting.interpreter import batched
from ghostify.fitting.kinds.ghosts import layout
from ghostify.ghosts import CGhost, intrinsic_maps
from ghostify.leastsquares.pairs import PairMoments, as_maps
from ghostify.leastsquares.sampling import Positions
from ghostify.planning import check
from ghostify.recipe import FitSettings
from ghostify.rewriting import Choices, replaced
from ghostify.rules import CGhostSwap, rule_of
from ghostify.rules.base import Split

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EAGER: dict[str, Any] = {"min_saving": 0, "pointwise": "none"}


# -- where a module's maps go ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "s", "groups"), [(8, 2, 1), (7, 2, 1), (12, 3, 1), (10, 4, 1), (12, 2, 3), (10, 3, 2), (18, 4, 2), (4, 4, 1)]
)
def test_the_layout_is_what_the_module_concatenates(n: int, s: int, groups: int) -> None:
    """Every map is marked by its part and number; the mark at an output is that of the map the layout names."""
    ghost, m = CGhost(groups, n, 1, groups=groups, s=s), intrinsic_maps(n, s, groups)
    marks = torch.arange(float(s * m)).reshape(s, m)
    merged = ghost._merge([row[None, :, None, None] for row in marks]).flatten()
    parts = layout(n, s, groups)
    assert parts.shape == (s, m)
    assert sorted(parts[parts >= 0].tolist()) == list(range(n))
    for (part, number), output in np.ndenumerate(parts.numpy()):
        assert output < 0 or merged[output] == marks[part, number]


# -- errors of pairs -------------------------------------------------------------------------------------------


def related_maps(d: int) -> Tensor:
    """Six maps of 24 images, the last of them filters of the first ones with some noise."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(24, 6, 7, 6, generator=generator)
    kernel = torch.randn(2, 1, d, d, generator=generator)
    y[:, 4:] = F.conv2d(y[:, :2], kernel, padding=d // 2, groups=2) + 0.1 * y[:, 4:]
    return y * torch.tensor([1.0, 3, 1, 0.1, 2, 1])[:, None, None]


def pair_moments(batches: Sequence[Tensor], d: int) -> PairMoments:
    """Of all positions."""
    pairs = PairMoments()
    for y in map(as_maps, batches):
        pairs.add(Positions(y.shape, 10**6, 1, 0, 1).shifts(y, d, 0))
    return pairs


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_the_error_of_a_pair_is_what_the_best_filter_leaves(d: int, offset: float) -> None:
    """By one least squares per pair on all positions; also far from the origin."""
    y = related_maps(d) + offset
    pairs = pair_moments(y.split(6), d)
    found = pairs.errors()
    shifts = F.unfold(y, d, padding=d // 2).unflatten(1, (6, d * d)).permute(1, 0, 3, 2).flatten(1, 2).double()
    values = y.double().transpose(0, 1).flatten(1)
    assert torch.allclose(pairs.variances, values.var(1, unbiased=False), rtol=1e-6)
    for i in range(6):
        x = torch.cat([shifts[i], torch.ones(shifts.shape[1], 1, dtype=torch.float64)], 1)
        left = values.T - x @ torch.linalg.lstsq(x, values.T, driver="gelsd").solution
        assert torch.allclose(found[i], left.square().mean(0), rtol=1e-6, atol=1e-5), i


def test_vectors_are_compared_without_neighbours() -> None:
    y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = torch.cat([y, -2 * y[:, :1] + 5], 1)
    errors = pair_moments(y.split(10), 3).errors()
    assert errors[0, 3] < 1e-5 and errors[3, 0] < 1e-5 < errors[1, 3]


# -- the search ------------------------------------------------------------------------------------------------


def layer(n: int, s: int, groups: int = 1, seed: int = 0, classes: list[int] | None = None, first: int = 0) -> _Layer:
    """A layer of outputs with roots from ``first`` on, and errors at random."""
    errors = np.random.default_rng(seed).random((n, n))
    np.fill_diagonal(errors, 0)
    labels = np.array(classes or [0] * n)
    return _Layer(f"layer{seed}", first + np.arange(n), labels, layout(n, s, groups).numpy(), errors)


def cost(one: _Layer, content: np.ndarray) -> float:
    """The sum at the head of the file, ghost by ghost."""
    return sum(
        one.errors[content[i], content[j]]
        for ghosts in one.parts[1:]
        for i, j in zip(one.parts[0], ghosts, strict=True)
        if j >= 0
    )


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(8, 2, 1), (7, 2, 1), (9, 3, 1), (10, 4, 1), (12, 2, 3), (10, 3, 2)]),
    seed=st.integers(0, 10**6),
)
def test_what_an_exchange_gains_is_what_the_cost_changes_by(shape: tuple[int, int, int], seed: int) -> None:
    """From any state, for any two places: of one group of maps or of two, intrinsic or not."""
    one = layer(*shape, seed=seed)
    one.content = np.random.default_rng(seed).permutation(shape[0])
    gains = one.gains(np.arange(shape[0]))
    for a in range(shape[0]):
        for b in range(shape[0]):
            after = one.content.copy()
            after[[a, b]] = after[[b, a]]
            assert gains[a, b] == pytest.approx(cost(one, after) - cost(one, one.content), abs=1e-9)


@pytest.mark.parametrize(("n", "s"), [(8, 2), (16, 2), (24, 2), (12, 3), (24, 4)])
def test_ghosts_that_were_hidden_are_found(n: int, s: int) -> None:
    """Every map is filters of one other's; in any order, each is put behind its own."""
    families = np.random.default_rng(n).permutation(n) % (n // s)
    one = layer(n, s)
    one.errors = np.where(families[:, None] == families[None], 0.0, one.errors + 0.5)
    order = _own_order(one)
    content = np.argsort(order)
    assert sorted(order) == list(range(n)) and cost(one, content) == 0
    for places in one.parts.T:
        assert len(set(families[content[places]])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_search_ends_where_no_exchange_helps(seed: int) -> None:
    """Below where it began, with every channel in one place, and each within its class."""
    classes = [0] * 6 + [1] * 6
    one = layer(12, 2, seed=seed, classes=classes, first=30)
    moves = _search([one])
    assert cost(one, one.content) < cost(one, np.arange(12))
    content = np.array([moves.get(root, root) - 30 for root in range(30, 42)])
    assert np.array_equal(content, one.content) and sorted(content) == list(range(12))
    assert [classes[place] for place in content] == classes
    gains = one.gains(np.arange(12))
    together = np.array(classes)[:, None] == np.array(classes)[None]
    assert gains[together].min() >= -1e-9


def test_layers_of_one_stream_are_searched_together() -> None:
    """What one would gain is weighed against what the others lose; a layer elsewhere minds neither."""
    one, other, apart = layer(8, 2, seed=1), layer(8, 4, seed=2), layer(6, 2, seed=3, classes=[5] * 6, first=20)
    began = cost(one, one.content) + cost(other, other.content)
    moves = _search([one, other, apart])
    assert np.array_equal(one.content, other.content)
    assert cost(one, one.content) + cost(other, other.content) < began
    for a in range(8):
        for b in range(8):
            after = one.content.copy()
            after[[a, b]] = after[[b, a]]
            changed = cost(one, after) + cost(other, after)
            assert changed >= cost(one, one.content) + cost(other, other.content) - 1e-9
    alone = layer(6, 2, seed=3, classes=[5] * 6, first=20)
    _search([alone])
    assert np.array_equal(alone.content, apart.content) and set(moves) <= {*range(8), *range(20, 26)}


def test_channels_of_no_class_stay() -> None:
    one = layer(8, 2, classes=[-1, 0, 0, 0, 0, 0, 0, -1])
    moves = _search([one])
    assert moves and one.content[0] == 0 and one.content[7] == 7
    assert _search([layer(8, 2, classes=[-1] * 8)]) == {}


# -- networks --------------------------------------------------------------------------------------------------


def planted(c: int, n: int, order: list[int] | None = None) -> nn.Conv2d:
    """A convolution half of whose maps are 3x3 filters of the others; ``order`` says where each stands."""
    m = n // 2
    conv = nn.Conv2d(c, n, 3, padding=1, bias=False)
    with torch.no_grad():
        pixel, filters = torch.randn(m, c, 1, 1) / c**0.5, torch.randn(m, 1, 3, 3) / 3
        whole = torch.cat([F.pad(pixel, (1, 1, 1, 1)), pixel * filters])
        conv.weight.copy_(whole[torch.randperm(n) if order is None else torch.tensor(order)])
    return conv


def normed(conv: nn.Conv2d) -> nn.Sequential:
    """A convolution with a norm whose line and statistics are drawn at random."""
    norm = nn.BatchNorm2d(conv.out_channels)
    with torch.no_grad():
        for name, tensor in norm.state_dict().items():
            if tensor.dim():
                tensor.uniform_(*((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.5, 0.5)))
    return nn.Sequential(conv, norm)


class Block(nn.Module):
    """A residual block of hidden ghosts: those inside, and those in the stream, in an order of its own."""

    def __init__(self, c: int, order: list[int] | None) -> None:
        super().__init__()
        self.one, self.two = normed(planted(c, 12)), normed(planted(12, c, order))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(F.relu(self.one(x))))


def inner() -> nn.Module:
    """No addition: every order is free."""
    torch.manual_seed(0)
    bodies = normed(planted(8, 12)), nn.ReLU(), normed(planted(12, 16)), nn.ReLU()
    return nn.Sequential(conv_bn(3, 8), *bodies, head(16)).eval()


def stream(order: list[int] | None = None) -> nn.Module:
    """Two blocks on one stream, which want different orders of it unless one is given for both."""
    torch.manual_seed(0)
    return nn.Sequential(conv_bn(3, 8), Block(8, order), Block(8, order), head(8)).eval()


def fitted(model: nn.Module, **settings: Any) -> tuple[nn.Module, Any, dict[str, CGhost]]:
    """With convolutions as plain ghosts: the model, what became of it, and its ghosts."""
    traced = trace(model, IMAGES[:2])
    ghosted = rewrite_fitted(traced, plan(scan(traced), **EAGER), IMAGES, FitSettings(**settings))
    ghosts = {name: part for name, part in ghosted.module.named_modules() if isinstance(part, CGhost)}
    return model, ghosted, ghosts


def relative_error(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of outputs for images not fitted to, relative to the largest output."""
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted, found = one(images), other(images)
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("arrange", ["reorder", "select"])
def test_hidden_ghosts_of_inner_layers_are_found_and_nothing_is_selected(arrange: str) -> None:
    """The network is what it was, of half the filters, and no channel is gathered at run time."""
    model, ghosted, ghosts = fitted(inner(), arrange=arrange)
    assert set(ghosts) == {"1.0", "3.0"} and all(ghost.order is None for ghost in ghosts.values())
    assert relative_error(model, ghosted.module) < 1e-5
    assert ghosted.fit.error < 1e-9 < 1e-3 < ghosted.fit.unfitted


def test_without_an_arrangement_hidden_ghosts_stay_hidden() -> None:
    model, ghosted, _ = fitted(inner(), arrange="none")
    assert relative_error(model, ghosted.module) > 0.01


def test_on_a_residual_stream_ghosts_are_found_by_selecting() -> None:
    """Each block's last layer gets an order of its own, the layers inside are reordered without."""
    model, ghosted, ghosts = fitted(stream(), arrange="select")
    assert {name: ghost.order is not None for name, ghost in ghosts.items()} == {
        "1.one.0": False,
        "1.two.0": True,
        "2.one.0": False,
        "2.two.0": True,
    }
    assert not torch.equal(ghosts["1.two.0"].order, ghosts["2.two.0"].order)
    assert {swap.target: swap.ordered for swap in ghosted.plan.swaps} == {
        name: ghost.order is not None for name, ghost in ghosts.items()
    }
    assert relative_error(model, ghosted.module) < 1e-5


def test_an_order_that_a_whole_stream_shares_is_found_without_selecting() -> None:
    order = np.random.default_rng(5).permutation(8).tolist()
    model, ghosted, ghosts = fitted(stream(order), arrange="reorder")
    assert all(ghost.order is None for ghost in ghosts.values())
    assert relative_error(model, ghosted.module) < 1e-5


def test_an_order_that_a_stream_cannot_share_is_not_found_without_selecting() -> None:
    model, ghosted, ghosts = fitted(stream(), arrange="reorder")
    assert all(ghost.order is None for ghost in ghosts.values())
    assert relative_error(model, ghosted.module) > 0.01


class Pooled(nn.Module):
    """A convolution and a linear layer, which cannot select, write into one stream of vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = conv_bn(3, 8), planted(8, 12)
        self.linear, self.out = nn.Linear(8, 12, bias=False), nn.Linear(12, 4)
        with torch.no_grad():
            self.linear.weight[::2] = 1.5 * self.linear.weight[1::2]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(self.conv(x).mean((2, 3)) + self.linear(x.mean((2, 3))))


def swaps_of(model: nn.Module, **settings: Any) -> tuple[Any, list[CGhostSwap]]:
    traced = trace(model.eval(), IMAGES[:2])
    return traced, [swap for swap in plan(scan(traced), **(EAGER | settings)).swaps if isinstance(swap, CGhostSwap)]


def arrangement(model: nn.Module, select: bool, **settings: Any) -> tuple[Any, list[CGhostSwap], Arrangement]:
    traced, swaps = swaps_of(model, **settings)
    return traced, swaps, arranged(traced, splits(traced, swaps), batched(IMAGES), select)


def splits(traced: Any, swaps: list[CGhostSwap]) -> list[Split]:
    return [split for swap in swaps if (split := rule_of(swap).split(swap, traced))]


def test_an_order_of_its_own_follows_the_stream_when_that_is_reordered() -> None:
    """The linear layer moves the stream's channels, and the convolution still finds its ghosts among them."""
    traced, _, found = arrangement(Pooled(), True, also=("pooled", "classifier"))
    module: Any = found.traced.module
    assert not torch.equal(module.linear.weight, traced.module.linear.weight)
    filters = module.conv.weight[torch.tensor(found.orders["conv"]).argsort()]
    pixels = F.normalize(filters[:6, :, 1, 1])[:, :, None, None]
    assert torch.allclose((filters[6:] * pixels).sum(1, keepdim=True) * pixels, filters[6:], atol=1e-5)
    pairs = module.linear.weight
    assert torch.allclose(F.cosine_similarity(pairs[:6], pairs[6:]).abs(), torch.ones(6), atol=1e-4)


class Gated(nn.Module):
    """A gated linear unit ties the channels of its convolution in pairs, which therefore cannot be told apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.gated = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.body, self.head = conv_bn(3, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.gated(F.relu(self.stem(x))).chunk(2, 1)
        return self.head(self.body(left * torch.sigmoid(right)))


@pytest.mark.parametrize("select", [True, False])
def test_channels_that_are_tied_stay_where_they_are(select: bool) -> None:
    """Or are selected; other layers are reordered beside them as if they were not there."""
    traced, _, found = arrangement(Gated(), select, also=("stem",))
    assert set(found.orders) == ({"gated"} if select else set())
    alone, swaps = swaps_of(Gated(), also=("stem",))
    others = [swap for swap in swaps if swap.target != "gated"]
    without = arranged(alone, splits(alone, others), batched(IMAGES), select)
    assert torch.equal(found.traced.module.stem.weight, without.traced.module.stem.weight)
    assert not torch.equal(found.traced.module.stem.weight, traced.module.stem.weight)


@pytest.mark.parametrize("name", ["residual", "bottlenecks", "mobile", "dense", "grouped", "in-place", "subclassed"])
def test_an_arranged_network_does_what_it_did(name: str) -> None:
    """In its own mode, with its own statistics; what cannot be followed is only selected from."""
    net = next(net for net in ZOO if net.name == name)
    model = net.build()
    traced = trace(model, net.example())
    swaps = [swap for swap in plan(scan(traced), **EAGER).swaps if isinstance(swap, CGhostSwap)]
    before, modes = copy.deepcopy(traced.module.state_dict()), [part.training for part in traced.module.modules()]
    found = arranged(traced, splits(traced, swaps), batched(torch.randn(16, *net.example().shape[1:])), True)
    assert all(torch.equal(before[key], value) for key, value in traced.module.state_dict().items())
    assert [part.training for part in traced.module.modules()] == modes
    assert [part.training for part in found.traced.module.modules()] == modes
    with torch.no_grad():
        old, new = (copy.deepcopy(one.module).eval()(net.example()) for one in (traced, found.traced))
    assert torch.allclose(old, new, rtol=1e-4, atol=1e-4 * float(old.abs().max()))
    for target, order in found.orders.items():
        assert sorted(order) == list(range(len(traced.module.get_submodule(target).weight)))


def test_a_train_mode_network_is_arranged_by_its_own_statistics() -> None:
    """Its norms see the images in eval mode and learn nothing from them."""
    model = residual()
    traced = trace(model.train(), IMAGES[:2])
    kept = copy.deepcopy(traced.module.state_dict())
    proposal = plan(scan(traced), **EAGER)
    found = [rewrite_fitted(trace(model.train(mode), IMAGES[:2]), proposal, IMAGES) for mode in (True, False)]
    again = rewrite_fitted(traced, proposal, IMAGES)
    assert all(torch.equal(kept[key], value) for key, value in traced.module.state_dict().items())
    states = [ghosted.module.state_dict() for ghosted in (*found, again)]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])


# -- modules with an order -------------------------------------------------------------------------------------


def ordered(n: int = 8, order: list[int] | None = None, **settings: Any) -> tuple[nn.Conv2d, CGhost]:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, n, 3, padding=1)
    return conv, CGhost.from_conv(conv, order=order or torch.randperm(n).tolist(), **settings)


@pytest.mark.parametrize("settings", [{}, {"s": 3}, {"s": 4, "d": 1}, {"pointwise": 8}, {"pointwise": 1}], ids=str)
@pytest.mark.parametrize("n", [8, 7])
def test_output_c_is_the_map_at_place_order_c(n: int, settings: dict[str, Any]) -> None:
    """The same module without an order gives the maps in their places; a filter is carried to its output's place."""
    conv, ghost = ordered(n, **settings)
    assert ghost.order is not None
    plain = CGhost(4, n, 3, padding=1, **{"s": 2, **settings})
    plain.load_state_dict({key: value for key, value in ghost.state_dict().items() if key != "order"})
    x = torch.randn(2, 4, 5, 6)
    assert torch.equal(ghost(x), plain(x)[:, ghost.order])
    assert torch.equal(ghost(x[0]), plain(x[0])[ghost.order])
    intrinsic = ghost.order < ghost.primary.out_channels
    assert torch.allclose(ghost(x)[:, intrinsic], conv(x)[:, intrinsic], atol=1e-6)
    assert "ordered" in repr(ghost) and "ordered" not in repr(plain)


def test_gradients_pass_an_order() -> None:
    _, ghost = ordered(pointwise=8)
    torch.nn.init.normal_(ghost.pointwise.weight)
    (ghost(torch.randn(2, 4, 5, 5)) * torch.arange(8.0)[:, None, None]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in ghost.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_an_order_stays_whole_numbers_when_the_dtype_changes(kind: torch.dtype) -> None:
    _, ghost = ordered()
    kept = ghost.order.clone()
    assert torch.equal(ghost.to(kind).order, kept)
    assert ghost(torch.randn(1, 4, 5, 5, dtype=kind)).dtype == kind


def test_an_ordered_module_is_traced_symbolically_and_exported() -> None:
    _, ghost = ordered(pointwise=8)
    model = nn.Sequential(ghost, nn.ReLU()).eval()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    exported = torch.export.export(model, (x,))
    assert torch.allclose(exported.module()(x), model(x), atol=1e-6)


def ordered_network() -> tuple[nn.Module, Any, Choices]:
    """A network, a plan with one ordered swap, and the order."""
    model = stream().eval()
    traced = trace(model, IMAGES[:2])
    proposal = plan(scan(traced), **EAGER)
    swaps = tuple(swap.model_copy(update={"ordered": swap.target == "1.two.0"}) for swap in proposal.swaps)
    return model, proposal.model_copy(update={"swaps": swaps}), Choices(orders={"1.two.0": [3, 0, 7, 1, 6, 2, 5, 4]})


def test_an_ordered_network_is_rebuilt_by_its_plan_and_state(tmp_path: Path) -> None:
    """The order is a buffer: it comes back with the weights, into what the plan alone builds, and in a run folder."""
    model, proposal, choices = ordered_network()
    ghosted = rewrite(trace(model, IMAGES[:2]), proposal, choices)
    part: Any = ghosted.module.get_submodule("1.two.0")
    assert part.order.tolist() == choices.orders["1.two.0"] and "1.two.0.order" in ghosted.module.state_dict()
    again = replaced(model, proposal.swaps)
    assert again.get_submodule("1.two.0").order.tolist() == list(range(8))
    again.load_state_dict(ghosted.module.state_dict(), strict=True)
    save(ghosted, tmp_path / "run")
    loaded = load(tmp_path / "run", model=stream(), example=IMAGES[:2])
    for other in (again, loaded.module.eval(), copy.deepcopy(ghosted.module)):
        assert torch.equal(other(IMAGES), ghosted.module(IMAGES))
        assert torch.equal(other.get_submodule("1.two.0").order, part.order)
    assert loaded.plan == ghosted.plan


def test_a_fitted_network_comes_back_from_its_run_folder(tmp_path: Path) -> None:
    """Reordered and selected channels, weights and plan."""
    _, ghosted, ghosts = fitted(stream())
    assert any(ghost.order is not None for ghost in ghosts.values())
    save(ghosted, tmp_path / "run")
    loaded = load(tmp_path / "run", model=stream(), example=IMAGES[:2])
    assert torch.equal(loaded.module.eval()(IMAGES), ghosted.module.eval()(IMAGES))
    assert loaded.plan == ghosted.plan


def test_a_plan_remembers_what_is_ordered(tmp_path: Path) -> None:
    model, proposal, _ = ordered_network()
    path = tmp_path / "plan.yaml"
    path.write_text(proposal.to_yaml(), encoding="utf-8")
    assert read_plan(path) == proposal and check(proposal, scan(trace(model, IMAGES[:2]))) == proposal
    (swap,) = (swap for swap in proposal.swaps if isinstance(swap, CGhostSwap) and swap.ordered)
    assert "ordered" in swap.settings and "ordered" in str(proposal)


def test_an_order_costs_nothing_that_is_counted() -> None:
    model, proposal, choices = ordered_network()
    plain = plan(scan(trace(model, IMAGES[:2])), **EAGER)
    assert proposal.after == plain.after
    assert rewrite(trace(model, IMAGES[:2]), proposal, choices).after.cost == plain.after


@pytest.mark.parametrize("name", ["grouped", "linear"])
def test_what_cannot_be_ordered_is_refused(name: str) -> None:
    convs = nn.Sequential(conv_bn(4, 8, groups=2), nn.Flatten(), nn.Linear(8 * 64, 8))
    traced = trace(convs, torch.randn(2, 4, 8, 8))
    target = "0.0" if name == "grouped" else "2"
    proposal = plan(scan(traced), **EAGER, also=("stem", "classifier"))
    swaps = tuple(swap.model_copy(update={"ordered": swap.target == target}) for swap in proposal.swaps)
    with pytest.raises(PlanError, match=f"{target} cannot be ordered"):
        rewrite(traced, proposal.model_copy(update={"swaps": swaps}))
