"""A network + a budget → the plan of least harm that meets it, or the cheapest that keeps what is to be kept.

    candidates (what may be chosen) · prices (what each costs) · harms (what each does to the outputs)
        → solved → built and timed → where it misses, solved again with what was learned

A plan's time is measured before anything is fitted, because it does not depend on the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ghostify.budget.agreeing import Curve
from ghostify.budget.candidates import Numbered
from ghostify.budget.checking import Seen, Witness
from ghostify.budget.learning import Saving, share_come_true
from ghostify.budget.ledger import ledger
from ghostify.budget.planned import plan_of, told_of
from ghostify.budget.pricing import COUNTS, Prices
from ghostify.budget.solving import Problem, Solution, Vector, least_cost, least_harm
from ghostify.budget.timing import Stopwatch, Timed
from ghostify.budget_result import Amount, Budgeted, shown
from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.harm import Harms
from ghostify.planning import Plan
from ghostify.recipe import BudgetSettings, GhostSettings
from ghostify.rewriting import rewrite
from ghostify.scanning import Scan
from ghostify.targets import Quantity
from ghostify.tracing import Recording

ROUNDS = 4
"""How often at most a plan is made again because it missed."""
MISS = 0.03
"""The share of a target by which a plan may miss it."""
_ALIKE = 0.28
"""How far errors of two kinds of swap in one network go the same way (0: not at all, 1: all the way).

Fitted to five plans of a ResNet20 and a ResNet56 on CIFAR-10, of which each kind alone was measured, too: with it the
harm of the whole is predicted within 15 %.
"""


class _Try(NamedTuple):
    """A plan that was timed."""

    plan: Plan
    solution: Solution
    timed: Timed


@dataclass
class Choosing:
    """A budget for one network: what may be chosen, its prices and harms, and what measurements taught of them."""

    recording: Recording
    scan: Scan
    ghost: GhostSettings
    budget: BudgetSettings
    fitted: bool
    numbered: Numbered
    prices: Prices
    harms: Vector
    measured: Harms | None = None
    """What the harms are taken from; None where they are a proxy."""
    stopwatch: Stopwatch | None = None
    """To time plans by; None where time decides nothing."""
    witness: Witness | None = None
    """Of what networks do to the outputs; None without images."""
    curve: Curve | None = None
    """How many answers change by harm; None where there are no answers to be compared."""
    come_true: dict[str, float] = field(default_factory=dict)
    """By quantity, the share of a predicted saving that was measured; of "harm", the share of that."""
    savings: tuple[Saving, ...] = ()
    """What the plans that were timed saved of time."""
    rounds: int = 0
    """How often the plan was made again."""
    solution: Solution | None = None
    timed: Timed | None = None
    corrected: bool = False
    """Whether harms of each kind of swap were corrected by networks of that kind."""
    notes: tuple[str, ...] = ()
    """What a reader of the result must know."""

    def plan(self) -> Plan:
        """The plan chosen; where time is asked for, one that was timed, and made anew where it missed.

        Raises ``PlanError`` for targets that cannot be met, with the least that can.
        """
        if not (self.stopwatch and self.budget.timed):
            return self._solved()
        return self._by_clock(self.stopwatch)

    def _by_clock(self, stopwatch: Stopwatch) -> Plan:
        """The first plan whose time is as asked; where none is after some rounds, the best of those fast enough."""
        tries: list[_Try] = []
        chosen = self._next(tries)
        for _ in range(ROUNDS):
            missed = self._learn_time(chosen, stopwatch)
            assert self.solution is not None and self.timed is not None, "a plan was made and timed"
            tries.append(_Try(chosen, self.solution, self.timed))
            if not missed:
                return chosen
            chosen = self._next(tries)
            if any(chosen == one.plan for one in tries):
                break
        fast = [one for one in tries if self._latency(one.timed) <= (1 + MISS) * self._asked]
        if not fast:
            # By all that was learned it is fast enough; the time of another plan is not its own.
            self.timed = next((one.timed for one in tries if one.plan == chosen), None)
            return chosen
        best = min(fast, key=lambda one: one.solution.harm)
        self.solution, self.timed = best.solution, best.timed
        return best.plan

    def _next(self, tries: Sequence[_Try]) -> Plan:
        """The plan to be timed next; the fastest where none is fast enough by what is known.

        A busy machine delays a whole network more than its pieces, so nobody is refused before the fastest was timed.
        """
        try:
            return self._solved()
        except PlanError:
            if self._is_in_reach("latency"):
                raise
            fastest = self._fastest()
            if any(fastest == one.plan for one in tries):
                raise
            return fastest

    def _learn_time(self, chosen: Plan, stopwatch: Stopwatch) -> bool:
        """Time a plan; whether it missed, and something was learned of that."""
        self.timed = stopwatch.beside(rewrite(self.recording, chosen))
        now = self._latency(self.timed)
        if not self.notes:
            promised = f"{shown('latency', self.predicted('latency'))} predicted, {shown('latency', now)} measured"
            self.notes += (
                f"The first plan took {now / self.predicted('latency'):.2f}x as long as predicted: {promised}.",
            )
        if not self._missed(now):
            return False
        self._learn(now)
        return True

    def _latency(self, timed: Timed) -> float:
        """A time as the prices tell it: the original may take another time today than when it was alone."""
        return timed.after / timed.before * self.prices.before["latency"]

    def again(self, seen: Seen) -> Plan:
        """The cheapest plan once more, with what was seen of the last one."""
        assert self.curve is not None, "something is to be kept"
        if self.harm > 0:
            self.come_true["harm"] = max(0.1, self.come_true.get("harm", 1.0) * seen.harm / self.harm)
        self.curve = self.curve.through(seen.harm, seen.kept)
        self.rounds += 1
        return self.plan()

    @property
    def harm(self) -> float:
        """What the plan is expected to do to the outputs, with what was learned."""
        assert self.solution is not None, "a plan was made"
        return self.solution.harm * self._together * self.come_true.get("harm", 1.0)

    @property
    def _together(self) -> float:
        """By how much the harm of the plan is more than the sum of its swaps'; a proxy is only added up.

            Σ H_k + 2ρ Σ_{k<l} √(H_k H_l)      H_k: what all swaps of one kind harm

        Where ghosts stand in blocks that are thinner, too, the one error goes the way of the other in part.
        """
        if self.measured is None or self.solution is None or not self.solution.harm:
            return 1.0
        taken = list(self.solution.taken)
        own = [float((self.harms * self._is_of(kind))[taken].sum()) for kind in self._kinds]
        return 1 + 2 * _ALIKE * sum(math.sqrt(one * other) for one, other in combinations(own, 2)) / sum(own)

    @property
    def _kinds(self) -> list[str]:
        """The rules of all swaps that may be chosen."""
        return sorted({swap.rule for option in self.numbered.options for swap in option.swaps})

    def _is_of(self, kind: str) -> Vector:
        """By option, 1 where it swaps by a rule, else 0."""
        options = self.numbered.options
        return np.array([float(any(swap.rule == kind for swap in option.swaps)) for option in options])

    def of_kind(self, kind: str) -> Choosing:
        """The same budget with swaps of one kind alone: others save nothing and do harm, so that nobody takes them."""
        own, swaps = self._is_of(kind), np.array([bool(option.swaps) for option in self.numbered.options])
        changes = {quantity: own * change for quantity, change in self.prices.changes.items()}
        harms = np.where(own > 0, self.harms, swaps * (1 + self.harms.max()))
        prices = replace(self.prices, changes=changes)
        come_true = dict(self.come_true)
        return replace(self, prices=prices, harms=harms, come_true=come_true, savings=(), solution=None, timed=None)

    def correct(self, factors: Mapping[str, float]) -> None:
        """Take harms of each kind of swap for so many times what they were."""
        for kind, factor in factors.items():
            self.harms = np.where(self._is_of(kind) > 0, factor * self.harms, self.harms)
        self.corrected = True
        self.rounds += 1
        told = ", ".join(f"{kind} {factor:.2f}x" for kind, factor in factors.items())
        self.notes += (f"Networks of one kind of swap alone did as much harm as predicted times: {told}.",)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What is bounded, each once; where harm is, what is to be least."""
        if self.budget.target:
            return tuple(dict.fromkeys(target.quantity for target in self.budget.target))
        return ("latency",) if self.stopwatch else ("macs",)

    def amounts(self, measured: dict[Quantity, float]) -> tuple[Amount, ...]:
        """What each bounded quantity was, was to be, was predicted to be, and is."""
        return tuple(
            Amount(
                quantity=quantity,
                before=self.prices.before[quantity],
                bound=self.bound(quantity),
                predicted=self.predicted(quantity),
                measured=measured.get(quantity),
            )
            for quantity in self.quantities
        )

    def result(self, seen: Seen | None = None, timed: Timed | None = None, after: Cost | None = None) -> Budgeted:
        """What was asked, what was predicted and what came of it, as far as that is known."""
        assert self.solution is not None, "a plan was made"
        measured: dict[Quantity, float] = {}
        if after is not None:
            measured |= {quantity: float(of(after)) for quantity, of in COUNTS.items()}
        timed, notes = timed or self.timed, self.notes
        if timed is not None:
            measured["latency"] = self._latency(timed)
            notes += (timed.doubt,) if timed.doubt else ()
        asked = self.budget.target or (f"keep {self.budget.keep}",)
        return Budgeted(
            asked=tuple(map(str, asked)),
            place=str(self.stopwatch.place) if self.stopwatch else "",
            amounts=self.amounts(measured),
            harm=self.harm,
            harm_measured=seen.harm if seen else None,
            unit=self.measured.unit if self.measured else "proxy",
            agreement=self.curve.share(self.harm) if self.curve and self.measured else None,
            agreement_measured=seen.agreement if seen else None,
            images=self.witness.images if self.witness and seen else 0,
            rounds=self.rounds,
            gap=self.solution.gap,
            choices=ledger(self, "latency" if "latency" in self.prices.changes else self.quantities[0]),
            notes=notes,
        )

    # -- bounds and what is predicted --------------------------------------------------------------------------

    def bound(self, quantity: Quantity) -> float | None:
        """The most that the network may cost, of all targets of a quantity."""
        targets = [target for target in self.budget.target if target.quantity == quantity]
        return min((target.bound(self.prices.before[quantity]) for target in targets), default=None)

    def predicted(self, quantity: Quantity) -> float:
        """What the network of the solution is expected to cost, with what was learned."""
        assert self.solution is not None, "a plan was made"
        saved = -float(self.prices.changes[quantity][list(self.solution.taken)].sum())
        return self.prices.before[quantity] - saved * self.come_true.get(quantity, 1.0)

    def _learn(self, now: float) -> None:
        """Take what was measured for what was predicted: savings come true in part, all alike."""
        before, share = self.prices.before["latency"], self.come_true.get("latency", 1.0)
        promised = (before - self.predicted("latency")) / share
        self.savings += (Saving(promised, before - now),)
        self.come_true["latency"] = share_come_true(before - self._asked, self.savings)
        self.rounds += 1

    @property
    def _asked(self) -> float:
        """The time that is asked for."""
        bound = self.bound("latency")
        assert bound is not None, "there is a target of time"
        return bound

    def _missed(self, now: float) -> bool:
        """Whether a time is not the one that was asked for, in either direction.

        One that is less was bought with harm that nobody asked for, unless there is nothing nearer to choose: which
        none can tell while times are not as predicted.
        """
        asked, predicted = self._asked, self.predicted("latency")
        if now >= (1 - MISS) * asked:
            return now > (1 + MISS) * asked
        return asked - predicted < MISS * asked or abs(now - predicted) > MISS * asked

    # -- solving -----------------------------------------------------------------------------------------------

    def _problem(self) -> Problem:
        return self.numbered.problem(self.harms, self.prices.rows(self.quantities))

    def _solved(self) -> Plan:
        if self.budget.target:
            found = least_harm(self._problem(), [self._change_allowed(quantity) for quantity in self.quantities])
        else:
            found = least_cost(self._problem(), 0, self._harm_allowed())
        if found is None:
            raise PlanError(self._out_of_reach())
        return self._plan_of(found)

    def _plan_of(self, solution: Solution) -> Plan:
        self.solution = solution
        swaps = self.numbered.swaps(solution.taken)
        return plan_of(self.recording, self.scan, self.ghost, swaps, self.fitted)

    def _fastest(self) -> Plan:
        return self._plan_of(self._least("latency"))

    def _least(self, quantity: Quantity) -> Solution:
        """The choice that costs least, whatever its harm."""
        found = least_cost(self._problem(), self.quantities.index(quantity), np.inf)
        assert found is not None, "everything may be left as it is"
        return found

    def _is_in_reach(self, quantity: Quantity) -> bool:
        least = self._least(quantity).costs[self.quantities.index(quantity)]
        return bool(least <= self._change_allowed(quantity))

    def _change_allowed(self, quantity: Quantity) -> float:
        """The bound as a sum of changes, in prices as they are known before anything is measured."""
        bound = self.bound(quantity)
        assert bound is not None
        return (bound - self.prices.before[quantity]) / self.come_true.get(quantity, 1.0)

    def _harm_allowed(self) -> float:
        """The harm at which what is to be kept is kept, in harms as they are known before anything is measured."""
        assert self.budget.keep is not None and self.curve is not None
        return self.curve.harm(self.budget.keep.share) / self.come_true.get("harm", 1.0) / self._together

    def _out_of_reach(self) -> str:
        """Which target cannot be met, and what is the least that can be reached, by what."""
        asked = ", ".join(map(str, self.budget.target))
        for row, quantity in enumerate(self.quantities):
            if self._is_in_reach(quantity):
                continue
            least = self._least(quantity)
            reached = self.prices.before[quantity] + least.costs[row] * self.come_true.get(quantity, 1.0)
            share = reached / self.prices.before[quantity]
            by = told_of(self.numbered.swaps(least.taken))
            return (
                f"{asked} cannot be met: the least that {self.scan.network} can be brought to by method "
                f"{self.ghost.method} is {quantity}={share:.2f}x ({shown(quantity, reached)}), by swapping {by}."
            )
        return f"{asked} cannot all be met together, though each can alone; leave one out or ask less of it."
