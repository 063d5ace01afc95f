"""The best choice under a budget: multiple choice with one or several knapsacks, solved by mixed-integer programming.

    minimise  h·x   subject to   C·x ≤ b,   Σ_{i of a choice} x_i = x_parent (1 at the top),   x_i ∈ {0, 1}

Options are numbered; each has a harm h_i and costs C_ki (differences to the original, in any units).  A choice takes
exactly one of its options where its parent is taken, and none where it is not: the forms of a layer belong to one
width of its block.  The solver is HiGHS (Huangfu and Hall 2018, through ``scipy.optimize.milp``): exact up to the gap
that a solution states.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Vector = NDArray[np.float64]

SECONDS = 10.0
"""After which the best solution found is taken, with its gap."""
GAP = 1e-4
"""Of the objective; below it the search ends.  Harms are known to some per cent at best."""
_SCALE = 1e3
"""Of the largest coefficient of an objective: HiGHS also ends at an absolute gap of 1e-6, which is to mean nothing."""


class Choice(NamedTuple):
    """Exactly one of ``options`` is taken where ``parent`` is, or in any case where it has none."""

    options: tuple[int, ...]
    parent: int | None = None


@dataclass(frozen=True)
class Problem:
    """Options with their harms (n) and costs (k, n), and the choices among them."""

    harms: Vector
    costs: Vector
    choices: tuple[Choice, ...]


class Solution(NamedTuple):
    """The options taken, what they add up to, and by what share of the objective a better one might be better."""

    taken: tuple[int, ...]
    harm: float
    costs: Vector
    gap: float


def least_harm(problem: Problem, bounds: Sequence[float] | Vector) -> Solution | None:
    """The choice of least harm whose costs (k) stay within ``bounds`` (k); None where there is none."""
    return _solved(problem, problem.harms, problem.costs, np.asarray(bounds, dtype=float))


def least_cost(problem: Problem, which: int, most_harm: float) -> Solution | None:
    """The choice that costs least by cost number ``which``, of a harm of ``most_harm`` or less; None where none is."""
    return _solved(problem, problem.costs[which], problem.harms[None], np.array([most_harm]))


def _solved(problem: Problem, objective: Vector, rows: Vector, bounds: Vector) -> Solution | None:
    count = len(problem.harms)
    constraints = [_one_of_each(problem.choices, count)]
    if len(rows):
        constraints.append(_within(rows, bounds))
    largest = np.abs(objective).max(initial=0) or 1.0
    # without presolve it takes half the time: the problem has nothing to be removed but options that others dominate
    options = {"mip_rel_gap": GAP, "time_limit": SECONDS, "presolve": False}
    with _quiet():
        found = milp(
            objective * (_SCALE / largest),
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options=options,
        )
    if found.x is None:
        return None
    taken = np.flatnonzero(found.x > 0.5)
    gap = float(found.mip_gap or 0.0)
    return Solution(tuple(map(int, taken)), float(problem.harms[taken].sum()), problem.costs[:, taken].sum(1), gap)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS prints a line of its own where it repairs a solution, whatever it is told; stdout is for answers."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda stream: None
    sys.stdout.flush()
    os.dup2(null, 1)
    try:
        yield
    finally:
        flush(None)  # C's own buffer, before its text can follow the answer
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def _one_of_each(choices: Sequence[Choice], count: int) -> LinearConstraint:
    """Σ options − parent = 0, and where there is no parent Σ options = 1."""
    entries: list[tuple[int, int, float]] = []
    for row, choice in enumerate(choices):
        entries += [(row, option, 1.0) for option in choice.options]
        if choice.parent is not None:
            entries.append((row, choice.parent, -1.0))
    rows, columns, values = zip(*entries, strict=True)
    matrix = csr_array((values, (rows, columns)), shape=(len(choices), count))
    wanted = np.array([1.0 if choice.parent is None else 0.0 for choice in choices])
    return LinearConstraint(matrix, wanted, wanted)


def _within(rows: Vector, bounds: Vector) -> LinearConstraint:
    """Rows of coefficients near 1, whatever their units: the solver's tolerance is one for all."""
    scale = np.abs(rows).max(axis=1)
    scale[scale == 0] = 1.0
    return LinearConstraint(rows / scale[:, None], -np.inf, bounds / scale)
