"""Options taken → a plan, which is one like any other: a person can read it, edit it and feed it back."""

from __future__ import annotations

from collections.abc import Sequence

from ghostify.errors import PlanError
from ghostify.patterns import meant
from ghostify.planning import Plan, check, plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rules import Skip, Swap, by_rule
from ghostify.scanning import Scan
from ghostify.tracing import Recording

_UNCHOSEN = "is left as it is, because others meet the budget with less harm"


def plan_of(recording: Recording, scan: Scan, ghost: GhostSettings, swaps: Sequence[Swap], fitted: bool) -> Plan:
    """The plan of some swaps, checked and priced, with a reason for every layer that is left alone."""
    reasons = _reasons(scan, ghost, fitted)
    swapped = {swap.target for swap in swaps}
    skips = (
        Skip(target=site.name, reason=reasons.get(site.name, _UNCHOSEN))
        for site in scan.sites
        if site.name not in swapped
    )
    drafted = Plan(
        network=scan.network,
        inputs=scan.inputs,
        swaps=tuple(swaps),
        skips=tuple(skips),
        before=scan.cost,
        exclude=meant(scan, ghost.exclude),
        parts=scan.parts,
    )
    return check(drafted, scan_for(recording, drafted))


def _reasons(scan: Scan, ghost: GhostSettings, fitted: bool) -> dict[str, str]:
    """By layer, why no rule could take it."""
    try:
        proposed = plan(scan, ghost, fitted=fitted)
    except PlanError:
        return {}
    return {skip.target: skip.reason for skip in proposed.skips}


def told_of(swaps: Sequence[Swap]) -> str:
    """What swaps are, in a few words: ``4 blocks, 12 convolutions``."""
    found = [(rule.noun, len(own)) for rule, own in by_rule(swaps)]
    return ", ".join(f"{count} {noun}{'s' * (count > 1)}" for noun, count in found) or "nothing"
