"""The C-Ghost rule: one convolution becomes one C-Ghost module (IJCV paper, Eq. 1-5).

    nn.Conv2d(c, n, k)  (N, c, H, W) → (N, n, H', W')      n·c·k² MACs per output position
        ⇒ CGhost(c, n, k, s=s, d=d)                        m·c·k² + m·(s−1)·d²,   m = ⌈n/s⌉   (c per group)

It applies to any two-dimensional convolution with a forward of its own class, and on request to linear layers on
vectors.  By default it leaves alone what the papers leave alone in converted networks, and what would become slower: a
ghost saves MACs but moves more elements through memory, and below ``min_saving`` MACs per element moved it loses.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.ghosts import CGhost, CGhostLinear, check, intrinsic_maps
from ghostify.recipe import GhostSettings, Parts
from ghostify.rules.base import CGhostSwap, Skip
from ghostify.scanning import Site

_KEPT = {
    "stem": "reads the network's input, and the stem is kept by default (also: [stem] takes it)",
    "classifier": "gives the network's outputs, and the classifier is kept by default (also: [classifier] takes it)",
    "linear": "is a linear layer, not a convolution, and kept by default (also: [classifier] takes it)",
    "pooled": "works on a pooled 1x1 map (a gate or a head), where there is nothing to save (also: [pooled] takes it)",
    "depthwise": "is depthwise: each of its maps is a cheap operation already",
}


def propose(site: Site, settings: GhostSettings) -> CGhostSwap | Skip:
    """A swap of ``site``, or the reason there is none.  Raises ``PlanError`` for an s set by name that is too large."""
    s, d, parts, explicit = _settings_for(site, settings)
    reason = site.obstacle or _left_alone(site, settings)
    if reason is None and s > site.out_channels // site.groups:
        if explicit:
            _require_buildable(site, s, d)
        reason = f"has {site.out_channels // site.groups} output maps per group, fewer than s = {s}"
    if reason is None and parts == "norm-act" and site.kind == "linear":
        reason = "is a linear layer, whose outputs take no normalisation"
    if reason is not None:
        return Skip(target=site.name, reason=reason)
    swap = CGhostSwap(target=site.name, geometry=site.geometry, s=s, d=d, parts=parts, before=site.cost)
    swap = swap.model_copy(update={"after": predict(site, swap)})
    return _unless_it_loses(site, swap, settings)


def predict(site: Site, swap: CGhostSwap) -> Cost:
    """The exact cost of the module ``build`` would put at ``site``.  Raises ``PlanError`` when it cannot be built."""
    _require_buildable(site, swap.s, swap.d)
    m = intrinsic_maps(site.out_channels, swap.s, site.groups)
    primary, cheap = m * site.fan_in, m * (swap.s - 1) * swap.d**2
    extras = m * swap.s * ((1 if site.bias else 0) + (2 if swap.parts == "norm-act" else 0))
    return Cost(
        params=primary + cheap + extras,
        macs=site.positions * (primary + cheap),
        acts=site.positions * m * swap.s,
    )


def build(module: nn.Module, swap: CGhostSwap) -> nn.Module:
    """The module that takes the place of ``module``, with its weights carried over."""
    if isinstance(module, nn.Linear):
        return CGhostLinear.from_linear(module, swap.s, swap.d)
    assert isinstance(module, nn.Conv2d)
    if swap.parts == "norm-act":
        return CGhost.from_conv(module, swap.s, swap.d, norm=nn.BatchNorm2d, act=lambda: nn.ReLU(inplace=True))
    return CGhost.from_conv(module, swap.s, swap.d)


def saving_per_element(site: Site, swap: CGhostSwap) -> float:
    """MACs saved per element moved more, both per output position: what decides whether a clock would notice.

    The cheap operations read and write m·(s−1) maps, and the concatenation reads m·s and writes n.
    """
    m = intrinsic_maps(site.out_channels, swap.s, site.groups)
    moved = 2 * m * (swap.s - 1) + m * swap.s + site.out_channels
    return (swap.before.macs - swap.after.macs) / site.positions / moved


def _require_buildable(site: Site, s: int, d: int) -> None:
    try:
        check(site.out_channels, s, d, site.groups)
    except PlanError as problem:
        raise PlanError(f"{site.name}: {problem}") from None


def _unless_it_loses(site: Site, swap: CGhostSwap, settings: GhostSettings) -> CGhostSwap | Skip:
    if settings.min_saving == 0:
        return swap
    saving = saving_per_element(site, swap)
    if saving >= settings.min_saving:
        return swap
    if saving <= 0:
        reason = f"would cost more as a ghost (s = {swap.s}, d = {swap.d}) than it does now"
    else:
        reason = (
            f"would save {saving:.1f} MACs per element a ghost moves more, too few to be faster "
            f"(min_saving is {settings.min_saving:g})"
        )
    return Skip(target=site.name, reason=reason)


def _left_alone(site: Site, settings: GhostSettings) -> str | None:
    if not any(fnmatchcase(site.name, glob) for glob in settings.include):
        return "is matched by no include pattern"
    if glob := next((glob for glob in settings.exclude if fnmatchcase(site.name, glob)), None):
        return f"is excluded by {glob!r}"
    return None if site.role in settings.also else _KEPT.get("linear" if site.kind == "linear" else site.role)


def _settings_for(site: Site, settings: GhostSettings) -> tuple[int, int, Parts, bool]:
    """(s, d, parts) for a site, and whether its s was set by name rather than for all."""
    s, d, parts = settings.s, settings.d, settings.parts
    explicit = False
    for glob, own in settings.set.items():
        if fnmatchcase(site.name, glob):
            s, d, parts = own.s or s, own.d or d, own.parts or parts
            explicit = explicit or own.s is not None
    return s, d, parts, explicit
