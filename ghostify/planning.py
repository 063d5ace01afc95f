"""Scan + settings → Plan: every convolution a swap or a skip with its reason; a value a person can edit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict

from ghostify.arguments import as_path, instance, takes
from ghostify.costs import Cost
from ghostify.effects import given, needs, require_effect_by_name
from ghostify.errors import PlanError, did_you_mean
from ghostify.names import matches, overlap, within
from ghostify.patterns import meant, require_all_match, require_matches, spelled_out
from ghostify.recipe import GhostSettings, Method, make_settings, read_yaml, validated
from ghostify.rules import CGhostSwap, GGhostSwap, Skip, Swap, WidthSwap, c_ghost, g_ghost, width
from ghostify.scanning import Scan, Site, scan
from ghostify.stages import Stage
from ghostify.tables import Table, quantity, ratio
from ghostify.tracing import Traced

FORMAT = 1
_HEADER = """\
# A ghostify plan: what becomes a ghost module and what is left alone, and why.  Edit it and feed it back with
# `ghostify compress MODEL --plan FILE`.  Of a swap, everything but before and after is yours; those are worked out
# anew.  To ghost a skipped layer, write it under swaps (target, geometry, s, d); to keep a layer, delete its swap.
# To name a stage by hand, list its blocks, the first first, in a swap of rule g-ghost.
"""
GIVEN_NOTHING = "was given nothing in the run on the example (no box was found, say), so what it costs is unknown"
_UNFIT = "cannot be fitted"
_NAMED = 6
"""Modules that are named in a sentence; the others are counted."""
_OUTSIDE = "is kept: G-Ghost stages replace what follows the first block of a stage (method both takes it)"


class InParts(BaseModel):
    """That a network is rewritten part by part, for it resists as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    """Why it resists, as a sentence without its end."""
    inputs: dict[str, tuple[tuple[int, ...], ...]]
    """By qualified name of each part, the shapes it is given."""


class Plan(BaseModel):
    """What to replace in one network, how, and what that will cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    network: str
    inputs: tuple[tuple[int, ...], ...]
    swaps: tuple[Swap, ...] = ()
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
        kinds = [_kind(skip.reason) for skip in self.skips if skip.reason != _OUTSIDE] or [_OUTSIDE]
        telling = [kind for kind in kinds if kind.startswith(_UNFIT)] or kinds  # what another fit would change
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
        rows += [[skip.target, "left alone:", skip.reason, "", "", ""] for skip in self.skips]
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


def _scanned(value: Any) -> Any:
    return scan(value) if isinstance(value, Traced) else _a_scan(value)


_a_scan = instance(Scan, maker="ghostify.scan(model, example)", error=PlanError)


@takes(scan=_scanned)
def plan(
    scan: Scan,
    settings: GhostSettings | Mapping[str, Any] | str | None = None,
    *,
    device: torch.device | None = None,
    fitted: bool = False,
    **changes: Any,
) -> Plan:
    """Propose for every stage and site of ``scan``; ``changes`` are settings by name (``s=4``).

    Method ``auto`` goes by ``device``, or else by whether there is a GPU.  With ``fitted``, a fit is to follow, and
    what cannot be fitted is left alone, except where parts norm-act were asked for, which never are.

    Raises ``PlanError`` for a network without convolutions, a pattern that matches nothing or a ratio that a layer set
    by name cannot have, and ``RecipeError`` for an unknown setting.
    """
    settings = make_settings(GhostSettings, settings, changes)
    method = resolved(settings.method, device)
    if all(site.kind == "linear" and site.role != "channels-last" for site in scan.sites):
        raise PlanError(f"{scan.network} has no convolutions, so there is nothing to ghost.")
    require_all_match(scan, settings)
    kept = meant(scan, settings.exclude)
    if method in ("width", "thin"):
        return _narrowed(scan, settings, fitted)
    if method == "g-ghost" and not scan.stages:
        raise PlanError(
            f"{scan.network} has no stage (three or more blocks of one width and resolution) to become a G-Ghost "
            "stage; method c-ghost takes its convolutions."
        )
    for pattern, own in settings.set.items():
        require_effect_by_name(settings, pattern, own)
    settings = settings.model_copy(update={"exclude": spelled_out(scan, settings.exclude)})
    found = [] if method == "c-ghost" else scan.stages
    stages = [_proposed_stage(scan, stage, settings, fitted) for stage in found]
    try:
        sites = [
            _proposed(site, settings, fitted) if method != "g-ghost" else Skip(target=site.name, reason=_OUTSIDE)
            for site in _left(scan, stages)
        ]
    except PlanError as problem:
        raise PlanError(f"The settings cannot be met: {problem}") from None
    _require_reached(scan, settings, [*stages, *sites])
    return _assembled(scan, [*stages, *sites, *_on_others(scan, stages)], kept)


def _narrowed(scan: Scan, settings: GhostSettings, fitted: bool) -> Plan:
    """The plan of method width or thin, which keeps as they are the layers that could not be fitted."""
    unfit = unfittable(scan, settings) if fitted else []
    exclude = (*settings.exclude, *(site.name for site in unfit))
    skips = [Skip(target=site.name, reason=_cannot_be_fitted(f"it {site.unfit}")) for site in unfit]
    try:
        swap = width.propose(scan, settings.model_copy(update={"exclude": exclude}))
    except PlanError as problem:
        if not skips or scan.coupling is None:
            raise
        raise PlanError(f"{problem} Besides, {skips[0].target} {skips[0].reason}.") from None
    return _assembled(scan, [swap, *width.skips(scan), *skips], meant(scan, exclude))


def unfittable(scan: Scan, settings: GhostSettings) -> list[Site]:
    """The sites that no weights can be fitted to, those aside that settings exclude."""
    return [site for site in scan.sites if site.unfit and not any(map(site.matches, settings.exclude))]


def _cannot_be_fitted(why: str) -> str:
    return f"{_UNFIT}, because {why}; fit none swaps it all the same"


def _require_reached(scan: Scan, settings: GhostSettings, entries: Sequence[Swap | Skip]) -> None:
    """Refuse what is set for layers or stages by name where none of them is swapped, with the reason they are left."""
    for pattern, own in settings.set.items():
        meant_by_it = [entry for entry in entries if _is_meant(scan, entry.target, pattern)]
        for name in given(own):
            rules = {rule for need in needs(GhostSettings, name) if need.setting == "method" for rule in need.values}
            if not any(not isinstance(entry, Skip) and entry.rule in rules for entry in meant_by_it):
                kind = "convolution" if "c-ghost" in rules else "stage"
                said = [entry for entry in meant_by_it if isinstance(entry, Skip) and _kind_of(scan, entry) == kind]
                raise PlanError(
                    f"set {pattern!r}: {name} = {getattr(own, name)} changes nothing, because {_unreached(said, kind)}."
                )


def _unreached(left: Sequence[Skip], kind: str) -> str:
    if not left:
        return f"no {kind} of its own is in it"
    reason, times = Counter(skip.reason for skip in left).most_common(1)[0]
    example = next(skip.target for skip in left if skip.reason == reason)
    more = f" (and {times - 1} more)" if times > 1 else ""
    return f"every {kind} in it is left alone: {example!r}{more} {reason}"


def _kind_of(scan: Scan, entry: Skip) -> str:
    return "convolution" if scan.site(entry.target) else "stage"


def _is_meant(scan: Scan, target: str, pattern: str) -> bool:
    """Whether a pattern means a site or stage."""
    site = scan.site(target)
    if site is not None:
        return site.matches(pattern)
    return any(stage.name == target and stage.is_meant([pattern], scan.modules) for stage in scan.stages)


def _proposed(site: Site, settings: GhostSettings, fitted: bool) -> CGhostSwap | Skip:
    if site.calls and not site.positions and not site.obstacle:
        return Skip(target=site.name, reason=GIVEN_NOTHING)
    proposed = c_ghost.propose(site, settings)
    if fitted and site.unfit and isinstance(proposed, CGhostSwap) and proposed.parts == "linear":
        return Skip(target=site.name, reason=_cannot_be_fitted(f"it {site.unfit}"))
    return proposed


def _proposed_stage(scan: Scan, stage: Stage, settings: GhostSettings, fitted: bool) -> GGhostSwap | Skip:
    proposed = g_ghost.propose(stage, settings, scan.modules)
    inner = next((site for site in scan.sites if site.unfit and stage.holds(site.name)), None)
    if fitted and inner and isinstance(proposed, GGhostSwap):
        return Skip(target=stage.name, reason=_cannot_be_fitted(f"{inner.name} {inner.unfit}"))
    return proposed


def resolved(method: Method, device: torch.device | None = None) -> Method:
    """``auto`` by the papers' advice: C-Ghost for a CPU, G-Ghost for a GPU; any other method is itself."""
    if method != "auto":
        return method
    gpu = torch.cuda.is_available() if device is None else device.type != "cpu"
    return "g-ghost" if gpu else "c-ghost"


def check(plan: Plan, scan: Scan) -> Plan:
    """``plan`` as it holds for ``scan``: valid, complete, and with its costs worked out anew.

    Raises ``PlanError`` when it names a layer that is not there, was made for another network, asks for what cannot
    be built, or says two things of one layer.
    """
    if any(isinstance(swap, WidthSwap) for swap in plan.swaps):
        return _checked_width(plan, scan)
    sites = {name: site for site in scan.sites for name in (site.name, *site.aliases)}
    stages = {stage.name: stage for stage in scan.stages}
    require_matches(scan, "The plan's exclude", plan.exclude)
    kept = meant(scan, plan.exclude)
    said: dict[str, Swap | Skip] = {}
    entries: list[Swap | Skip] = [*plan.swaps, *plan.skips]
    for entry in entries:
        agreed = _checked(entry, sites, stages, scan)
        if agreed.target in said:
            raise PlanError(f"The plan names {entry.target!r} twice: {_places(entries, said[agreed.target], entry)}.")
        said[agreed.target] = agreed
    on_stages = [said[stage.name] for stage in scan.stages if stage.name in said]
    left = _left(scan, on_stages)
    _require_apart(on_stages, said, scan)
    _require_not_excluded(said, kept, scan)
    _require_same_network(plan, scan, unnamed=sum(site.name not in said for site in left))
    absent = "is not named in the plan"
    on_sites = [said.get(site.name) or Skip(target=site.name, reason=absent) for site in left]
    return _assembled(scan, [*on_stages, *on_sites, *_on_others(scan, on_stages)], kept)


def scan_for(traced: Traced, wanted: GhostSettings | Plan, fitted: bool = False) -> Scan:
    """The scan that settings need, or a plan with stages named by hand.  Raises ``PlanError`` for no such stage.

    With ``fitted``, layers that cannot be fitted are to be kept, too, where a network becomes narrower.
    """
    if isinstance(wanted, GhostSettings):
        if wanted.method not in ("width", "thin"):
            return scan(traced)
        unfit = unfittable(scan(traced), wanted) if fitted else []
        steady = (*wanted.exclude, *(site.name for site in unfit))
        return scan(traced, whole=True, steady=steady, stream=width.stream(wanted))
    scaled = next((swap for swap in wanted.swaps if isinstance(swap, WidthSwap)), None)
    named = [swap.blocks for swap in wanted.swaps if isinstance(swap, GGhostSwap)]
    if scaled is None:
        return scan(traced, stages=named)
    return scan(traced, stages=named, whole=True, steady=scaled.exclude, stream=scaled.stream)


@takes(path=as_path("plan.yaml", PlanError))
def read_plan(path: str | Path) -> Plan:
    """The plan in a YAML or JSON file.  Raises ``PlanError`` with the key at fault."""
    where = f"Plan {str(path)!r}"
    read = validated(Plan, read_yaml(path, PlanError, "Plan"), where, PlanError)
    if read.format != FORMAT:
        raise PlanError(f"{where} has format {read.format}; this version reads format {FORMAT}.")
    return read


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


def _require_apart(entries: Sequence[Swap | Skip], said: Mapping[str, Swap | Skip], scan: Scan) -> None:
    """Refuse two swaps of one module: of stages that both replace it, or of a layer that a stage takes with it."""
    swapped = [stage for swap in entries if isinstance(swap, GGhostSwap) and (stage := scan.stage(swap.blocks))]
    for one, other in combinations(swapped, 2):
        shared = (a for a in one.later for b in other.later if overlap(a, b))
        if module := next(shared, None):
            raise PlanError(f"The plan swaps {module!r} twice: with {one.name!r} and with {other.name!r}.")
    for swap in said.values():
        home = next((s for s in swapped if isinstance(swap, CGhostSwap) and s.holds(swap.target)), None)
        if home:
            raise PlanError(f"The plan swaps {swap.target!r} twice: by itself and with {home.name!r}.")


def _require_not_excluded(said: Mapping[str, Swap | Skip], kept: Sequence[str], scan: Scan) -> None:
    """Refuse a swap of what the plan excludes."""
    for swap in said.values():
        stage = scan.stage(swap.blocks) if isinstance(swap, GGhostSwap) else None
        touched = [] if isinstance(swap, Skip) else stage.later if stage else [swap.target]
        home = next((name for name in kept for module in touched if overlap(name, module)), None)
        if home is not None:
            raise PlanError(f"The plan swaps {swap.target!r}, and its exclude keeps {home!r} as it is; take out one.")


def _places(entries: Sequence[Swap | Skip], first: Swap | Skip, second: Swap | Skip) -> str:
    """Where two entries for one layer stand in a plan, as its file counts: ``swaps.0 and skips.3; delete one``."""
    swaps = sum(not isinstance(entry, Skip) for entry in entries)
    alike = [i for i, entry in enumerate(entries) if entry.target in (first.target, second.target)]
    found = [f"swaps.{i}" if i < swaps else f"skips.{i - swaps}" for i in alike]
    return f"{' and '.join(found[:2])} (counted from 0); delete one"


def _checked(entry: Swap | Skip, sites: Mapping[str, Site], stages: Mapping[str, Stage], scan: Scan) -> Swap | Skip:
    """An entry under its layer's first name, with its costs."""
    if isinstance(entry, GGhostSwap):
        return _checked_stage(entry, scan)
    site = sites.get(entry.target)
    if site is None and isinstance(entry, Skip) and (entry.target in stages or entry.target in scan.others):
        return entry
    if entry.target in scan.others:
        raise PlanError(f"{entry.target} cannot be swapped: it {scan.others[entry.target]}.")
    if site is None:
        hint = did_you_mean(entry.target, [*sites, *stages])
        raise PlanError(f"The plan names {entry.target!r}, which {scan.network} does not have.{hint}")
    if isinstance(entry, Skip):
        return entry.model_copy(update={"target": site.name})
    assert isinstance(entry, CGhostSwap)
    return _checked_site(entry, site, scan)


def _checked_site(swap: CGhostSwap, site: Site, scan: Scan) -> CGhostSwap:
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
    update = {"target": site.name, "before": site.cost, "after": c_ghost.predict(site, swap)}
    return swap.model_copy(update=update)


def _checked_stage(swap: GGhostSwap, scan: Scan) -> GGhostSwap:
    stage = scan.stage(swap.blocks)
    if stage is None:
        hint = did_you_mean(swap.target, [stage.name for stage in scan.stages])
        raise PlanError(f"The plan names the stage {swap.target!r}, which {scan.network} does not have.{hint}")
    if swap.geometry not in ("", stage.geometry):
        raise PlanError(
            f"The plan was made for another network: {swap.target!r} is {stage.geometry} in {scan.network}, "
            f"and {swap.geometry} in the plan."
        )
    if stage.obstacle:
        raise PlanError(f"{swap.target} cannot be swapped: it {stage.obstacle}.")
    update = {
        "target": stage.name,
        "geometry": stage.geometry,
        "before": stage.cost,
        "after": g_ghost.predict(stage, swap),
    }
    return swap.model_copy(update=update)


def _checked_width(plan: Plan, scan: Scan) -> Plan:
    """A plan with a swap of the whole network has no other."""
    if len(plan.swaps) > 1:
        raise PlanError("The plan swaps the network as a whole (rule width), so it can have no other swap.")
    (swap,) = plan.swaps
    assert isinstance(swap, WidthSwap)
    if swap.geometry != width.geometry(scan):
        raise PlanError(
            f"The plan was made for another network: {scan.network} has {width.geometry(scan)}, not {swap.geometry}."
        )
    require_matches(scan, "The plan's exclude", (*plan.exclude, *swap.exclude))
    kept = meant(scan, swap.exclude)
    apart = [name for name in meant(scan, plan.exclude) if not any(within(name, home) for home in kept)]
    if apart:
        raise PlanError(f"The plan's exclude names {apart[0]!r}, which its swap does not; write it under both.")
    update = {"before": scan.cost, "after": width.predict(scan, swap)}
    said = [skip for skip in plan.skips if skip.target in kept]
    return _assembled(scan, [swap.model_copy(update=update), *width.skips(scan), *said], kept)


def _left(scan: Scan, stages: Sequence[Swap | Skip]) -> list[Site]:
    """The sites that no stage takes with it."""
    swapped = [stage for swap in stages if isinstance(swap, GGhostSwap) and (stage := scan.stage(swap.blocks))]
    return [site for site in scan.sites if not any(stage.holds(site.name) for stage in swapped)]


def _on_others(scan: Scan, stages: Sequence[Swap | Skip]) -> list[Skip]:
    """The layers that no rule takes, but for those that a stage takes with it."""
    swapped = [stage for swap in stages if isinstance(swap, GGhostSwap) and (stage := scan.stage(swap.blocks))]
    left = {name: why for name, why in scan.others.items() if not any(stage.holds(name) for stage in swapped)}
    return [Skip(target=name, reason=reason) for name, reason in left.items()]


def _assembled(scan: Scan, entries: Sequence[Swap | Skip], exclude: Sequence[str]) -> Plan:
    swaps = tuple(entry for entry in entries if not isinstance(entry, Skip))
    skips = tuple(dict.fromkeys(entry for entry in entries if isinstance(entry, Skip)))  # a stage may run repeatedly
    after = scan.cost
    for swap in swaps:
        after = after - swap.before + swap.after
    return Plan(
        network=scan.network,
        inputs=scan.inputs,
        swaps=swaps,
        skips=skips,
        before=scan.cost,
        after=after,
        exclude=tuple(exclude),
    )
