"""What redundancy allows: m maps or a ratio s for a layer, a ghost ratio λ for a stage, or to leave it, and why.

A layer of kernels larger than 1x1 is advised pointwise ghosts of m intrinsic maps: the smallest m that loses no more
than the ``tolerance`` of the variance, by the rank curve.  Others, and those that m maps do not make cheaper, have
depthwise filters by the pairs: the largest s (or λ of a stage) with which no more than that is lost, which is the error
of the ghosts times their share of the maps, and the smallest filter that comes near the best.  What costs more than it
saves is left alone, by the same rules that plan (``rules``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from ghostify.analysis.findings import Advice, CurvePoint, FilterError, LayerRedundancy, SplitError, StageRedundancy
from ghostify.names import within
from ghostify.planning import resolved
from ghostify.recipe import AnalysisSettings, GhostSettings, Method, SiteSettings
from ghostify.rules import Skip, c_ghost, g_ghost
from ghostify.scanning import Site
from ghostify.stages import Stage

_NEAR = 0.06
"""How much error a smaller filter may have more."""
_STEP, _MORE = 8, 1 / 8
"""m is rounded up to a multiple that runtimes like, if that is at most such a share more."""


@dataclass(frozen=True)
class Advisor:
    """Gives advice by settings."""

    asked: AnalysisSettings

    def layer(
        self, site: Site, carried: Sequence[float], filters: Sequence[FilterError], splits: Sequence[SplitError]
    ) -> Advice:
        """For a convolution."""
        if not splits:
            return _leave(site, f"has {site.out_channels // site.groups} output maps per group, too few for any ghost")
        if not filters:
            return _leave(site, "gives maps that do not vary, so nothing can be said of them")
        return self._pointwise(site, carried) or self._depthwise(site, filters, splits)

    def _pointwise(self, site: Site, carried: Sequence[float]) -> Advice | None:
        """A ghost of as few intrinsic maps as the rank curve allows; None where that is not cheaper."""
        # Of a 1x1 kernel, a pointwise convolution costs half of what it makes, as the rule that plans knows.
        if math.prod(site.kernel) == 1 or not carried:
            return None
        enough = (m for m, share in enumerate(carried, 1) if 1 - share <= self.asked.tolerance)
        m = _rounded_up(next(enough, len(carried)))
        if m >= len(carried):
            return None
        found = c_ghost.propose(site, GhostSettings(set={site.name: _pointwise_of(m)}))
        if isinstance(found, Skip):
            return None
        reason = f"{m} combinations of its {len(carried)} maps carry {carried[m - 1]:.1%} of their variance"
        return Advice(m=m, reason=reason, error=1 - carried[m - 1], before=found.before, after=found.after)

    def _depthwise(self, site: Site, filters: Sequence[FilterError], splits: Sequence[SplitError]) -> Advice:
        """A ghost of as large a ratio as the pairs allow, or none."""
        able = [split for split in splits if split.lost <= self.asked.tolerance]
        if not able:
            return _leave(site, f"{_losing(splits[0].lost, self.asked)} already at s = {splits[0].s}", splits[0].error)
        refused = ""
        # Large ratios first, since they save most; and a smaller filter only where the better one does not pay.
        for split, d in product(sorted(able, key=lambda one: -one.s), _sizes(filters)):
            found = c_ghost.propose(site, GhostSettings(s=split.s, d=d))
            if not isinstance(found, Skip):
                reason = f"at s = {split.s}, ghosts keep {1 - split.error:.0%} of their variance"
                return Advice(s=split.s, d=d, reason=reason, error=split.error, before=found.before, after=found.after)
            refused = found.reason
        return _leave(site, refused, able[0].error)

    def stage(self, stage: Stage, curve: Sequence[CurvePoint]) -> Advice:
        """For a stage."""
        able = [point for point in curve if point.ratio * point.mix <= self.asked.tolerance]
        if not able:
            reason = f"{_losing(curve[0].ratio * curve[0].mix, self.asked)} already at λ = {curve[0].ratio:g}"
            return Advice(reason=reason, error=curve[0].mix, before=stage.cost, after=stage.cost)
        point = max(able, key=lambda one: one.ratio)
        found = g_ghost.propose(stage, GhostSettings(method="g-ghost", ratio=point.ratio))
        if isinstance(found, Skip):
            return Advice(reason=found.reason, error=point.mix, before=stage.cost, after=stage.cost)
        reason = f"at λ = {point.ratio:g}, ghosts keep {1 - point.mix:.0%} of their variance"
        return Advice(ratio=point.ratio, reason=reason, error=point.mix, before=found.before, after=found.after)


def advised(layers: Iterable[LayerRedundancy], stages: Iterable[StageRedundancy], method: Method) -> GhostSettings:
    """The settings that plan what is advised: what was not looked at is not included, what is better left is excluded.

    Layers count where the method takes convolutions, stages where it takes stages.
    """
    method = resolved(method)
    of_layers = {layer.name: layer.advice for layer in layers if method != "g-ghost"}
    of_stages = {stage.name: stage for stage in stages if method != "c-ghost"}
    taken = [stage for stage in of_stages.values() if stage.advice.ratio is not None]
    chosen = {stage.name: SiteSettings(ratio=stage.advice.ratio) for stage in taken}
    # The later blocks of a stage are made anew, so their layers need no advice of their own.
    replaced = [end for stage in taken for block in stage.blocks[1:] for end in block.split("..")]
    apart = {name: one for name, one in of_layers.items() if not any(within(name, block) for block in replaced)}
    chosen |= {name: _settings_of(one) for name, one in apart.items() if one.changes}
    left = [name for name in apart if name not in chosen]
    if method == "g-ghost":
        left = [name for name in of_stages if name not in chosen]
    return GhostSettings(method=method, include=tuple(chosen), exclude=tuple(left), set=chosen)


def _settings_of(advice: Advice) -> SiteSettings:
    """The settings that plan what is advised for a layer."""
    return SiteSettings(s=advice.s, d=advice.d) if advice.m is None else _pointwise_of(advice.m)


def _pointwise_of(m: int) -> SiteSettings:
    return SiteSettings(m=m, cheap="pointwise")


def _rounded_up(m: int) -> int:
    more = math.ceil(m / _STEP) * _STEP
    return more if more - m <= _MORE * m else m


def _sizes(filters: Sequence[FilterError]) -> list[int]:
    """The smallest filter that comes near the best, and smaller ones."""
    best = min(one.error for one in filters)
    size = min(one.d for one in filters if one.error <= best + _NEAR)
    return [one.d for one in reversed(filters) if one.d <= size]


def _losing(lost: float, asked: AnalysisSettings) -> str:
    return f"would lose {lost:.0%} of its variance, above {asked.tolerance:.0%},"


def _leave(site: Site, reason: str, error: float | None = None) -> Advice:
    """No swap of a convolution."""
    return Advice(reason=reason, error=error, before=site.cost, after=site.cost)
