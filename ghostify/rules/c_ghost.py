"""The C-Ghost rule: one convolution becomes one C-Ghost module (IJCV paper, Eq. 1-5).

    nn.Conv2d(c, n, k)  (N, c, H, W) → (N, n, H', W')      n·c·k² MACs per output position
        ⇒ CGhost(c, n, k, s=s, cheap="depthwise d")        m·c·k² + m·(s−1)·d²,   m = ⌈n/s⌉   (c per group)
        ⇒ CGhost(c, n, k, s=s, cheap="pointwise r")        m·c·k² + m·(n−m) or, where that is less, m·c·k² + r·n
        ⇒ CGhost(…, cheap="depthwise d + pointwise r")     the sum of both cheap operations

It applies to convolutions of one, two and three dimensions (k² and d² stand for two), of a class of its own too where
its forward only prepares its weight or its input, and on request to linear layers, on vectors and on maps whose
channels come last, where they are 1x1 convolutions.  By default it leaves alone what the papers leave alone in
converted networks, and what would become slower: a ghost saves MACs but moves more elements through memory, and below
``min_saving`` MACs per element moved it loses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

from ghostify.cheap import USUAL, Cheap, Work, by_one_word
from ghostify.costs import Cost, approximate_ratio, compression_ratio, speedup_ratio
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, CGhostLinear, check, intrinsic_maps
from ghostify.ghosts.narrowing import Conv, dimensions
from ghostify.patterns import spelled_out
from ghostify.recipe import CheapOperation, GhostSettings, Parts, Pointwise, Ratio, SiteSettings, of_convolutions
from ghostify.rules.base import Skip, Split, Swap, cannot_be_fitted
from ghostify.rules.origins import Origins
from ghostify.rules.protocol import Original, Rule, require_geometry, require_possible, unknown
from ghostify.rules.rows import LayerReport, Promise, Ratios, Rows
from ghostify.scanning import Scan, Site
from ghostify.tracing import GIVEN_NOTHING, Traced

_KEPT = {
    "stem": "reads the network's input, and the stem is kept by default (also: [stem] takes it)",
    "classifier": "gives the network's outputs, and the classifier is kept by default (also: [classifier] takes it)",
    "linear": "is a linear layer, not a convolution, and kept by default (also: [classifier] takes it)",
    "channels-last": "is a linear layer on maps, kept by default (also: [channels-last] takes it)",
    "pooled": "works on a pooled 1x1 map (a gate or a head), where there is nothing to save (also: [pooled] takes it)",
    "depthwise": "is depthwise: each of its maps is a cheap operation already",
}
_UNSAID = "is not named in the plan"
_NEAR = 1 / 8
"""By what share m may be rounded, so that a ghost still has about the MACs that its ratio s promises."""

_SHARES = (0.75, 0.625, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125)
"""m/n that a budget may choose among."""

_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class CGhostSwap(Swap):
    """A convolution (or linear layer) that becomes a C-Ghost module."""

    rule: Literal["c-ghost"] = "c-ghost"
    s: Ratio
    m: Annotated[int | None, Field(ge=1)] = None
    """The number of intrinsic maps where it is not ⌈n/s⌉."""
    cheap: CheapOperation
    parts: Parts = "linear"
    ordered: bool = False
    """Whether the module puts its maps into an order of their own, by a selection of channels at run time."""

    @property
    def settings(self) -> str:
        """As a table shows them."""
        width = "" if self.m is None else f" m={self.m}"
        extras = " norm-act" * (self.parts == "norm-act") + " ordered" * self.ordered
        return f"s={self.s}{width} {self.cheap.short}{extras}"

    @property
    def outputs(self) -> int | None:
        """How many outputs the layer has by its geometry; None where that does not tell."""
        named = re.match(r"\d+→(\d+) ", self.geometry)
        return int(named[1]) if named else None

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, values: Any) -> Any:
        """Plans of format 1 tell the cheap operation by two numbers."""
        return by_one_word(values)

    @model_serializer(mode="wrap")
    def _without_usual_m(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan tells m where it is set, so that whoever changes s need not change it."""
        values: dict[str, Any] = written(self)
        return {key: value for key, value in values.items() if key != "m" or value is not None}


class CGhostRule(Rule[CGhostSwap]):
    """A C-Ghost module in place of each convolution."""

    name = "c-ghost"
    swap = CGhostSwap
    methods = frozenset({"c-ghost", "both", "mixed"})
    noun = "convolution"
    in_place = True

    def subjects(self, scan: Scan) -> dict[str, str]:
        return {name: site.name for site in scan.sites for name in site.names}

    def propose(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> list[CGhostSwap | Skip]:
        settings = settings.model_copy(update={"exclude": spelled_out(scan, settings.exclude)})
        try:
            return [_proposed(site, settings, fitted) for site in scan.sites]
        except PlanError as problem:
            raise PlanError(f"The settings cannot be met: {problem}") from None

    def candidates(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> Mapping[str, Sequence[CGhostSwap]]:
        settings = settings.model_copy(update={"exclude": spelled_out(scan, settings.exclude)})
        found = {site.name: _offered(site, settings, fitted) for site in scan.sites}
        return {name: swaps for name, swaps in found.items() if swaps}

    def is_meant(self, scan: Scan, target: str, pattern: str) -> bool:
        site = scan.site(target)
        return site is not None and site.matches(pattern)

    def named(self, swap: CGhostSwap, scan: Scan) -> CGhostSwap:
        require_possible(swap, scan.others.get(swap.target))
        site = scan.site(swap.target)
        if site is None:
            stages = {stage.name: stage.name for stage in scan.stages}
            raise unknown(swap.target, scan, self.subjects(scan) | stages)
        return swap.model_copy(update={"target": site.name})

    def check(self, said: Mapping[str, Swap | Skip], scan: Scan) -> list[CGhostSwap | Skip]:
        # A layer that an earlier rule changed is in a swap already, and needs no entry of its own.
        sites = (site for site in scan.sites if site.name in said or site.name not in scan.changed)
        return [_checked(said.get(site.name), site, scan) for site in sites]

    def replacements(self, original: Original, swaps: Sequence[CGhostSwap], memo: Mapping[int, Any]) -> dict[int, Any]:
        made: dict[int, Any] = {}
        for swap in swaps:
            layer = original.part(swap.target)
            narrowed = memo.get(id(layer), layer)  # by an earlier rule
            made[id(layer)] = build(narrowed, swap, original.choices.orders.get(swap.target))
        return made

    def origins(self, found: Origins, original: Original, swaps: Sequence[CGhostSwap], module: nn.Module) -> None:
        targets = {swap.target for swap in swaps}
        found.ghosts |= targets
        found.roots |= targets

    def split(self, swap: CGhostSwap, traced: Traced) -> Split | None:
        if swap.parts != "linear":
            return None
        layer: Any = traced.part(swap.target)
        n = len(layer.weight)
        if swap.outputs not in (None, n):
            return None  # another rule takes some of its channels away, and which maps are left decides
        mixed = swap.cheap.mixes_freely(n, swap.m or intrinsic_maps(n, swap.s))
        return Split(swap.target, swap.s, swap.cheap.d, mixed, swap.m)

    def report(self, rows: Rows, swaps: Sequence[CGhostSwap], before: Scan, after: Scan) -> None:
        for swap in swaps:
            site = before.site(swap.target)
            assert site is not None, swap.target
            row = LayerReport(
                target=swap.target,
                geometry=swap.geometry,
                s=swap.s,
                cheap=str(swap.cheap),
                form=swap.settings,
                before=swap.before,
                after=after.within(swap.target),
                theory=theory(site, swap),
            )
            rows.layers.append(row)
            rows.promises.append(Promise(swap.before.macs, site.out_channels * site.fan_in, row.theory))


class _Wanted(NamedTuple):
    """The settings of one site."""

    s: int
    m: int | None
    """The number of intrinsic maps where it is set."""
    parts: Parts
    cheap: Cheap | None
    """None where the rule is to choose."""
    d: int | None
    pointwise: Pointwise | None
    """These two as older recipes tell them; None where they do not."""
    named: frozenset[str]
    """Those that were set by name rather than for all."""


def propose(site: Site, settings: GhostSettings) -> CGhostSwap | Skip:
    """A swap of ``site``, or the reason there is none.

    Raises ``PlanError`` for what was set by name and cannot be: an s above the width, or a pointwise convolution.
    """
    wanted = _wanted(site, settings)
    reason = site.obstacle or _left_alone(site, settings) or _unable(site, wanted)
    if reason is not None:
        return Skip(target=site.name, reason=reason)
    # The best form comes first; where none pays, the reason told is that of the last.
    for cheap in _forms(site, wanted):
        proposed = _priced(site, _swap_of(site, wanted, cheap, settings.round_to), settings)
        if isinstance(proposed, CGhostSwap):
            break
    return proposed


def _offered(site: Site, settings: GhostSettings, fitted: bool) -> list[CGhostSwap]:
    """The ghosts of a site that cost less than it does, as a budget may choose among them, the dearest first."""
    if isinstance(_proposed(site, settings.model_copy(update={"min_saving": 0}), fitted), Skip):
        return []
    wanted = _wanted(site, settings)
    swaps = [swap for cheap in _forms_offered(site, wanted) for swap in _sizes(site, wanted, cheap, settings.round_to)]
    priced = [swap for swap in (_priced(site, swap, settings) for swap in swaps) if isinstance(swap, CGhostSwap)]
    paying = {swap.after: swap for swap in priced if swap.after.macs < swap.before.macs}
    return sorted(paying.values(), key=lambda swap: -swap.after.macs)


def _forms_offered(site: Site, wanted: _Wanted) -> list[Cheap]:
    """The cheap operations to choose among: those asked for; else a mixture, and filters where a kernel has one tap."""
    if wanted.cheap is not None or wanted.d is not None or wanted.pointwise is not None:
        return _forms(site, wanted)
    free = site.groups == 1 and wanted.parts == "linear"
    mixture = [Cheap(pointwise="full")] if free else []
    return mixture if free and math.prod(site.kernel) > 1 else [*mixture, Cheap(USUAL)]


def _sizes(site: Site, wanted: _Wanted, cheap: Cheap, round_to: int) -> list[CGhostSwap]:
    """A cheap operation with several numbers of intrinsic maps; with one, where its s was set by name."""
    if "s" in wanted.named or cheap.depthwise is not None:
        return [_swap_of(site, wanted, cheap, round_to)]
    n = site.out_channels
    # narrow layers are worth finer steps, in powers of two; the clock tells which of them pay
    step = min(round_to, 2 ** max(0, (n // 8).bit_length() - 1))
    numbers = {round(share * n / step) * step for share in _SHARES}
    return [_of_size(site, wanted, cheap, m) for m in sorted(numbers, reverse=True) if 0 < m < n]


def _of_size(site: Site, wanted: _Wanted, cheap: Cheap, m: int) -> CGhostSwap:
    """The swap with m intrinsic maps, which are told by s alone where they are ⌈n/s⌉."""
    n = site.out_channels
    s = max(2, round(n / m))
    swap = _swap_of(site, wanted._replace(s=s), cheap, round_to=1)
    usual = intrinsic_maps(n, s, site.groups)
    return swap.model_copy(update={"m": None if m == usual else m, "cheap": cheap.for_width(n, m)})


def _unable(site: Site, wanted: _Wanted) -> str | None:
    """Why no ghost of these settings can stand for a site; ``PlanError`` where its own s is too large for it."""
    if wanted.s == 1:
        return "is no ghost, because its s is set to 1"
    width = site.out_channels // site.groups
    if wanted.m is not None and "m" not in wanted.named and (wanted.m >= site.out_channels or wanted.m % site.groups):
        return f"cannot keep m = {wanted.m} of its {site.out_channels} output maps"
    if wanted.s > width:
        if "s" in wanted.named:
            _require_buildable(site, wanted.s, Cheap(USUAL))
        return f"has {width} output maps per group, fewer than s = {wanted.s}"
    if wanted.parts == "norm-act" and site.kind == "linear":
        return "is a linear layer, whose outputs take no normalisation"
    return None


def _swap_of(site: Site, wanted: _Wanted, cheap: Cheap, round_to: int) -> CGhostSwap:
    """The swap of one form, without its cost."""
    m = wanted.m or _rounded(site, wanted.s, cheap, round_to)
    usual = intrinsic_maps(site.out_channels, wanted.s, site.groups)
    m = None if m == usual else m
    return CGhostSwap(
        target=site.name,
        geometry=site.geometry,
        s=wanted.s,
        m=m,
        cheap=cheap.for_width(site.out_channels, m or usual),
        parts=wanted.parts,
        before=site.cost,
    )


def predict(site: Site, swap: CGhostSwap) -> Cost:
    """The exact cost of the module ``build`` would put at ``site``.  Raises ``PlanError`` when it cannot be built."""
    _require_buildable(site, swap.s, swap.cheap, swap.parts, swap.m)
    if swap.ordered and (site.kind == "linear" or site.groups > 1 or swap.parts != "linear"):
        raise PlanError(f"{site.name} cannot be ordered: only a convolution without groups and of linear parts can.")
    m, work = intrinsic(site, swap), _work(site, swap)
    weights = m * site.fan_in + work.weights
    norms = 2 * (m + work.biases) if swap.parts == "norm-act" else 0
    biases = m + work.biases if site.bias else 0
    # what a class of its own has for each filter goes with the filters, and what belongs to none stays
    return Cost(
        params=weights + norms + biases + m * site.extras + site.shared,
        macs=site.positions * weights,
        acts=site.positions * (m + work.outputs),
    )


def build(module: nn.Module, swap: CGhostSwap, order: Sequence[int] | None = None) -> nn.Module:
    """The module that takes the place of ``module``, with its weights carried over; ``order`` if it is ordered."""
    if isinstance(module, nn.Linear):
        return CGhostLinear.from_linear(module, swap.s, cheap=swap.cheap, m=swap.m)
    assert isinstance(module, Conv)
    norm, act = None, None
    if swap.parts == "norm-act":
        norm, act = _NORMS[dimensions(module)], partial(nn.ReLU, inplace=True)
    if swap.ordered and order is None:
        order = range(module.out_channels)
    given = order if swap.ordered else None
    return CGhost.from_conv(module, swap.s, norm=norm, act=act, order=given, cheap=swap.cheap, m=swap.m)


def intrinsic(site: Site, swap: CGhostSwap) -> int:
    """m, the number of intrinsic maps a swap leaves a site."""
    return intrinsic_maps(site.out_channels, swap.s, site.groups) if swap.m is None else swap.m


def saving_per_element(site: Site, swap: CGhostSwap) -> float:
    """MACs saved per element moved more, both per output position: what decides whether a clock would notice."""
    return (swap.before.macs - swap.after.macs) / site.positions / _work(site, swap).moved


def theory(site: Site, swap: CGhostSwap) -> Ratios:
    """What Eq. 4 and 5 promise for one layer (c is the input channels one filter reads).

    The first forms are told of a pointwise convolution, the approximations know of none.  Where m is set, s is n/m.
    """
    c, k, n = site.in_channels // site.groups, math.sqrt(math.prod(site.kernel)), site.out_channels
    # the side of a square as large as the cheap kernel of so many dimensions
    d = (swap.cheap.depthwise or 0) ** (len(site.kernel) / 2)
    s = swap.s if swap.m is None else n / swap.m
    mixing = _work(site, swap).mixing / n
    return Ratios(
        r_s=speedup_ratio(c, k, s, d, mixing),
        r_c=compression_ratio(c, k, s, d, mixing),
        approx_r_s=approximate_ratio(c, swap.s),
        approx_r_c=approximate_ratio(c, swap.s),
    )


def _proposed(site: Site, settings: GhostSettings, fitted: bool) -> CGhostSwap | Skip:
    """A proposal that knows whether the site was given anything, and whether weights are to be fitted."""
    if site.calls and not site.positions and not site.obstacle:
        return Skip(target=site.name, reason=GIVEN_NOTHING)
    proposed = propose(site, settings)
    if fitted and site.unfit and isinstance(proposed, CGhostSwap) and proposed.parts == "linear":
        return Skip(target=site.name, reason=cannot_be_fitted(f"it {site.unfit}"))
    return proposed


def _checked(entry: Swap | Skip | None, site: Site, scan: Scan) -> CGhostSwap | Skip:
    """What a plan says of a site, with its cost worked out anew."""
    if not isinstance(entry, CGhostSwap):
        return entry if isinstance(entry, Skip) else Skip(target=site.name, reason=_UNSAID)
    require_geometry(entry, site.geometry, scan)
    require_possible(entry, site.obstacle)
    if entry.parts == "norm-act" and site.kind == "linear":
        raise PlanError(
            f"{entry.target} is a linear layer, whose outputs take no normalisation; set its parts to linear."
        )
    after = predict(site, entry)
    cheap = entry.cheap.for_width(site.out_channels, intrinsic(site, entry))
    return entry.model_copy(update={"cheap": cheap, "before": site.cost, "after": after})


def _work(site: Site, swap: CGhostSwap) -> Work:
    return swap.cheap.work(site.out_channels, intrinsic(site, swap), swap.s, len(site.kernel))


def _require_buildable(site: Site, s: int, cheap: Cheap, parts: Parts = "linear", m: int | None = None) -> None:
    try:
        check(site.out_channels, s, cheap, site.groups, linear=parts == "linear", m=m)
    except PlanError as problem:
        raise PlanError(f"{site.name}: {problem}") from None


def _priced(site: Site, swap: CGhostSwap, settings: GhostSettings) -> CGhostSwap | Skip:
    """The swap with its cost, unless it loses."""
    swap = swap.model_copy(update={"after": predict(site, swap)})
    # Zero asks for every ghost, also one that costs more than its layer.
    if settings.min_saving == 0:
        return swap
    saving = saving_per_element(site, swap)
    if saving >= settings.min_saving:
        return swap
    if saving <= 0:
        reason = f"would cost more as a ghost (s = {swap.s}, cheap = {swap.cheap}) than it does now"
    else:
        reason = (
            f"would save {saving:.1f} multiply-adds (MACs) for each number more that a ghost reads or writes, too few "
            f"to be faster (min_saving is {settings.min_saving:g})"
        )
    return Skip(target=site.name, reason=reason)


def _left_alone(site: Site, settings: GhostSettings) -> str | None:
    if not any(map(site.matches, settings.include)):
        return "is matched by no include pattern"
    if (glob := next((glob for glob in settings.exclude if site.matches(glob)), None)) is not None:
        return f"is excluded by {glob!r}"
    if site.role in settings.also:
        return None
    return _KEPT.get("linear" if site.kind == "linear" and site.role == "classifier" else site.role)


def _wanted(site: Site, settings: GhostSettings) -> _Wanted:
    """What is set for all, and over it what is set by name; a later word on the cheap operation is the only one."""
    values: dict[str, Any] = {key: getattr(settings, key) for key in ("parts", "d", "pointwise")}
    values |= _number(site, settings)
    values["cheap"] = of_convolutions(settings.cheap)
    named: set[str] = set()
    for glob, own in settings.set.items():
        if not site.matches(glob):
            continue
        given = _given(site, own)
        if (cheap := of_convolutions(own.cheap)) is not None:
            values |= {"d": None, "pointwise": None}
            given["cheap"] = cheap
        elif "d" in given or "pointwise" in given:
            values["cheap"] = None
        values |= given
        named |= given.keys()
    if values["cheap"] == "auto":
        values["cheap"] = None
    return _Wanted(**values, named=frozenset(named))


def _given(site: Site, own: SiteSettings) -> dict[str, Any]:
    """What is set by name, but for the cheap operation; m and s tell the same, so the later word is the only one."""
    given = {key: value for key in ("parts", "d", "pointwise") if (value := getattr(own, key)) is not None}
    return given | ({} if own.s is None and own.m is None else _number(site, own))


def _number(site: Site, own: GhostSettings | SiteSettings) -> dict[str, Any]:
    """How many maps are intrinsic, told by m or by a ratio s; m maps have as many ghosts each as that takes."""
    if own.m is None:
        return {"s": own.s, "m": None}
    return {"s": max(2, math.ceil(site.out_channels / own.m)), "m": own.m}


def _rounded(site: Site, s: int, cheap: Cheap, step: int) -> int | None:
    """m where it is not ⌈n/s⌉: for ghosts without filters the nearest multiple of a step, if it is near.

    Runtimes compute channels in blocks of eight or sixteen, and a block that is begun takes as long as a full one: at
    s = 3, 22 of 64 maps take as long as 24.  The papers' forms keep ⌈n/s⌉, which their filters need, and so does a
    layer that would become a ghost of another ratio.
    """
    usual = intrinsic_maps(site.out_channels, s, site.groups)
    m = round(usual / step) * step
    near = 0 < abs(m - usual) <= _NEAR * usual
    return m if cheap.depthwise is None and near and m < site.out_channels else None


def _forms(site: Site, wanted: _Wanted) -> list[Cheap]:
    """The cheap operations to try for a site, the best one first.

    Where none is asked for, ghosts of kernels larger than 1x1 are mixtures of the intrinsic maps: these keep as much as
    mixtures and filters together, and cost less (docs/results/fitting-cifar10.md).  For a 1x1 kernel a mixture costs
    half a ghost, so filters make them, as in the papers.
    """
    wide = math.prod(site.kernel) > 1
    filters, mixture = Cheap(USUAL), Cheap(pointwise="full")
    if wanted.cheap is not None:
        asked = [wanted.cheap]
    elif wanted.d is not None or wanted.pointwise is not None:
        asked = _of_older_words(wanted.d or USUAL, wanted.pointwise or "auto", wide)
    else:
        asked = [mixture, filters] if wide else [filters]
    chosen = wanted.cheap is not None or wanted.pointwise not in (None, "auto")
    by_name = chosen and bool({"cheap", "pointwise"} & wanted.named)
    if by_name or (site.groups == 1 and wanted.parts == "linear"):
        return asked
    # What is set for all says nothing of a layer that cannot have it, and its filters can be had everywhere.
    return [Cheap(one.depthwise or USUAL) for one in asked]


def _of_older_words(d: int, pointwise: Pointwise, wide: bool) -> list[Cheap]:
    """The cheap operations to try where a recipe tells them by two words, as all did before there was one."""
    filters, both = Cheap(d), Cheap(d, "full")
    if pointwise == "auto":
        return [both, filters] if wide else [filters]
    if pointwise == "none":
        return [filters]
    return [Cheap(d, pointwise)]
