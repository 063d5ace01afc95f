"""Moments by blocks and what is solved from them, against solves on the rows themselves in float64."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghostify.leastsquares.moments import LIMIT, RIDGES, Moments, Normal, serving, solve, spanning, squared
from ghostify.leastsquares.principal import Principal, carried

GROUPS = pytest.mark.parametrize("g", [1, 3])
CONSTANT = pytest.mark.parametrize("constant", [True, False], ids=["constant", "no-constant"])


Rows = tuple[Tensor, Tensor]


def rows(count: int = 200, g: int = 1, d: int = 5, n: int = 3, noise: float = 0.3, seed: int = 0) -> Rows:
    """u (N, g, D) far from the origin and correlated, and t (N, g, n) linear in it but for noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u = normal(count, g, d) @ normal(d, d) + 100 * normal(g, d)
    t = torch.einsum("ngd,gmd->ngm", u, normal(g, n, d)) + 50 * normal(g, n) + noise * normal(count, g, n)
    return u, t


def moments(u: Tensor, t: Tensor, sizes: list[int] | None = None, squares: bool = True) -> Moments:
    """Of the rows in blocks of these sizes."""
    found = Moments(squares)
    for block, targets in zip(u.split(sizes or len(u)), t.split(sizes or len(t)), strict=True):
        found.add(block, targets)
    return found


def direct(u: Tensor, t: Tensor, start: Tensor, strength: float, constant: bool) -> tuple[Tensor, Tensor | None]:
    """Ridge regression by one least squares per group on the rows, with the ridge as rows below them."""
    means = (u.mean(0), t.mean(0)) if constant else (torch.zeros_like(u[0]), torch.zeros_like(t[0]))
    weights = []
    for group in range(u.shape[1]):
        x, y = u[:, group] - means[0][group], t[:, group] - means[1][group]
        loads = (strength * x.square().mean()).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
        left = torch.cat([x / math.sqrt(len(x)), loads])
        right = torch.cat([y / math.sqrt(len(x)), loads @ start[group].T])
        weights.append(torch.linalg.lstsq(left, right, driver="gelsd").solution.T)
    weight = torch.stack(weights)
    return weight, means[1] - torch.einsum("gnd,gd->gn", weight, means[0]) if constant else None


def mean_square(u: Tensor, t: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By target, over the rows: (g, n)."""
    y = torch.einsum("ngd,gmd->ngm", u, weight)
    return (t - (y if bias is None else y + bias)).square().mean(0)


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


# -- moments ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    g=st.integers(1, 3),
    constant=st.booleans(),
    shuffle=st.randoms(use_true_random=False),
)
def test_blocks_of_any_size_in_any_order_give_the_solve_on_all_rows(sizes, g, constant, shuffle) -> None:
    u, t = rows(sum(sizes) + 20, g)
    sizes = [*sizes, 20]
    blocks = list(zip(u.split(sizes), t.split(sizes), strict=True))
    shuffle.shuffle(blocks)
    found = Moments()
    for block, targets in blocks:
        found.add(block, targets)
    start = torch.ones(g, 3, 5, dtype=torch.float64)
    weight = Normal(found.features(constant), start, 1e-3).solve(found.crossed(constant))
    wanted, bias = direct(u, t, start, 1e-3, constant)
    assert near(weight, wanted)
    if constant:
        assert near(found.intercept(weight), bias, 1e-9)


@GROUPS
def test_moments_are_those_of_the_rows(g: int) -> None:
    u, t = rows(150, g)
    found = moments(u, t, [1, 49, 7, 93])
    x, y = u - u.mean(0), t - t.mean(0)
    assert found.count == 150
    assert near(found.mean_u, u.mean(0)) and near(found.mean_t, t.mean(0))
    assert near(found.features(), torch.einsum("ngd,nge->gde", x, x) / 150)
    assert near(found.crossed(), torch.einsum("ngm,ngd->gmd", y, x) / 150)
    assert near(found.features(False), torch.einsum("ngd,nge->gde", u, u) / 150)
    assert near(found.crossed(False), torch.einsum("ngm,ngd->gmd", t, u) / 150)


@GROUPS
@pytest.mark.parametrize("biased", [True, False])
def test_the_error_is_the_mean_square_over_the_rows(g: int, biased: bool) -> None:
    """Of any weights, with any bias or none."""
    u, t = rows(150, g, noise=3)
    found = moments(u, t, [50, 100])
    weight = torch.randn(g, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.arange(3.0 * g, dtype=torch.float64).reshape(g, 3) if biased else None
    assert near(found.error(weight, bias), mean_square(u, t, weight, bias), 1e-8)


def test_many_features_are_summed_in_float32_and_nothing_is_lost_to_their_means() -> None:
    u, t = rows(900, d=400, noise=0)
    u, t = u / 20, t / 20
    found, wanted = moments(u.float(), t.float(), [450, 450]), moments(u, t)
    assert near(found.features(), wanted.features(), 1e-5) and near(found.crossed(), wanted.crossed(), 1e-5)


def test_without_squares_all_but_the_features_products_is_there() -> None:
    u, t = rows()
    some, all_ = moments(u, t, [80, 120], squares=False), moments(u, t)
    assert near(some.crossed(), all_.crossed()) and near(some.mean_u, all_.mean_u) and near(some.tt, all_.tt)
    weight = torch.ones(1, 3, 5, dtype=torch.float64)
    assert near(some.intercept(weight), all_.intercept(weight))


@pytest.mark.parametrize("squares", [True, False])
def test_plus_is_the_moments_of_both_and_changes_neither(squares: bool) -> None:
    u, t = rows()
    parts = slice(70), slice(70, None), slice(None)
    one, other, both = (moments(u[part], t[part], squares=squares) for part in parts)
    kept = copy.deepcopy((one.__dict__, other.__dict__))
    found = one.plus(other)
    found.add(u[:10], t[:10])
    found = one.plus(other)
    for name, wanted in both.__dict__.items():
        value = getattr(found, name)
        assert near(value, wanted) if isinstance(wanted, Tensor) and wanted.dim() else value == wanted
    for before, after in zip(kept, (one.__dict__, other.__dict__), strict=True):
        assert all(torch.equal(torch.as_tensor(before[name]), torch.as_tensor(after[name])) for name in before)


def test_nothing_is_added_by_moments_of_nothing() -> None:
    u, t = rows()
    some = moments(u, t)
    wanted = some.features().clone()
    for both in (some.plus(Moments()), Moments().plus(some)):
        assert both.count == 200 and torch.equal(both.features(), wanted)


# -- solving ---------------------------------------------------------------------------------------------------


def held_errors(u: Tensor, t: Tensor, held: tuple[Tensor, Tensor], start: Tensor, constant: bool) -> list[float]:
    """By ridge, the mean squared error on what is held out."""
    found = []
    for strength in RIDGES:
        weight, bias = direct(u, t, start, strength, constant)
        found.append(float(mean_square(*held, weight, bias).mean()))
    return found


@GROUPS
@CONSTANT
@pytest.mark.parametrize(("count", "noise"), [(400, 0.01), (12, 2.0), (8, 30.0)], ids=["plenty", "few", "noisy"])
def test_the_ridge_that_does_best_on_what_is_held_out_is_taken(
    g: int, constant: bool, count: int, noise: float
) -> None:
    """No strength beside it does better, nor do the weights it began with; and all rows are solved with it again."""
    (u, t), held = rows(count, g, noise=noise), rows(count + 300, g, noise=noise)
    held = held[0][count:], held[1][count:]
    start = torch.zeros(g, 3, 5, dtype=torch.float64)
    found = solve(moments(u, t), moments(*held), start, constant=constant)
    errors = held_errors(u, t, held, start, constant)
    before = float(mean_square(*held, start, t.mean(0) if constant else None).mean())
    assert found.before == pytest.approx(before)
    if found.ridge == math.inf:
        assert found.error == found.before <= min(errors) * (1 + 1e-6)
        return
    at = RIDGES.index(found.ridge)
    assert found.error == pytest.approx(errors[at], rel=1e-5)
    assert errors[at] <= min(before, *errors[max(0, at - 1) : at + 2]) * (1 + 1e-6)
    weight, bias = direct(torch.cat([u, held[0]]), torch.cat([t, held[1]]), start, found.ridge, constant)
    assert near(found.weight, weight, 1e-8) and (bias is None) == (found.bias is None)
    assert bias is None or near(found.bias, bias, 1e-8)


def test_few_noisy_rows_want_a_stronger_ridge_than_many_clean_ones() -> None:
    start = torch.zeros(1, 3, 5, dtype=torch.float64)
    strengths = []
    for count, noise in ((400, 1e-3), (9, 20.0)):
        u, t = rows(count + 300, noise=noise)
        seen, held = moments(u[:count], t[:count]), moments(u[count:], t[count:])
        strengths.append(solve(seen, held, start).ridge)
    assert strengths[0] < 1e-6 and strengths[1] > 1e-3


@CONSTANT
def test_the_weights_it_began_with_stay_where_they_do_best(constant: bool) -> None:
    """What is seen says something else than what is held out, which is as the weights have it."""
    u, t = rows(20, noise=100)
    start = torch.ones(1, 3, 5, dtype=torch.float64)
    held_u = rows(100, seed=1)[0]
    held_t = torch.einsum("ngd,gmd->ngm", held_u, start)
    if constant:
        t = t - t.mean(0) + torch.einsum("gd,gmd->gm", u.mean(0), start)
    found = solve(moments(u, t), moments(held_u, held_t), start, constant=constant)
    assert found.ridge == math.inf and torch.equal(found.weight, start)
    assert found.error == found.before < 1e-12
    if constant:
        wanted = torch.cat([t, held_t]).mean(0) - torch.einsum("gnd,gd->gn", start, torch.cat([u, held_u]).mean(0))
        assert near(found.bias, wanted, 1e-9)


def test_targets_without_weight_do_not_choose_the_ridge() -> None:
    """A target of noise wants a strong ridge, and is not heard."""
    u, t = rows(40, noise=1e-3)
    t[:20, :, 2] += 1e3 * torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, held = moments(u[:20], t[:20]), moments(u[20:], t[20:])
    start = torch.zeros(1, 3, 5, dtype=torch.float64)
    heard = solve(seen, held, start)
    unheard = solve(seen, held, start, weights=torch.tensor([[1.0, 1.0, 0.0]]))
    assert unheard.ridge < heard.ridge
    assert unheard.ridge == solve(moments(u[:20], t[:20, :, :2]), moments(u[20:], t[20:, :, :2]), start[:, :2]).ridge


def test_without_anything_held_out_a_ridge_of_the_middle_is_taken() -> None:
    u, t = rows()
    found = solve(moments(u, t), Moments(), torch.zeros(1, 3, 5, dtype=torch.float64))
    assert RIDGES[0] < found.ridge < RIDGES[-1]
    assert near(found.weight, direct(u, t, torch.zeros(1, 3, 5, dtype=torch.float64), found.ridge, True)[0])


@CONSTANT
@pytest.mark.parametrize("kind", ["twice", "constant", "zero", "dead", "few", "one"])
def test_singular_features_give_finite_weights_that_fit(constant: bool, kind: str) -> None:
    """Features that occur twice, do not vary, are nothing, or are more than there are rows."""
    u, t = rows(60, noise=0)
    if kind == "twice":
        u[..., 1], u[..., 4] = u[..., 0], u[..., 0] + u[..., 2]
    elif kind == "constant":
        u[..., 3] = 7.0
    elif kind in ("zero", "dead"):
        u[..., slice(None) if kind == "dead" else 2] = 0.0
    elif kind in ("few", "one"):
        u, t = u[: 3 if kind == "few" else 1], t[: 3 if kind == "few" else 1]
    start = torch.zeros(1, 3, 5, dtype=torch.float64)
    found = solve(moments(u, t), Moments(), start, constant=constant, ridges=(1e-8,))
    assert found.weight.isfinite().all() and (not constant or found.bias.isfinite().all())
    x = torch.cat([u[:, 0], torch.ones(len(u), 1, dtype=u.dtype)], 1) if constant else u[:, 0]
    left = t[:, 0] - x @ torch.linalg.lstsq(x, t[:, 0], driver="gelsd").solution
    error = mean_square(u, t, found.weight, found.bias)[0]
    assert (error <= left.square().mean(0) + 1e-6 * t.square().mean()).all()


def test_features_that_are_not_finite_leave_the_weights_as_they_were() -> None:
    u, t = rows()
    u[3, 0, 1] = math.nan
    start = torch.ones(1, 3, 5, dtype=torch.float64)
    found = solve(moments(u[:100], t[:100]), moments(u[100:], t[100:]), start)
    assert found.ridge == math.inf and torch.equal(found.weight, start)


@pytest.mark.parametrize("d", [1, 5, 256, 257, 600])
def test_products_of_features_with_each_other_are_whole_though_half_of_them_is_computed(d: int) -> None:
    u = torch.randn(2, 30, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(squared(u), torch.einsum("gnd,gne->gde", u, u), rtol=1e-12, atol=1e-12)


# -- reduced rank ----------------------------------------------------------------------------------------------


def by_singular_values(s: Tensor, weight: Tensor, weights: Tensor, rank: int) -> Tensor:
    """The nearest map of a rank: cut the singular values of the map in whitened features and scaled targets."""
    root, scale = torch.linalg.cholesky(s), weights.sqrt()[:, None]
    left, values, right = torch.linalg.svd(scale * weight @ root, full_matrices=False)
    cut = (left[:, :rank] * values[:rank]) @ right[:rank]
    return torch.linalg.solve_triangular(root, cut / scale, upper=False, left=False)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_nearest_map_of_a_rank_is_that_of_the_whitened_singular_values(rank: int, weighted: bool) -> None:
    u, t = rows(300, d=8, n=6, noise=20)
    found = moments(u, t)
    s, weight = found.features()[0], torch.linalg.solve(found.features()[0], found.crossed()[0].T).T
    weights = torch.arange(1.0, 7, dtype=torch.float64) ** 3 if weighted else torch.ones(6, dtype=torch.float64)
    wanted = by_singular_values(s, weight, weights, rank)
    assert near(spanning(s, weight, weights, rank), wanted, 1e-8)
    assert torch.linalg.matrix_rank(wanted, rtol=1e-9) == rank


def test_targets_without_weight_have_no_part_in_the_nearest_map_and_stay_finite() -> None:
    u, t = rows(300, d=8, n=6, noise=20)
    found = moments(u, t)
    s, weight = found.features()[0], torch.linalg.solve(found.features()[0], found.crossed()[0].T).T
    weights = torch.tensor([1.0, 2, 0, 1, 0, 3], dtype=torch.float64)
    alive = weights > 0
    cut = spanning(s, weight, weights, 2)
    assert cut.isfinite().all() and cut.abs().max() <= 10 * weight.abs().max()
    assert near(cut[alive], by_singular_values(s, weight[alive], weights[alive], 2), 1e-5)
    assert spanning(s, weight, torch.zeros(6), 2).isfinite().all()


@pytest.mark.parametrize("weighted", [True, False])
def test_what_m_combinations_carry_is_what_a_layer_of_that_rank_fitted_to_it_leaves(weighted: bool) -> None:
    """Of what the layer itself gives, for every m, from the covariance of its outputs alone."""
    u, t = rows(300, d=8, n=6, noise=20)
    found = moments(u, t)
    s, weight = found.features()[0], torch.linalg.solve(found.features()[0], found.crossed()[0].T).T
    weights = torch.arange(1.0, 7, dtype=torch.float64) ** 3 if weighted else torch.ones(6, dtype=torch.float64)
    covariance = weight @ s @ weight.T
    curve = Principal.of(covariance, weights)
    assert near(carried(covariance, weights), curve.carried, 1e-12)
    for m in range(1, 7):
        fitted = by_singular_values(s, weight, weights, m)
        assert near(curve.projection(m) @ weight, fitted, 1e-8)
        wrong = ((weight - fitted) @ s * (weight - fitted)).sum(1) @ weights
        assert float(1 - curve.carried[m - 1]) == pytest.approx(
            float(wrong / (covariance.diagonal() @ weights)), abs=1e-9
        )


def test_as_many_combinations_are_needed_as_lose_no_more_than_is_allowed() -> None:
    curve = Principal.of(torch.diag(torch.tensor([1.0, 6, 3, 0])), torch.ones(4))
    assert [curve.needed(lost) for lost in (0.5, 0.4, 0.39, 0.1, 0.05, 0.0)] == [1, 1, 2, 2, 3, 3]
    silent = Principal.of(torch.zeros(3, 3), torch.ones(3))
    assert silent.needed(0.1) == 1 and silent.carried.tolist() == [1, 1, 1]


def mixing(weight: Tensor, chosen: Tensor) -> Tensor:
    """How the chosen rows are mixed into all (n, m)."""
    return torch.linalg.lstsq(weight[chosen].T, weight.T, driver="gelsd").solution.T


def least(weight: Tensor, s: Tensor, weights: Tensor, found: Tensor) -> float:
    """The weighted error of a map for another one's outputs."""
    wrong = found - weight
    return float((((wrong @ s) * wrong).sum(1) * weights).sum())


@pytest.mark.parametrize("chosen", [[0, 1, 2], [5, 0, 3]])
def test_rows_that_serve_all_come_as_near_as_any_map_of_their_rank(chosen: list[int]) -> None:
    """Whichever rows are chosen, as long as nothing is multiplied by much."""
    noise = torch.randn(6, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weight, others = torch.zeros_like(noise), [row for row in range(6) if row not in chosen]
    weight[chosen] = torch.linalg.qr(noise[chosen].T).Q.T
    weight[others] = noise[others, :3] @ weight[chosen] / 2
    weight = weight + 0.1 * noise
    s, weights = moments(*rows(300, d=8)).features()[0], torch.arange(1.0, 7, dtype=torch.float64)
    s = s / s.diagonal().mean() + torch.eye(8)
    found = serving(s, weight, weights, torch.tensor(chosen))
    assert torch.linalg.matrix_rank(found, rtol=1e-9) == 3
    assert mixing(found, torch.tensor(chosen)).abs().max() <= LIMIT
    best = least(weight, s, weights, spanning(s, weight, weights, 3))
    assert best <= least(weight, s, weights, found) * (1 + 1e-9) <= best * (1 + 1e-6)


def test_rows_that_hardly_differ_serve_without_large_factors() -> None:
    """Where the chosen rows are all but dependent, or nothing, accuracy is given up for small factors."""
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[1], weight[2] = weight[0] + 1e-4 * weight[1], 1e-4 * weight[2]
    chosen, eye = torch.tensor([0, 1, 2]), torch.eye(8, dtype=torch.float64)
    found = serving(eye, weight, torch.ones(6), chosen)
    assert found.isfinite().all() and mixing(found, chosen).abs().max() <= LIMIT * (1 + 1e-6)
    for weights in (torch.zeros(6), torch.tensor([0.0, 1, 1, 0, 1, 1])):
        assert serving(eye, weight, weights, chosen).isfinite().all()
    assert serving(0 * eye, weight, torch.ones(6), chosen).isfinite().all()


# -- several processes -----------------------------------------------------------------------------------------


def part_of(rank: int) -> slice:
    """The rows that a process sees, more in one than in the other."""
    return slice(130) if rank == 0 else slice(130, None)


def reduce_in(rank: int, folder: str) -> None:
    """What one of two processes finds: of all rows, of those that only the first process sees, and of none."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    u, t = rows(g=2)
    whole, light = (moments(u[part_of(rank)], t[part_of(rank)], squares=squares).reduced() for squares in (True, False))
    alone = (moments(u[:50], t[:50]) if rank == 0 else Moments()).reduced()
    torch.save([whole.__dict__, light.__dict__, alone.__dict__, Moments().reduced().__dict__], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_processes_agree_on_the_moments_of_all_their_rows(tmp_path: Path) -> None:
    """Bit by bit with each other, and with one process that sees everything; also where one or both saw nothing."""
    mp.spawn(reduce_in, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    u, t = rows(g=2)
    wanted = [moments(u, t), moments(u, t, squares=False), moments(u[:50], t[:50]), Moments()]
    for one, other, alone in zip(first, second, wanted, strict=True):
        for name, value in alone.__dict__.items():
            assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name
            assert torch.allclose(torch.as_tensor(one[name]), torch.as_tensor(value), rtol=1e-10, atol=0), name


def test_one_process_has_nothing_to_reduce() -> None:
    found = moments(*rows())
    assert found.reduced() is found
