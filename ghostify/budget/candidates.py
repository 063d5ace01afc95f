"""What may be chosen, as a tree: a unit is a block, a layer or a stage, and takes exactly one of its options.

    unit layer3.1           as it is                     width 0.75                       width 0.5   …
      └ units inside          conv1: dense, m=32, m=24…    conv1: dense, m=24, m=16 …      …
                              conv2: dense, m=32, …        conv2: dense, m=32, …

The rules offer their swaps, those of larger things first; a rule that opens its blocks has the options of later rules
inside each of its own, worked out for the network as that one leaves it.  Costs are differences, so they add up.

Blocks of a chain share layers, so that what one saves depends on its neighbours.  A chain is a unit around its blocks:
all of them at one width, or as it is, and then those that share no layer may be thinned each by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ghostify.budget.solving import Choice, Problem, Vector
from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.names import within
from ghostify.planning.proposing import proposing
from ghostify.recipe import GhostSettings
from ghostify.rules import CGhostSwap, Rule, Swap
from ghostify.scanning import Scan, Site

_NOTHING = Cost()


@dataclass(frozen=True)
class Option:
    """One way to have a unit: as it is, or by swaps; what that changes; and the units inside it."""

    target: str
    swaps: tuple[Swap, ...] = ()
    """None where it is as it is; several where all blocks of a chain change together."""
    change: Cost = _NOTHING
    """What it costs more than the unit as it was; less than nothing where it saves."""
    instead: tuple[tuple[Site, Site], ...] = ()
    """Layers that become others by this very option, before and after, and of which no unit inside decides."""
    site: Site | None = None
    """The layer that the swap is of, as the options around this one leave it."""
    original: Site | None = None
    """The same layer in the network as it was."""
    inside: tuple[Unit, ...] = ()

    @property
    def ghost(self) -> CGhostSwap | None:
        """The swap of a layer for a C-Ghost module, where the option is one."""
        found = (swap for swap in self.swaps if isinstance(swap, CGhostSwap))
        return next(found, None)

    @property
    def share(self) -> float:
        """The share of the layer's maps that the options around this one leave it."""
        if self.site is None or self.original is None:
            return 1.0
        return self.site.out_channels / self.original.out_channels


@dataclass(frozen=True)
class Unit:
    """Something of which exactly one option is taken; the first leaves it as it is."""

    name: str
    options: tuple[Option, ...]


def candidates(scan: Scan, settings: GhostSettings, *, fitted: bool) -> tuple[Unit, ...]:
    """What a budget may choose among in a network, by the rules of the settings' method.

    Raises ``PlanError`` where there is nothing to be chosen.
    """
    units = _Offers(scan, settings, fitted).units(scan, proposing(settings.method))
    if not units:
        raise PlanError(
            f"{scan.network} has nothing that a budget could choose among by method {settings.method}: no layer can be "
            "swapped for anything cheaper. `ghostify plan` tells why each is left alone."
        )
    return units


_Ways = Sequence[tuple[Swap, ...]]
"""Ways to have a unit otherwise than as it is, by the swaps that make each."""
_Narrowed = Mapping[int, tuple[Scan, tuple[Unit, ...]]]
"""By the place of an option, the network in which every unit has it, and the units of later rules there."""


@dataclass(frozen=True)
class _Offers:
    """What rules offer in a network, as it is and as their own options leave it."""

    whole: Scan
    settings: GhostSettings
    fitted: bool

    def units(self, scan: Scan, rules: Sequence[Rule[Any]]) -> tuple[Unit, ...]:
        """The units of some rules, each with those of the rules after it inside."""
        if not rules:
            return ()
        rule, *later = rules
        alone = rule.candidates(scan, self.settings, fitted=self.fitted)
        offers = {target: [(swap,) for swap in swaps] for target, swaps in alone.items()}
        chains = rule.chains(scan, self.settings, fitted=self.fitted)
        units = self._around(rule, scan, later, offers, self.units(scan, later))
        return self._around(rule, scan, later, chains, units)

    def _around(
        self,
        rule: Rule[Any],
        scan: Scan,
        later: Sequence[Rule[Any]],
        offers: Mapping[str, _Ways],
        outside: Sequence[Unit],
    ) -> tuple[Unit, ...]:
        """A unit for each subject of a rule, or chain of them, around the units that lie in it; then the others."""
        narrowed = self._narrowed(scan, rule, later, offers) if rule.opens else {}
        units = [self._unit(rule, scan, target, ways, outside, narrowed) for target, ways in offers.items()]
        held = {unit.name for own in units for unit in own.options[0].inside}
        return (*units, *(unit for unit in outside if unit.name not in held))

    def _narrowed(
        self, scan: Scan, rule: Rule[Any], later: Sequence[Rule[Any]], offers: Mapping[str, _Ways]
    ) -> _Narrowed:
        """What later rules offer behind each option: those of one place together, because units share no layer."""
        found = {}
        for place in range(max(map(len, offers.values()), default=0)):
            swaps = [swap for ways in offers.values() if len(ways) > place for swap in ways[place]]
            seen = rule.after(scan, swaps)
            found[place] = (seen, self.units(seen, later))
        return found

    def _unit(
        self,
        rule: Rule[Any],
        scan: Scan,
        target: str,
        ways: _Ways,
        outside: Sequence[Unit],
        narrowed: _Narrowed,
    ) -> Unit:
        """A subject of a rule, or a chain of them, with its options."""
        touched = _touched(rule, scan, ways)
        own: dict[str, Any] = {"target": target, "site": scan.site(target), "original": self.whole.site(target)}
        options = [Option(inside=_lying_in(touched, outside), **own)]
        for place, swaps in enumerate(ways):
            change = sum((swap.after - swap.before for swap in swaps), _NOTHING)
            option = Option(swaps=swaps, change=change, **own)
            if place in narrowed:
                seen, units = narrowed[place]
                inside = _lying_in(touched, units)
                option = replace(option, instead=_instead(scan, seen, touched), inside=inside)
            options.append(option)
        return Unit(target, tuple(options))


def _touched(rule: Rule[Any], scan: Scan, ways: _Ways) -> tuple[str, ...]:
    """The modules that a way changes, in any of them: what one leaves as it is another may not."""
    touched = (module for swaps in ways for swap in swaps for module in rule.touches(swap, scan))
    return tuple(dict.fromkeys(touched))


def _lying_in(modules: Sequence[str], units: Sequence[Unit]) -> tuple[Unit, ...]:
    return tuple(unit for unit in units if any(within(unit.name, module) for module in modules))


def _instead(before: Scan, after: Scan, modules: Sequence[str]) -> tuple[tuple[Site, Site], ...]:
    """The layers that became narrower, as they were and as they are."""
    changed = {site.name: site for site in after.sites if any(within(site.name, module) for module in modules)}
    return tuple((site, changed[site.name]) for site in before.sites if site.name in changed)


# -- as numbers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbered:
    """The options of some units in a row, and the choices among them by number."""

    options: tuple[Option, ...]
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Numbered:
        """Each option before those inside it."""
        options: list[Option] = []
        choices: list[Choice] = []

        def number(units: Sequence[Unit], parent: int | None) -> None:
            for unit in units:
                own = range(len(options), len(options) + len(unit.options))
                options.extend(unit.options)
                choices.append(Choice(tuple(own), parent))
                for place, option in zip(own, unit.options, strict=True):
                    number(option.inside, place)

        number(units, None)
        return cls(tuple(options), tuple(choices))

    def problem(self, harms: Vector, costs: Vector) -> Problem:
        """The problem of these choices, with a harm (n) and costs (k, n) for each option."""
        return Problem(harms, np.atleast_2d(costs), self.choices)

    def swaps(self, taken: Sequence[int]) -> list[Swap]:
        """Those of the options taken."""
        return [swap for place in taken for swap in self.options[place].swaps]
