"""The solver: as good as trying everything, within every budget."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostify.budget.solving import GAP, Choice, Problem, least_cost, least_harm


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Blocks with two or three widths, and for each width layers with forms: 2 to 4 blocks, one or two costs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    harms: list[float] = []
    costs: list[list[float]] = []
    choices: list[Choice] = []
    kinds = draw(st.integers(1, 2))

    def option(share: float) -> int:
        harms.append(share * share * rng.uniform(0.5, 2))
        costs.append([-share * rng.uniform(0.5, 2) for _ in range(kinds)])
        return len(harms) - 1

    for _ in range(draw(st.integers(1, 3))):
        widths = []
        for width in range(draw(st.integers(1, 2))):
            widths.append(option(0.4 * width))
            for _ in range(draw(st.integers(0, 2))):
                forms = tuple(option(0.3 * form) for form in range(draw(st.integers(1, 3))))
                choices.append(Choice(forms, widths[-1]))
        choices.append(Choice(tuple(widths)))
    return Problem(np.array(harms), np.array(costs).T.copy(), tuple(choices))


def everything(problem: Problem) -> Iterator[list[int]]:
    """All that can be taken, one after the other."""
    tops = [choice for choice in problem.choices if choice.parent is None]
    for taken in product(*(taken_below(problem, choice) for choice in tops)):
        yield [option for part in taken for option in part]


def taken_below(problem: Problem, choice: Choice) -> list[list[int]]:
    found = []
    for option in choice.options:
        below = [taken_below(problem, one) for one in problem.choices if one.parent == option]
        for taken in product(*below):
            found.append([option, *(other for part in taken for other in part)])
    return found


@given(problems(), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_no_choice_within_the_budget_harms_less(problem: Problem, share: float) -> None:
    totals = np.array([problem.costs[:, taken].sum(1) for taken in everything(problem)])
    harms = np.array([problem.harms[taken].sum() for taken in everything(problem)])
    bounds = share * totals.min(axis=0)
    within = (totals <= bounds + 1e-9).all(axis=1)
    found = least_harm(problem, bounds)
    if not within.any():
        assert found is None
        return
    assert found is not None
    assert found.harm <= harms[within].min() * (1 + GAP) + 1e-6
    assert (found.costs <= bounds + 1e-5).all()
    assert set(found.taken) in [set(taken) for taken in everything(problem)]
    assert found.harm == pytest.approx(problem.harms[list(found.taken)].sum())


@given(problems(), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_no_choice_of_so_little_harm_costs_less(problem: Problem, share: float) -> None:
    totals = np.array([problem.costs[0, taken].sum() for taken in everything(problem)])
    harms = np.array([problem.harms[taken].sum() for taken in everything(problem)])
    most = harms.min() + share * (harms.max() - harms.min())
    found = least_cost(problem, 0, most)
    assert found is not None
    assert found.costs[0] <= totals[harms <= most].min() + GAP * abs(totals.min()) + 1e-6
    assert found.harm <= most + 1e-5


def test_nothing_is_taken_where_no_choice_is_cheap_enough() -> None:
    problem = Problem(np.array([0.0, 1.0]), np.array([[0.0, -1.0]]), (Choice((0, 1)),))
    assert least_harm(problem, [-1.5]) is None
    found = least_harm(problem, [-1.0])
    assert found is not None and found.taken == (1,)


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    harms, costs = rng.uniform(size=600), -rng.uniform(size=(1, 600))
    choices = tuple(Choice(tuple(range(start, start + 4))) for start in range(0, 600, 4))
    print("before")
    assert least_harm(Problem(harms, costs, choices), [-90.0]) is not None
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
