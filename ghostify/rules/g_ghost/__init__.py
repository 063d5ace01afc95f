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

from typing import Any

import numpy as np
import torch
from torch import nn

from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.recipe import GhostSettings, StageForm
from ghostify.rules.base import GGhostSwap, Skip
from ghostify.rules.g_ghost.form import Form
from ghostify.rules.g_ghost.surgery import Surgery
from ghostify.scanning import Scan
from ghostify.stages import Modules, Stage, find_stages, name_stage
from ghostify.tracing import Traced

_IMAGENET = StageForm(
    cheap="1x1", cheap_input="slice", entry="slice", mix=1, mix_y1=True, end=True, group_width=1.0, keep="first"
)
_CIFAR = _IMAGENET.model_copy(update={"cheap_input": "full", "entry": "projection", "mix_y1": False})
PRESETS: dict[str, StageForm] = {
    "default": StageForm(**{name: GGhostSwap.model_fields[name].default for name in StageForm.model_fields}),
    "literal": _CIFAR.model_copy(update={"end": False}),
    "cifar": _CIFAR,
    "imagenet": _IMAGENET,
    "regnet": _IMAGENET.model_copy(update={"mix": 2, "group_width": 0.75}),
}
"""Forms of a stage: our own, Eq. 6-12 to the letter, and those of Tables 11-14, 15-16 and 17-18."""


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


def find(traced: Traced, swap: GGhostSwap) -> Stage:
    """The stage a swap means: the one found with these blocks, else the blocks as they are named.

    Raises ``PlanError`` where the blocks are no stage.
    """
    found = (stage for stage in find_stages(traced) if tuple(block.name for block in stage.blocks) == swap.blocks)
    return next(found, None) or name_stage(traced, swap.blocks)


def replacements(traced: Traced, swap: GGhostSwap) -> dict[int, nn.Module]:
    """By the ``id`` of each module of blocks 2 … n, what takes its place.

    Raises ``RewriteError`` when a thinned block does not do what the block does with the dropped channels silenced.
    """
    stage = find(traced, swap)
    with torch.random.fork_rng(devices=[]):  # what the new layers draw is the same each time, and nobody else's
        torch.default_generator.manual_seed(0)
        tail = Surgery(traced, stage, swap).tail()
    slot, *others = [traced.part(name) for name in stage.later]
    return {id(slot): tail} | {id(old): nn.Identity().train(old.training) for old in others}


def outputs_kept(traced: Traced, swap: GGhostSwap) -> dict[str, np.ndarray]:
    """By layer of the blocks after the first, which of its outputs a thin copy makes."""
    surgery = Surgery(traced, find(traced, swap), swap)
    return surgery.channels.outputs_kept(surgery.kept)


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
        form |= {key: value for key, value in given.items() if value is not None}
    for own in named:
        ratio = own.ratio or ratio
    return {**form, "ratio": ratio}
