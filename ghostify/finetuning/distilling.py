"""A teacher: a frozen network whose answers and feature maps another one learns from.

What its scores teach is in ``losses.py``.  Its feature maps are those at the outputs of stages, or of all blocks in
them, which the scan found (FitNets, Romero et al., 2015, where both networks have maps of one shape, as a network and
what was made of it do).  For maps z of the student and t of the teacher at K places,

    features = 1/K Σ  mean (z - t)² / var t

in shares of the variance, so that places of other scales count alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.batches import Batch, call
from ghostify.errors import ModelError, RecipeError
from ghostify.finetuning.losses import missed
from ghostify.names import within
from ghostify.recipe import TrainSettings
from ghostify.rewriting import Ghosted
from ghostify.scanning import Scan, scan
from ghostify.stages import Stage

Places = tuple[tuple[str, str], ...]
"""Where feature maps are compared: a module of the student beside one of the teacher, by name."""


@dataclass(frozen=True)
class Teacher:
    """A network that is run without gradients, and never changed."""

    module: nn.Module
    places: Places = ()

    @torch.no_grad()
    def taught(self, inputs: Batch) -> tuple[Any, dict[str, Tensor]]:
        """What it gives for a batch, and the maps at its places by name; in the precision that is set around it."""
        with maps_at(self.module, [theirs for _, theirs in self.places]) as maps:
            return call(self.module, inputs), maps

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[dict[str, Tensor]]:
        """What the student's modules at the places give, while it runs inside, by name and with their graphs."""
        with maps_at(student, [ours for ours, _ in self.places]) as maps:
            yield maps

    def missed(self, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
        """How far the student's maps are from the teacher's: the sum at the head of this file, a scalar."""
        return torch.stack([_missed_at(place, ours, theirs) for place in self.places]).mean()


def places_for(model: nn.Module | Ghosted, teacher: nn.Module, example: Batch, settings: TrainSettings) -> Places:
    """Where the feature maps of two networks are compared, as the settings ask; none where they ask for nothing.

    ``example`` is one input, by which networks are scanned.  Places are those of the teacher, where the student has
    modules of all these names; else the stages of one stand for those of the other in their order.  Raises
    ``RecipeError`` where the networks have no stages, or not as many.
    """
    if not settings.features:
        return ()
    theirs = _stages_of(scan(teacher, example))
    module = model.module if isinstance(model, Ghosted) else model
    if all(_has(module, name) for stage in theirs for name in _outputs(stage, settings)):
        ours = theirs
    else:
        ours = _stages_of(model.before if isinstance(model, Ghosted) else scan(model, example))
    pairs = _paired(ours, theirs, settings)
    return tuple((mine, other) for mine, other in pairs if _stands(module, mine, theirs))


@contextmanager
def maps_at(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What modules give while ``module`` runs inside, by name; of one that runs more than once, the last."""
    maps: dict[str, Tensor] = {}

    def kept(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            maps[name] = output

        return hook

    hooks = [module.get_submodule(name).register_forward_hook(kept(name)) for name in names]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def _stages_of(found: Scan) -> tuple[Stage, ...]:
    """The stages whose outputs are those of a module."""
    stages = tuple(stage for stage in found.stages if stage.blocks[-1].modules)
    if not stages:
        raise RecipeError(
            f"features compares the outputs of stages, and {found.network} has none (three or more blocks of one width "
            "and resolution); set features to 0."
        )
    return stages


def _outputs(stage: Stage, settings: TrainSettings) -> list[str]:
    """The modules that give what is compared of a stage."""
    blocks = stage.blocks if settings.features_at == "blocks" else stage.blocks[-1:]
    return [block.modules[-1] for block in blocks if block.modules]


def _paired(ours: Sequence[Stage], theirs: Sequence[Stage], settings: TrainSettings) -> list[tuple[str, str]]:
    """The places of two networks side by side.  Raises ``RecipeError`` where they do not have as many."""
    if len(ours) != len(theirs):
        raise RecipeError(
            f"features compares stage by stage, and the network has {len(ours)} stages, its teacher {len(theirs)}; "
            "set features to 0, or choose another teacher."
        )
    pairs: list[tuple[str, str]] = []
    for mine, other in zip(ours, theirs, strict=True):
        ends = _outputs(mine, settings), _outputs(other, settings)
        if len(ends[0]) != len(ends[1]):
            raise RecipeError(
                f"features compares block by block, and stage {mine.name} has {len(ends[0])} blocks, the teacher's "
                f"{other.name} {len(ends[1])}; choose features_at stages."
            )
        pairs += zip(*ends, strict=True)
    return pairs


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _stands(module: nn.Module, name: str, stages: Sequence[Stage]) -> bool:
    """Whether a module still gives what the block of its name gave: in a G-Ghost stage only the first and last do."""
    stage = next((stage for stage in stages if any(within(name, home) for home in stage.later[:-1])), None)
    if stage is None:
        return True
    return not any(isinstance(module.get_submodule(later), nn.Identity) for later in stage.later if _has(module, later))


def _missed_at(place: tuple[str, str], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Tensor:
    mine, other = place
    for name, maps in ((mine, ours), (other, theirs)):
        if not isinstance(maps.get(name), Tensor):
            raise ModelError(f"features compares tensors, and {name!r} gave none when the network ran; set it to 0.")
    found, wanted = ours[mine], theirs[other]
    if found.shape != wanted.shape:
        raise RecipeError(
            f"features compares maps of one shape, and {mine!r} gives {tuple(found.shape)}, the teacher's {other!r} "
            f"{tuple(wanted.shape)}; set features to 0, or choose another teacher."
        )
    return missed(found, wanted)
