"""What fits a part, by its kind, and how large that problem is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from ghostify.fitting.agenda.correspondence import Part
from ghostify.fitting.interpreter import Interpreter
from ghostify.fitting.kinds.cheap import cheap_unknowns
from ghostify.fitting.kinds.features import unknowns
from ghostify.fitting.kinds.ghosts import GhostFit, solved_for
from ghostify.fitting.kinds.layers import LayerFit
from ghostify.fitting.kinds.pointwise import PointwiseFit, is_mixed_alone
from ghostify.fitting.kinds.stages import StageFit
from ghostify.fitting.kinds.targets import Targets
from ghostify.leastsquares.sampling import Block


class Fitting(Protocol):
    """What fits one part."""

    def fit(self) -> float:
        """Fit it in place; the strength of the ridge."""
        ...

    def outputs(self, block: Block) -> Tensor:
        """What the part as it is gives at a block's positions, (N, n)."""
        ...


def fitting_of(part: Part, walk: Interpreter, targets: Targets, joint: bool) -> Fitting:
    """What fits a part of the converted network, which ``walk`` has brought to its inputs.

    ``joint``: whether the intrinsic maps of a ghost with a full pointwise convolution serve all its outputs.
    """

    def inputs(block: Block) -> Tensor:
        read: Tensor = walk.values[block.batch][part.calls[block.call].inputs]
        return read.float()  # as the weights are, also where autocast has made it less

    def pooled(block: Block) -> Sequence[Tensor]:
        return [walk.values[block.batch][node].float() for node in part.calls[block.call].pooled]

    if part.kind == "ghost":
        assert part.start is not None, "or it is no ghost"
        if joint and is_mixed_alone(part.module):
            return PointwiseFit(part.module, inputs, targets, part.start, joint)
        return GhostFit(part.module, inputs, targets, part.start, joint)
    if part.kind == "stage":
        return StageFit(part.module, inputs, pooled, targets)
    return LayerFit([call.module for call in part.calls], inputs, targets)


def keeps_filters(part: Part) -> bool:
    """Whether a part is a ghost of which the cheap operations alone are fitted."""
    return part.kind == "ghost" and not solved_for(part.module.primary)


def size_of(part: Part) -> tuple[int, int]:
    """Unknowns per filter, and filters."""
    if part.kind == "stage":
        return _size_of_stage(part)
    if keeps_filters(part):
        return cheap_unknowns(part.module), part.module.out_channels
    layer = part.module.primary if part.kind == "ghost" else part.module
    trained = part.module.out_channels if part.kind == "ghost" else len(layer.weight)
    groups = getattr(layer, "groups", 1)
    return unknowns(layer.weight[0].numel(), trained // groups), len(layer.weight)


def _size_of_stage(part: Part) -> tuple[int, int]:
    stage = part.module
    convs = [layer for layer in stage.cheap.modules() if isinstance(layer, nn.Conv2d)]
    convolved = sum(conv.weight[0].numel() for conv in convs)
    pooled = 0 if stage.mix is None else stage.mix.in_channels
    return convolved + pooled, 0 if part.kept is None else len(part.kept)
