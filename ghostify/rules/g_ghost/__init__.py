"""The G-Ghost rule: a stage of n ≥ 3 blocks becomes its first block and a G-Ghost stage (IJCV paper, Eq. 6-12).

    blocks 1 … n    (N, c', H', W') → (N, c, H, W)                Y1, Y2, …, Yn
        ⇒ block 1                   as it is                      Y1
          GGhostStage               in place of block 2           thin copies at (1−λ)c, and ghosts
          (nothing)                 in place of blocks 3 … n

The thin copies keep (1−λ) of the channels of the residual stream and inside the blocks, with the trained weights of
those channels.  The new layers begin as the least they can be: the cheap operation passes the ghost channels of Y1 on,
a projection picks the channels of the thin path, the mix operation adds nothing.

The papers' tables are made by more than one form of stage; ``PRESETS`` names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ghostify.costs import Cost, stage_model, stage_ratio
from ghostify.errors import PlanError
from ghostify.names import within
from ghostify.patterns import spelled_out
from ghostify.recipe import GhostSettings, StageForm, of_stages
from ghostify.rules.base import Skip, Swap, cannot_be_fitted, offered
from ghostify.rules.g_ghost.form import Form
from ghostify.rules.g_ghost.lineage import add_origins
from ghostify.rules.g_ghost.surgery import Surgery
from ghostify.rules.g_ghost.swap import GGhostSwap
from ghostify.rules.origins import Origins
from ghostify.rules.protocol import Needs, Original, Rule, require_geometry, require_possible, unknown
from ghostify.rules.rows import Promise, Ratios, Rows, StageRatios, StageReport
from ghostify.scanning import Scan
from ghostify.stages import Modules, Stage
from ghostify.tracing import Traced

_IMAGENET = StageForm(
    cheap="1x1", cheap_input="slice", entry="slice", mix=1, mix_y1=True, end=True, group_width=1.0, keep="first"
)
_CIFAR = _IMAGENET.model_copy(update={"cheap_input": "full", "entry": "projection", "mix_y1": False})
PRESETS: dict[str, StageForm] = {
    "default": StageForm(**{name: GGhostSwap.model_fields[name].default for name in StageForm.model_fields}),
    "stream": StageForm(
        cheap="1x1",
        cheap_input="outputs",
        entry="stream",
        mix=1,
        mix_y1=True,
        end=False,
        inner_width=0.5,
        group_width=1.0,
        keep="strongest",
    ),
    "literal": _CIFAR.model_copy(update={"end": False}),
    "cifar": _CIFAR,
    "imagenet": _IMAGENET,
    "regnet": _IMAGENET.model_copy(update={"mix": 2, "group_width": 0.75}),
}
"""Forms of a stage: our own, two of them (``stream`` keeps most of a trained network where blocks are convolutions of
3x3, and costs too much where they are bottlenecks); Eq. 6-12 to the letter; and those of Tables 11-14, 15-16 and 17-18.
"""

_RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75)
"""λ that a budget may choose among."""


class GGhostRule(Rule[GGhostSwap]):
    """A G-Ghost stage in place of each stage."""

    name = "g-ghost"
    swap = GGhostSwap
    methods = frozenset({"g-ghost", "both"})
    noun = "stage"
    rehearsed = True
    outside = "is kept: G-Ghost stages replace what follows the first block of a stage (method both takes it)"

    def needed_by(self, swap: GGhostSwap) -> Needs:
        return Needs(stages=(swap.blocks,))

    def subjects(self, scan: Scan) -> dict[str, str]:
        return {stage.name: stage.name for stage in scan.stages}

    def admit(self, scan: Scan, settings: GhostSettings) -> None:
        if settings.method == "g-ghost" and not scan.stages:
            raise PlanError(
                f"{scan.network} has no stage (three or more blocks of one width and resolution) to become a G-Ghost "
                "stage; method c-ghost takes its convolutions."
            )

    def propose(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> list[GGhostSwap | Skip]:
        settings = settings.model_copy(update={"exclude": spelled_out(scan, settings.exclude)})
        return [_proposed(scan, stage, settings, fitted) for stage in scan.stages]

    def candidates(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> Mapping[str, Sequence[GGhostSwap]]:
        each = [settings.model_copy(update={"ratio": ratio}) for ratio in _RATIOS]
        return offered(self.propose(scan, one, fitted=fitted) for one in each)

    def is_meant(self, scan: Scan, target: str, pattern: str) -> bool:
        return any(stage.name == target and stage.is_meant([pattern], scan.modules) for stage in scan.stages)

    def named(self, swap: GGhostSwap, scan: Scan) -> GGhostSwap:
        stage = scan.stage(swap.blocks)
        if stage is None:
            raise unknown(swap.target, scan, self.subjects(scan), what="the stage ")
        if swap.geometry:  # a stage named by hand need not tell it
            require_geometry(swap, stage.geometry, scan)
        require_possible(swap, stage.obstacle)
        return swap.model_copy(update={"target": stage.name, "geometry": stage.geometry})

    def check(self, said: Mapping[str, Swap | Skip], scan: Scan) -> list[GGhostSwap | Skip]:
        return [_checked(said[stage.name], scan) for stage in scan.stages if stage.name in said]

    def touches(self, swap: GGhostSwap, scan: Scan) -> Sequence[str]:
        stage = scan.stage(swap.blocks)
        return stage.later if stage else swap.touches

    def after(self, scan: Scan, swaps: Sequence[GGhostSwap]) -> Scan:
        taken = [module for swap in swaps for module in self.touches(swap, scan)]
        sites = tuple(site for site in scan.sites if not _is_taken(site.name, taken))
        others = {name: reason for name, reason in scan.others.items() if not _is_taken(name, taken)}
        return scan.model_copy(update={"sites": sites, "others": others})

    def replacements(self, original: Original, swaps: Sequence[GGhostSwap], memo: Mapping[int, Any]) -> dict[int, Any]:
        made: dict[int, Any] = {}
        for swap in swaps:
            made |= replacements(original.traced, original.stage(swap.blocks), swap)
        return made

    def counted(self, swap: GGhostSwap, before: Scan, after: Scan) -> Cost:
        return counted(after, _stage(swap, before))

    def origins(self, found: Origins, original: Original, swaps: Sequence[GGhostSwap], module: nn.Module) -> None:
        for swap in swaps:
            stage = original.stage(swap.blocks)
            add_origins(found, original.traced, stage, swap, outputs_kept(original.traced, stage, swap), module)

    def report(self, rows: Rows, swaps: Sequence[GGhostSwap], before: Scan, after: Scan) -> None:
        for swap in swaps:
            row = self._row(swap, before, after)
            rows.stages.append(row)
            ratios = Ratios(
                r_s=row.theory.r_f,
                r_c=row.theory.r_p,
                approx_r_s=row.theory.approx_r_f,
                approx_r_c=row.theory.approx_r_p,
            )
            rows.promises.append(Promise(swap.before.macs, swap.before.params, ratios))

    def _row(self, swap: GGhostSwap, before: Scan, after: Scan) -> StageReport:
        stage = _stage(swap, before)
        return StageReport(
            target=swap.target,
            geometry=swap.geometry,
            form=swap.settings,
            ratio=1 - thin_width(stage, swap) / stage.width,
            before=swap.before,
            after=self.counted(swap, before, after),
            theory=theory(stage, swap),
        )


def propose(stage: Stage, settings: GhostSettings, modules: Modules = ()) -> GGhostSwap | Skip:
    """A swap of ``stage``, or the reason there is none; ``modules`` are the names of every module of its network."""
    if reason := _left_alone(stage, settings, modules):
        return Skip(target=stage.name, reason=reason)
    assert stage.coupling is not None, "or it was left alone"
    form = _form(stage, settings, modules)
    if stage.coupling.ordered:
        form["keep"] = "first"
    swap = GGhostSwap(
        target=stage.name,
        geometry=stage.geometry,
        blocks=tuple(block.name for block in stage.blocks),
        before=stage.cost,
        round_to=settings.round_to,
        rounding=settings.rounding,
        **form,
    )
    try:
        swap = swap.model_copy(update={"after": predict(stage, swap)})
    except PlanError as problem:
        return Skip(target=stage.name, reason=str(problem).removeprefix(f"{stage.name} ").removesuffix("."))
    if swap.after.macs >= swap.before.macs:
        return Skip(target=stage.name, reason="would cost more as a G-Ghost stage than it does now")
    return swap


def predict(stage: Stage, swap: GGhostSwap) -> Cost:
    """The exact cost of all blocks of the stage once it is rewritten.  Raises ``PlanError`` when it cannot be."""
    if stage.obstacle or stage.coupling is None:
        raise PlanError(f"{stage.name} {stage.obstacle}.")
    form, coupling = Form(stage, swap), stage.coupling
    total = stage.blocks[0].cost
    for block in form.thin:
        reads_all, gives_all = form.reads_all(block), form.gives_all(block)
        if reads_all and gives_all:
            total += stage.blocks[block + 1].cost
        elif reads_all:
            total += coupling.widened(block, form.counts, form.lanes) + form.projection(block, stage.width, form.raw)
        elif gives_all:
            total += coupling.narrowed(block, form.counts, form.lanes) + form.projection(block, form.raw, stage.width)
        else:
            total += coupling.cost(block, form.counts, form.lanes)
    total += form.cheap() + form.mix()
    return total + stage.blocks[-1].cost if swap.end else total


def counted(after: Scan, stage: Stage) -> Cost:
    """What a rewritten stage costs, by count, if nothing else was done to its first block."""
    return stage.blocks[0].cost + after.within(stage.slot)


def thin_width(stage: Stage, swap: GGhostSwap) -> int:
    """(1−λ)c as it comes out: the channels of the thin path."""
    return Form(stage, swap).raw


def extras(stage: Stage, swap: GGhostSwap) -> tuple[Cost, Cost, Cost | None]:
    """What is new: the cheap operation, the mix operation, and the projection at the thin path's entry, if any."""
    form = Form(stage, swap)
    projects = swap.entry == "projection"
    return form.cheap(), form.mix(), form.projection(0, stage.width, form.raw) if projects else None


def replacements(traced: Traced, stage: Stage, swap: GGhostSwap) -> dict[int, nn.Module]:
    """By the ``id`` of each module of blocks 2 … n, what takes its place.

    Raises ``RewriteError`` when a thinned block does not do what the block does with the dropped channels silenced.
    """
    with torch.random.fork_rng(devices=[]):  # what the new layers draw is the same each time, and nobody else's
        torch.default_generator.manual_seed(0)
        tail = Surgery(traced, stage, swap).tail()
    slot, *others = [traced.part(name) for name in stage.later]
    return {id(slot): tail} | {id(old): nn.Identity().train(old.training) for old in others}


def outputs_kept(traced: Traced, stage: Stage, swap: GGhostSwap) -> dict[str, np.ndarray]:
    """By layer of the blocks after the first, which of its outputs a thin copy makes."""
    surgery = Surgery(traced, stage, swap)
    return surgery.channels.outputs_kept(surgery.kept)


def theory(stage: Stage, swap: GGhostSwap) -> StageRatios:
    """What Eq. 13 and 14 promise for one stage, as they are printed and for the form it has."""
    ratio = 1 - thin_width(stage, swap) / stage.width
    cheap, mix, projection = extras(stage, swap)
    ratios = {}
    for name, cost in (("f", "macs"), ("p", "params")):
        blocks = [getattr(block.cost, cost) for block in stage.blocks]
        new, extra = getattr(cheap + mix, cost), getattr(projection, cost) if projection else None
        ratios[f"r_{name}"] = stage_model(
            blocks,
            ratio,
            new,
            projection=extra,
            end=swap.end,
            ghosts=swap.cheap != "none",
            inner=swap.inner_width,
            stream=swap.entry == "stream",
        )
        ratios[f"approx_r_{name}"] = stage_ratio(blocks, ratio, getattr(cheap, cost))
    return StageRatios(**ratios)


def _proposed(scan: Scan, stage: Stage, settings: GhostSettings, fitted: bool) -> GGhostSwap | Skip:
    """A proposal that knows whether weights are to be fitted."""
    proposed = propose(stage, settings, scan.modules)
    inner = next((site for site in scan.sites if site.unfit and stage.holds(site.name)), None)
    if fitted and inner and isinstance(proposed, GGhostSwap):
        return Skip(target=stage.name, reason=cannot_be_fitted(f"{inner.name} {inner.unfit}"))
    return proposed


def _checked(entry: Swap | Skip, scan: Scan) -> GGhostSwap | Skip:
    """What a plan says of a stage, with its cost worked out anew."""
    if isinstance(entry, Skip):
        return entry
    assert isinstance(entry, GGhostSwap)
    stage = _stage(entry, scan)
    return entry.model_copy(update={"before": stage.cost, "after": predict(stage, entry)})


def _stage(swap: GGhostSwap, scan: Scan) -> Stage:
    stage = scan.stage(swap.blocks)
    assert stage is not None, swap.target
    return stage


def _is_taken(name: str, taken: Iterable[str]) -> bool:
    return any(within(name, module) for module in taken)


def _left_alone(stage: Stage, settings: GhostSettings, modules: Modules) -> str | None:
    """Why a stage is left alone, if it is; of what is excluded its first block may hold any, for it stays as it is."""
    if not stage.is_meant(settings.include, modules):
        return "is matched by no include pattern"
    if kept := stage.kept_by(settings.exclude, modules):
        name, pattern = kept
        if stage.is_meant([pattern], modules):
            return f"is excluded by {pattern!r}"
        return f"holds {name!r}, which is excluded" + (f" by {pattern!r}" if pattern != name else "")
    if stage.obstacle or stage.coupling is None:
        return stage.obstacle or "was not followed"
    return None


def _form(stage: Stage, settings: GhostSettings, modules: Modules) -> dict[str, Any]:
    """The form and ratio for one stage: the preset's, then the settings', then those set by name."""
    form = PRESETS[settings.preset].model_dump()
    ratio = settings.ratio
    named = [own for glob, own in settings.set.items() if stage.is_meant([glob], modules)]
    for own in (settings, *named):
        given = {key: getattr(own, key) for key in StageForm.model_fields}
        given["cheap"] = own.cheap if of_stages(own.cheap) else None
        form |= {key: value for key, value in given.items() if value is not None}
    for own in named:
        ratio = own.ratio or ratio
    return {**form, "ratio": ratio}
