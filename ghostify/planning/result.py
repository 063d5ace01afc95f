"""The Plan noun: what to replace in one network, how, and what that will cost; a value a person can edit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import yaml
from pydantic import BaseModel, ConfigDict

from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.names import matches, within
from ghostify.rules import RULES, AnySwap, Skip, Swap
from ghostify.rules.base import UNFIT
from ghostify.scanning import InParts, Scan
from ghostify.tables import Table, quantity, ratio

FORMAT = 2
READ = (1, FORMAT)
"""Format 1 told the cheap operation of a C-Ghost swap by two numbers, d and pointwise (``rules/c_ghost.py``)."""
_HEADER = """\
# A ghostify plan: what becomes a ghost module and what is left alone, and why.  Edit it and feed it back with
# `ghostify compress MODEL --plan FILE`.  Of a swap, everything but before and after is yours; those are worked out
# anew.  To ghost a skipped layer, write it under swaps (target, geometry, s, cheap); to keep a layer, delete its swap.
# To name a stage by hand, list its blocks, the first first, in a swap of rule g-ghost.
"""
_NAMED = 6
"""Modules that are named in a sentence; the others are counted."""


class Plan(BaseModel):
    """What to replace in one network, how, and what that will cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    network: str
    inputs: tuple[tuple[int, ...], ...]
    swaps: tuple[AnySwap, ...] = ()
    skips: tuple[Skip, ...] = ()
    before: Cost = Cost()
    """The whole network as it is; in parts, the operations of these alone, and the parameters of the whole."""
    after: Cost = Cost()
    """The same as it is predicted to become."""
    exclude: tuple[str, ...] = ()
    """Modules that nothing is done to, neither a rewrite nor a fit, with all that lies in them; globs if by hand."""
    parts: InParts | None = None
    """Where the network is rewritten part by part; every name in the plan is of the whole all the same."""

    def excludes(self, *names: str) -> bool:
        """Whether nothing may be done to the module of these names."""
        return any(matches(name, pattern) for name in names for pattern in self.exclude)

    def to_yaml(self) -> str:
        """The plan as a commented YAML document; ``read_plan`` gives the same plan back."""
        whole = {"parts"} if self.parts is None else None
        body = yaml.safe_dump(
            self.model_dump(mode="json", exclude=whole),
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
            width=200,
        )
        return _HEADER + body

    def require_changes(self) -> Plan:
        """Itself, or ``PlanError`` when it would change nothing, with the reasons by how often they were given."""
        if self.swaps:
            return self
        if not self.skips:
            raise PlanError("The plan names no layer, so there is nothing to ghost.")
        outside = [rule.outside for rule in RULES]  # those were never considered, so others tell more
        kinds = [_kind(one.reason) for one in self.skips if one.reason not in outside] or [self.skips[0].reason]
        telling = [kind for kind in kinds if kind.startswith(UNFIT)] or kinds  # what another fit would change
        kind, times = Counter(telling).most_common(1)[0]
        example, reason = next((skip.target, skip.reason) for skip in self.skips if _kind(skip.reason) == kind)
        others = f" (and {times - 1} more)" if times > 1 else ""
        raise PlanError(
            f"The plan for {self.network} changes nothing, because all {len(self.skips)} layers are left alone: "
            f"{example!r}{others} {reason}."
        )

    def table(self) -> Table:
        rows = [
            [
                swap.target,
                swap.geometry,
                swap.settings,
                quantity(swap.before.macs),
                quantity(swap.after.macs),
                ratio(swap.before.macs, swap.after.macs),
            ]
            for swap in self.swaps
        ]
        rows += [[skip.target or "the whole", "left alone:", skip.reason, "", "", ""] for skip in self.skips]
        title = (
            f"{self.network}: {len(self.swaps)} swaps, {len(self.skips)} left alone; "
            f"MACs {quantity(self.before.macs)} → {quantity(self.after.macs)} "
            f"({ratio(self.before.macs, self.after.macs)}), params {quantity(self.before.params)} → "
            f"{quantity(self.after.params)} ({ratio(self.before.params, self.after.params)})"
        )
        columns = ["layer", "geometry", "ghost", "MACs", "after", "ratio"]
        return Table(title, columns, rows, left=frozenset({"geometry", "ghost"}), note=self.partly)

    @property
    def partly(self) -> str:
        """A line on what is rewritten of a network that resists as a whole; empty for any other."""
        if self.parts is None:
            return ""
        changed = [part for part in self.parts.inputs if any(within(swap.target, part) for swap in self.swaps)]
        outside = (skip.target for skip in self.skips if not any(within(skip.target, p) for p in self.parts.inputs))
        left = [*(part for part in self.parts.inputs if part not in changed), *outside]
        why = f" ({self.parts.reason})" if self.parts.reason else ""
        return (
            f"{self.network} cannot be rewritten as a whole{why}. Rewritten: {_listed(changed)}; "
            f"left: {_listed(left)}. MACs and activations are those of {_listed(list(self.parts.inputs))}."
        )

    def __str__(self) -> str:
        return str(self.table())


def _kind(reason: str) -> str:
    """A reason without the names in it, which are other ones for every layer."""
    return re.sub(r"'[^']*'", "", reason)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}" or "nothing"


def assembled(scan: Scan, entries: Sequence[Swap | Skip], exclude: Sequence[str]) -> Plan:
    """A plan of priced entries for a network; its cost is the network's, less what each swap saves."""
    swaps = tuple(entry for entry in entries if not isinstance(entry, Skip))
    swapped = {swap.target for swap in swaps}
    told: dict[str, Skip] = {}
    for entry in entries:
        if isinstance(entry, Skip) and entry.target not in swapped:  # a layer that is thinned may be no ghost
            told.setdefault(entry.target, entry)  # a stage may run repeatedly, and a module may have two reasons
    after = scan.cost
    for swap in swaps:
        after = after - swap.before + swap.after
    return Plan(
        network=scan.network,
        inputs=scan.inputs,
        swaps=swaps,
        skips=tuple(told.values()),
        before=scan.cost,
        after=after,
        exclude=tuple(exclude),
        parts=scan.parts,
    )
