"""A plan that was read or edited, checked against a scan and with its costs worked out anew, rule by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghostify.errors import PlanError, did_you_mean
from ghostify.names import overlap
from ghostify.patterns import meant, require_matches
from ghostify.planning.result import Plan, assembled
from ghostify.rules import RULES, Rule, Skip, Swap, in_order, rule_of
from ghostify.rules.protocol import unknown
from ghostify.scanning import Scan

_Said = Mapping[tuple[str, str], Swap | Skip]
"""A plan's entries by the rule that leaves room for others, if one does, and the first name of what each is about."""


def check(plan: Plan, scan: Scan) -> Plan:
    """``plan`` as it holds for ``scan``: valid, complete, and with its costs worked out anew.

    Raises ``PlanError`` when it names a layer that is not there, was made for another network, asks for what cannot
    be built, or says two things of one layer.
    """
    _require_parts(plan, scan)
    _require_alone(plan.swaps)
    own = [pattern for swap in plan.swaps for pattern in swap.kept]
    require_matches(scan, "The plan's exclude", (*plan.exclude, *own))
    said = _said(plan, scan)
    swaps = in_order([entry for entry in said.values() if not isinstance(entry, Skip)])
    _require_apart(swaps, scan)
    kept = meant(scan, plan.exclude)
    for swap in swaps:
        rule_of(swap).require_kept(swap, scan, kept)
    entries, left = _checked(said, scan)
    _require_same_network(plan, scan, unnamed=_unnamed(said, left))
    others = [Skip(target=name, reason=reason) for name, reason in left.others.items()]
    return assembled(scan, [*entries, *others], meant(scan, [*plan.exclude, *own]))


def _require_parts(plan: Plan, scan: Scan) -> None:
    """Refuse a plan of parts that a network which resists as a whole does not have."""
    known = scan.parts.inputs if scan.parts else {}
    for name in plan.parts.inputs if plan.parts else ():
        if known and name not in known:
            hint = did_you_mean(name, known)
            raise PlanError(f"The plan has a part {name!r}, which {scan.network} does not have.{hint}")


def _said(plan: Plan, scan: Scan) -> dict[tuple[str, str], Swap | Skip]:
    """Its entries by first name, those of a rule that opens its targets apart.

    Raises ``PlanError`` for what is not there, and for two entries of one name.
    """
    known = _subjects(scan)
    said: dict[tuple[str, str], Swap | Skip] = {}
    entries: list[Swap | Skip] = [*plan.swaps, *plan.skips]
    for entry in entries:
        named = _named_skip(entry, known, scan) if isinstance(entry, Skip) else rule_of(entry).named(entry, scan)
        place = _opened_by(named), named.target
        if place in said:
            # told in the words of the plan, which may have another name for it than the one it is known by
            raise PlanError(f"The plan names {entry.target!r} twice: {_places(entries, said[place], entry)}.")
        said[place] = named
    return said


def _subjects(scan: Scan) -> dict[str, str]:
    """All that rules decide about: by each name, the first name."""
    return {name: first for rule in RULES for name, first in rule.subjects(scan).items()}


def _opened_by(entry: Swap | Skip) -> str:
    """The rule of a swap beside which its target may bear others; a block that is one layer bears that one's name."""
    return "" if isinstance(entry, Skip) or not rule_of(entry).opens else entry.rule


def _concerning(rule: Rule[Any], said: _Said) -> dict[str, Swap | Skip]:
    """The entries by name as a rule looks at them: where a name has several, its own."""
    common = {name: entry for (opened, name), entry in said.items() if not opened}
    own = {name: entry for (opened, name), entry in said.items() if opened == rule.name}
    return common | own


def _named_skip(skip: Skip, known: Mapping[str, str], scan: Scan) -> Skip:
    if skip.target in known:
        return Skip(target=known[skip.target], reason=skip.reason)
    # A plan may skip blocks and swap none of them; then it is read by a scan that knows no blocks, but their modules.
    if skip.target not in scan.others and not any(skip.target in names for names in scan.modules):
        raise unknown(skip.target, scan, known)
    return skip


def _checked(said: _Said, scan: Scan) -> tuple[list[Swap | Skip], Scan]:
    """The entries as each rule finds them, and what is left of the network after all of them."""
    entries: list[Swap | Skip] = []
    seen = scan
    for rule in RULES:
        own = rule.check(_concerning(rule, said), seen)
        entries += own
        seen = rule.after(seen, [entry for entry in own if not isinstance(entry, Skip)])
    known = _subjects(scan).keys() | scan.others.keys()
    unasked = [entry for entry in said.values() if isinstance(entry, Skip) and entry.target not in known]
    return [*unasked, *entries], seen


def _unnamed(said: _Said, left: Scan) -> int:
    """How many layers a plan says nothing of, neither by themselves nor with the block that they lie in."""
    named = left.changed.union(name for _, name in said)
    return sum(site.name not in named for site in left.sites)


def _require_alone(swaps: Sequence[Swap]) -> None:
    """Refuse any other swap beside that of a whole network."""
    whole = next((swap for swap in swaps if rule_of(swap).alone), None)
    if whole and len(swaps) > 1:
        raise PlanError(f"The plan swaps the network as a whole (rule {whole.rule}), so it can have no other swap.")


def _require_apart(swaps: Sequence[Swap], scan: Scan) -> None:
    """Refuse two swaps of one module: of stages that both replace it, or of a layer that a stage takes with it."""
    taken: list[tuple[str, Swap]] = []
    for swap in swaps:
        touched = rule_of(swap).touches(swap, scan)
        for module in touched:
            other = next((one for name, one in taken if overlap(name, module)), None)
            if other is not None:
                by = "by itself" if module == swap.target else f"with {swap.target!r}"
                raise PlanError(f"The plan swaps {module!r} twice: {by} and with {other.target!r}.")
        if not rule_of(swap).opens:  # or what comes later may lie inside
            taken += [(module, swap) for module in touched]


def _require_same_network(plan: Plan, scan: Scan, unnamed: int) -> None:
    """Refuse a plan that fits by chance: it leaves layers unnamed, and not because lines were taken out of it.

    A plan written by hand need not tell the cost of its network.
    """
    if unnamed and plan.before.params not in (0, scan.cost.params):
        raise PlanError(
            f"The plan was made for another network: it leaves {unnamed} of the {len(scan.sites)} layers of "
            f"{scan.network} unnamed, for a network of {plan.before.params:,} parameters, and this has "
            f"{scan.cost.params:,}."
        )


def _places(entries: Sequence[Swap | Skip], first: Swap | Skip, second: Swap | Skip) -> str:
    """Where two entries for one layer stand in a plan, as its file counts: ``swaps.0 and skips.3; delete one``."""
    swaps = sum(not isinstance(entry, Skip) for entry in entries)
    alike = [i for i, entry in enumerate(entries) if entry.target in (first.target, second.target)]
    found = [f"swaps.{i}" if i < swaps else f"skips.{i - swaps}" for i in alike]
    return f"{' and '.join(found[:2])} (counted from 0); delete one"
