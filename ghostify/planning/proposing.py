"""Scan + settings → Plan: every rule of the method proposes in turn, each for what the rules before it leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ghostify.arguments import instance, takes
from ghostify.effects import given, needs, require_effect_by_name
from ghostify.errors import PlanError
from ghostify.patterns import meant, require_all_match
from ghostify.planning.result import Plan, assembled
from ghostify.recipe import GhostSettings, Method, SiteSettings, make_settings
from ghostify.rules import RULES, Rule, Skip, Swap
from ghostify.scanning import Scan, scan
from ghostify.tracing import Recording, Traced

_Proposals = dict[str, Sequence[Swap | Skip]]
"""What each rule proposes, by its name."""
Refused = Mapping[tuple[str, str], str]
"""By rule and target of swaps that are not to be made, why, as the end of a sentence that begins with the target."""


def _scanned(value: Any) -> Any:
    return scan(value) if isinstance(value, Traced | Recording) else _a_scan(value)


_a_scan = instance(Scan, maker="ghostify.scan(model, example)", error=PlanError)


@takes(scan=_scanned)
def plan(
    scan: Scan,
    settings: GhostSettings | Mapping[str, Any] | str | None = None,
    *,
    device: torch.device | None = None,
    fitted: bool = False,
    refused: Refused | None = None,
    **changes: Any,
) -> Plan:
    """Propose for every stage and site of ``scan``; ``changes`` are settings by name (``s=4``).

    Method ``auto`` goes by ``device``, or else by whether there is a GPU.  With ``fitted``, a fit is to follow, and
    what cannot be fitted is left alone, except where parts norm-act were asked for, which never are.  What is
    ``refused`` is left alone for its reason, and later rules find the network so.

    Raises ``PlanError`` for a network without convolutions, a pattern that matches nothing or a ratio that a layer set
    by name cannot have, and ``RecipeError`` for an unknown setting.
    """
    settings = make_settings(GhostSettings, settings, changes)
    method = resolved(settings.method, device)
    if all(site.kind == "linear" and site.role != "channels-last" for site in scan.sites):
        raise PlanError(f"{scan.network} has no convolutions, so there is nothing to ghost.")
    if not scan.searched and method != "c-ghost":
        raise PlanError(
            f"The scan of {scan.network} is that of a result, in which stages were not looked for; scan the network "
            "again: ghostify.scan(ghosted.module, example)."
        )
    require_all_match(scan, settings)
    rules = proposing(method)
    for rule in rules:
        rule.admit(scan, settings.model_copy(update={"method": method}))
    for pattern, own in settings.set.items():
        require_effect_by_name(settings, pattern, own)  # by the method as it was asked for: auto takes all of them
    proposals, left = _proposals(rules, scan, settings.model_copy(update={"method": method}), fitted, refused or {})
    _require_reached(scan, settings, proposals)
    entries = [*(entry for own in proposals.values() for entry in own), *left]
    kept = [pattern for entry in entries if not isinstance(entry, Skip) for pattern in entry.kept]
    return assembled(scan, entries, meant(scan, [*settings.exclude, *kept]))


def resolved(method: Method, device: torch.device | None = None) -> Method:
    """``auto`` by the papers' advice, the first of it; any other method is itself."""
    return advised(device)[0] if method == "auto" else method


def advised(device: torch.device | None = None) -> tuple[Method, Method]:
    """The methods in the order that the papers advise: C-Ghost first for a CPU, G-Ghost first for a GPU."""
    gpu = torch.cuda.is_available() if device is None else device.type != "cpu"
    return ("g-ghost", "c-ghost") if gpu else ("c-ghost", "g-ghost")


def proposing(method: Method) -> list[Rule[Any]]:
    """The rules that propose under a method, in their order; under ``auto``, whose device is not known, none."""
    return [rule for rule in RULES if method in rule.methods]


def _proposals(
    rules: Sequence[Rule[Any]], scan: Scan, settings: GhostSettings, fitted: bool, refused: Refused
) -> tuple[_Proposals, list[Skip]]:
    """What each rule proposes, and the skips of what no rule decides about."""
    proposals: _Proposals = {}
    seen = scan
    for rule in rules:
        proposed = _left_out(rule, rule.propose(seen, settings, fitted=fitted), seen, refused)
        proposals[rule.name] = proposed
        seen = rule.after(seen, [entry for entry in proposed if not isinstance(entry, Skip)])
    decided = {entry.target for proposed in proposals.values() for entry in proposed}
    decided |= seen.changed
    left = [site.name for site in seen.sites if site.name not in decided]
    outside = [Skip(target=name, reason=rules[-1].why_outside(scan, name)) for name in left]
    others = [Skip(target=name, reason=reason) for name, reason in seen.others.items()]
    return proposals, [*outside, *others]


def _left_out(rule: Rule[Any], proposed: Sequence[Swap | Skip], scan: Scan, refused: Refused) -> Sequence[Swap | Skip]:
    """What a rule proposes, a skip in the place of each swap that is refused."""
    if not any(rule.name == name for name, _ in refused):
        return proposed
    entries = [_refusing(entry, refused.get((rule.name, entry.target))) for entry in proposed]
    if any(not isinstance(entry, Skip) for entry in entries) or not rule.opens:
        return entries
    # Of a plan without swaps of blocks, only modules are known by their names when it is read again.
    modules = {name for names in scan.modules for name in names}
    return [entry for entry in entries if entry.target in modules]


def _refusing(entry: Swap | Skip, reason: str | None) -> Swap | Skip:
    return entry if reason is None or isinstance(entry, Skip) else Skip(target=entry.target, reason=reason)


def _require_reached(scan: Scan, settings: GhostSettings, proposals: _Proposals) -> None:
    """Refuse what is set for layers or stages by name where none of them is swapped, with the reason they are left."""
    for pattern, own in settings.set.items():
        for name in given(own):
            _require_one_reached(scan, pattern, name, own, proposals)


def _require_one_reached(scan: Scan, pattern: str, name: str, own: SiteSettings, proposals: _Proposals) -> None:
    wanted = needs(GhostSettings, name, getattr(own, name))
    if any(getattr(own, name) in need.harmless for need in wanted):
        return  # it asks for nothing to be done
    methods = {value for need in wanted if need.setting == "method" for value in need.values}
    takers = [rule for rule in RULES if rule.name in methods]
    concerned = [
        entry for rule in takers for entry in proposals.get(rule.name, ()) if rule.is_meant(scan, entry.target, pattern)
    ]
    if all(isinstance(entry, Skip) for entry in concerned):
        left = [entry for entry in concerned if isinstance(entry, Skip)]
        why = _unreached(left, takers[-1].noun)
        raise PlanError(f"set {pattern!r}: {name} = {getattr(own, name)} changes nothing, because {why}.")


def _unreached(left: Sequence[Skip], kind: str) -> str:
    if not left:
        return f"no {kind} of its own is in it"
    reason, times = Counter(skip.reason for skip in left).most_common(1)[0]
    example = next(skip.target for skip in left if skip.reason == reason)
    more = f" (and {times - 1} more)" if times > 1 else ""
    return f"every {kind} in it is left alone: {example!r}{more} {reason}"
