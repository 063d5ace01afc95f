"""A plan in its file, and the scan that a plan or settings need."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path

from ghostify.arguments import as_path, takes
from ghostify.errors import PlanError
from ghostify.planning.proposing import proposing
from ghostify.planning.result import FORMAT, READ, Plan
from ghostify.recipe import GhostSettings, read_yaml, validated
from ghostify.rules import Needs, rule_of
from ghostify.rules.base import unfittable
from ghostify.scanning import Scan, scan
from ghostify.tracing import Recording, Traced


@takes(path=as_path("plan.yaml", PlanError))
def read_plan(path: str | Path) -> Plan:
    """The plan in a YAML or JSON file.  Raises ``PlanError`` with the key at fault."""
    where = f"Plan {str(path)!r}"
    read = validated(Plan, read_yaml(path, PlanError, "Plan"), where, PlanError)
    if read.format not in READ:
        raise PlanError(f"{where} has format {read.format}; this version reads formats {READ[0]} to {FORMAT}.")
    return read.model_copy(update={"format": FORMAT})


def needs_of(wanted: GhostSettings | Plan) -> Needs:
    """What settings, or the swaps of a plan, need to know of a network besides its sites and stages."""
    if isinstance(wanted, Plan):
        needs = [rule_of(swap).needed_by(swap) for swap in wanted.swaps]
    else:
        needs = [rule.needs(wanted) for rule in proposing(wanted.method)]
    return reduce(or_, needs, Needs())


def scan_for(recorded: Traced | Recording, wanted: GhostSettings | Plan, fitted: bool = False) -> Scan:
    """The scan that settings need, or a plan with stages named by hand.  Raises ``PlanError`` for no such stage.

    With ``fitted``, layers that cannot be fitted are to be kept, too, where a network becomes narrower.
    """
    needs = needs_of(wanted)
    if fitted and needs.whole and isinstance(wanted, GhostSettings):
        unfit = tuple(site.name for site in unfittable(scan(recorded), wanted.exclude))
        needs = replace(needs, steady=(*needs.steady, *unfit))
    return scan(recorded, **vars(needs))
