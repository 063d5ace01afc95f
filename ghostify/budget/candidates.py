"""What may be chosen, as a tree: a unit is a block, a layer or a stage, and takes exactly one of its options.

    unit layer3.1           as it is                     width 0.75                       width 0.5   …
      └ units inside          conv1: dense, m=32, m=24…    conv1: dense, m=24, m=16 …      …
                              conv2: dense, m=32, …        conv2: dense, m=32, …

The rules offer their swaps, those of larger things first; a rule that opens its blocks has the options of later rules
inside each of its own, worked out for the network as that one leaves it.  Costs are differences, so they add up.
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
from ghostify.rules import Rule, Swap
from ghostify.scanning import Scan, Site

_NOTHING = Cost()


@dataclass(frozen=True)
class Option:
    """One way to have a unit: as it is, or by a swap; what that changes; and the units inside it."""

    target: str
    swap: Swap | None
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
        offers = rule.candidates(scan, self.settings, fitted=self.fitted)
        outside = self.units(scan, later)
        narrowed = self._narrowed(scan, rule, later, offers) if rule.opens else {}
        units = [self._unit(rule, scan, swaps, outside, narrowed) for swaps in offers.values()]
        held = {unit.name for own in units for unit in own.options[0].inside}
        return (*units, *(unit for unit in outside if unit.name not in held))

    def _narrowed(
        self, scan: Scan, rule: Rule[Any], later: Sequence[Rule[Any]], offers: Mapping[str, Sequence[Swap]]
    ) -> _Narrowed:
        """What later rules offer behind each option: those of one place together, because units share no layer."""
        found = {}
        for place in range(max(map(len, offers.values()), default=0)):
            swaps = [own[place] for own in offers.values() if len(own) > place]
            seen = rule.after(scan, swaps)
            found[place] = (seen, self.units(seen, later))
        return found

    def _unit(
        self, rule: Rule[Any], scan: Scan, swaps: Sequence[Swap], outside: Sequence[Unit], narrowed: _Narrowed
    ) -> Unit:
        """A subject of a rule with its options."""
        target, touched = swaps[0].target, rule.touches(swaps[0], scan)
        own: dict[str, Any] = {"target": target, "site": scan.site(target), "original": self.whole.site(target)}
        options = [Option(swap=None, inside=_lying_in(touched, outside), **own)]
        for place, swap in enumerate(swaps):
            option = Option(swap=swap, change=swap.after - swap.before, **own)
            if place in narrowed:
                seen, units = narrowed[place]
                inside = _lying_in(touched, units)
                option = replace(option, instead=_instead(scan, seen, touched), inside=inside)
            options.append(option)
        return Unit(target, tuple(options))


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
        found = (self.options[place].swap for place in taken)
        return [swap for swap in found if swap is not None]
