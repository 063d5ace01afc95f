"""Where a call of a layer is compared with its original: at the sum that both networks make of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from ghostify.fitting.agenda.correspondence import Call, Matching, Part
from ghostify.fitting.agenda.epilogue import Epilogue, bare, epilogue, without_addition
from ghostify.tracing import Traced


@dataclass(frozen=True)
class Aim:
    """Where one call of a layer is compared with its original: nodes of either network, and which channels."""

    theirs: Epilogue
    ours: Epilogue
    kept: Tensor | None
    """Channels of the original that the layer makes; None for all."""
    added: fx.Node | None
    """Node of the *converted* network that is added, where it runs before the layer does."""
    added_there: fx.Node | None
    """Else that of the original."""

    @staticmethod
    def of(original: Traced, matching: Matching, part: Part, call: Call, compensate: bool) -> Aim:
        """One call of a convolution, linear layer or C-Ghost module."""
        theirs = epilogue(original, call.twin, part.twins)
        ours = epilogue(matching.converted, call.output, part.outputs)
        # Where only one of the networks has a norm or an addition there, their sums are not of the same things.
        if theirs.form != ours.form:
            theirs, ours = bare(theirs), bare(ours)
        if not compensate:
            theirs, ours = without_addition(theirs), without_addition(ours)
        known = ours.other is not None and matching.order[ours.other] < matching.order[call.begin]
        return Aim(theirs, ours, part.kept, ours.other if known else None, None if known else theirs.other)

    @property
    def needed(self) -> list[fx.Node]:
        """Nodes of the original whose values the fit asks for."""
        return [self.theirs.sum, *([self.added_there] if self.added_there is not None else [])]
