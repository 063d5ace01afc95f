"""Scan + settings → Plan: every convolution a swap or a skip with its reason; a value a person can edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost
from ghostify.errors import PlanError, did_you_mean
from ghostify.recipe import GhostSettings, Recipe, make_settings, read_yaml, validated
from ghostify.rules import RULES, Skip, Swap
from ghostify.scanning import Scan, Site
from ghostify.tables import Table, quantity, ratio

FORMAT = 1
_HEADER = """\
# A ghostify plan: what becomes a ghost module and what is left alone, and why.  Edit it and feed it back with
# `ghostify compress MODEL --plan FILE`.  Of a swap, target, s, d and parts are yours; before and after are worked out
# anew.  To ghost a skipped layer, write it under swaps (target, geometry, s, d); to keep a layer, delete its swap.
"""


class Plan(BaseModel):
    """What to replace in one network, how, and what that will cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    network: str
    inputs: tuple[tuple[int, ...], ...]
    swaps: tuple[Swap, ...] = ()
    skips: tuple[Skip, ...] = ()
    before: Cost = Cost()
    """The whole network as it is."""
    after: Cost = Cost()
    """The whole network as it is predicted to become."""

    def to_yaml(self) -> str:
        """The plan as a commented YAML document; ``read_plan`` gives the same plan back."""
        body = yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None, width=200
        )
        return _HEADER + body

    def require_changes(self) -> Plan:
        """Itself, or ``PlanError`` when it would change nothing, with the reasons by how often they were given."""
        if self.swaps:
            return self
        if not self.skips:
            raise PlanError("The plan names no layer, so there is nothing to ghost.")
        reason, times = Counter(skip.reason for skip in self.skips).most_common(1)[0]
        example = next(skip.target for skip in self.skips if skip.reason == reason)
        others = f" (and {times - 1} more)" if times > 1 else ""
        raise PlanError(
            f"The plan for {self.network} changes nothing, for all {len(self.skips)} layers are left alone: "
            f"{example!r}{others} {reason}."
        )

    def table(self) -> Table:
        rows = [
            [
                swap.target,
                swap.geometry,
                f"s={swap.s} d={swap.d}" + (" norm-act" if swap.parts == "norm-act" else ""),
                quantity(swap.before.macs),
                quantity(swap.after.macs),
                ratio(swap.before.macs, swap.after.macs),
            ]
            for swap in self.swaps
        ]
        rows += [[skip.target, "left alone:", skip.reason, "", "", ""] for skip in self.skips]
        title = (
            f"{self.network}: {len(self.swaps)} swaps, {len(self.skips)} left alone; "
            f"MACs {quantity(self.before.macs)} → {quantity(self.after.macs)} "
            f"({ratio(self.before.macs, self.after.macs)}), params {quantity(self.before.params)} → "
            f"{quantity(self.after.params)} ({ratio(self.before.params, self.after.params)})"
        )
        columns = ["layer", "geometry", "ghost", "MACs", "after", "ratio"]
        return Table(title, columns, rows, left=frozenset({"geometry", "ghost"}))

    def __str__(self) -> str:
        return str(self.table())


def plan(scan: Scan, settings: GhostSettings | None = None, **changes: Any) -> Plan:
    """Propose for every site of ``scan``; ``changes`` are settings by name (``s=4``).

    Raises ``PlanError`` for a network without convolutions, a pattern that matches nothing or a ratio that a layer set
    by name cannot have, and ``RecipeError`` for an unknown setting.
    """
    settings = make_settings(GhostSettings, settings, changes)
    _require_matches(scan, settings)
    if all(site.kind == "linear" for site in scan.sites):
        raise PlanError(f"{scan.network} has no convolutions, so there is nothing to ghost.")
    rule = RULES[settings.method]
    try:
        proposals = [rule.propose(site, settings) for site in scan.sites]
    except PlanError as problem:
        raise PlanError(f"The settings cannot be met: {problem}") from None
    return _assembled(scan, proposals)


def check(plan: Plan, scan: Scan) -> Plan:
    """``plan`` as it holds for ``scan``: valid, complete, and with its costs worked out anew.

    Raises ``PlanError`` when it names a layer that is not there, was made for another network, asks for what cannot
    be built, or says two things of one layer.
    """
    sites = {name: site for site in scan.sites for name in (site.name, *site.aliases)}
    said: dict[str, Swap | Skip] = {}
    entries: list[Swap | Skip] = [*plan.swaps, *plan.skips]
    for entry in entries:
        site = sites.get(entry.target)
        if site is None:
            hint = did_you_mean(entry.target, sites)
            raise PlanError(f"The plan names {entry.target!r}, which {scan.network} does not have.{hint}")
        if site.name in said:
            raise PlanError(f"The plan names {entry.target!r} twice.")
        said[site.name] = _checked(entry, site, scan) if isinstance(entry, Swap) else entry
    _require_same_network(plan, scan, sites_named=len(said))
    absent = "is not named in the plan"
    return _assembled(scan, [said.get(site.name) or Skip(target=site.name, reason=absent) for site in scan.sites])


def read_plan(path: str | Path) -> Plan:
    """The plan in a YAML or JSON file.  Raises ``PlanError`` with the key at fault."""
    where = f"Plan {str(path)!r}"
    read = validated(Plan, read_yaml(path, PlanError, "Plan"), where, PlanError)
    if read.format != FORMAT:
        raise PlanError(f"{where} has format {read.format}; this version reads format {FORMAT}.")
    return read


def _require_same_network(plan: Plan, scan: Scan, sites_named: int) -> None:
    """Refuse a plan that fits by chance: it leaves layers unnamed, and not because lines were taken out of it."""
    if sites_named < len(scan.sites) and plan.before.params != scan.cost.params:
        raise PlanError(
            f"The plan was made for another network: it names {sites_named} of the {len(scan.sites)} layers of "
            f"{scan.network}, for a network of {plan.before.params:,} parameters, and this has {scan.cost.params:,}."
        )


def _checked(swap: Swap, site: Site, scan: Scan) -> Swap:
    if swap.geometry != site.geometry:
        raise PlanError(
            f"The plan was made for another network: {swap.target!r} is {site.geometry} in {scan.network}, "
            f"and {swap.geometry} in the plan."
        )
    if site.obstacle:
        raise PlanError(f"{swap.target} cannot be swapped: it {site.obstacle}.")
    if swap.parts == "norm-act" and site.kind == "linear":
        raise PlanError(
            f"{swap.target} is a linear layer, whose outputs take no normalisation; set its parts to linear."
        )
    update = {"target": site.name, "before": site.cost, "after": RULES[swap.rule].predict(site, swap)}
    return swap.model_copy(update=update)


def _assembled(scan: Scan, entries: list[Swap | Skip]) -> Plan:
    swaps = tuple(entry for entry in entries if isinstance(entry, Swap))
    skips = tuple(entry for entry in entries if isinstance(entry, Skip))
    after = scan.cost
    for swap in swaps:
        after = after - swap.before + swap.after
    return Plan(network=scan.network, inputs=scan.inputs, swaps=swaps, skips=skips, before=scan.cost, after=after)


def _require_matches(scan: Scan, settings: GhostSettings) -> None:
    names = [site.name for site in scan.sites]
    for option, glob in _patterns(settings):
        if names and not any(fnmatchcase(name, glob) for name in names):
            near = did_you_mean(glob, [*_prefixes(names), *Recipe.model_fields])
            raise PlanError(f"{option} {glob!r} matches no layer of {scan.network}.{near}")


def _prefixes(names: list[str]) -> Iterator[str]:
    """The names and every module they stand in: ``a.b.c`` gives ``a``, ``a.b`` and ``a.b.c``."""
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _patterns(settings: GhostSettings) -> Iterator[tuple[str, str]]:
    yield from (("include", glob) for glob in settings.include if glob != "*")
    yield from (("exclude", glob) for glob in settings.exclude)
    yield from (("set", glob) for glob in settings.set)
