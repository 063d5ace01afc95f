"""What a fit did, in names and numbers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ghostify.recipe import FitMode
from ghostify.tables import Table

MOST = 0.5
"""The share of the outputs' variance from which on little is left of the network."""


class LayerError(BaseModel):
    """One part that was fitted.

    Errors are mean squared errors of what the network gives there, behind the activation, over the original's variance,
    on images that nothing was fitted to: 0 is the original, 1 is what a constant would do.  None where there were no
    such images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    target: str
    kind: Literal["ghost", "layer", "stage"]
    before: float | None
    """With the weights as they were carried over."""
    error: float | None
    ridge: float
    """Strength of the ridge in units of the mean variance; infinite where the weights carried over stay, for they did
    best or their layer changes them before it uses them."""
    positions: int


class Fit(BaseModel):
    """A fit of a converted network to calibration images."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    how: FitMode
    images: int
    """Calibration images."""
    judged: int = 0
    """How many of them nothing was fitted to; errors are those on these."""
    seconds: float
    layers: tuple[LayerError, ...]
    error: float | None
    """Squared difference of the network's outputs over their variance; None where there were no images to judge by."""
    unfitted: float | None
    """The same with the weights as they were carried over."""
    polished: float | None = None
    """The same after the descent of polish, where there was one."""
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence on it."""
        to = "images"
        if self.how == "weights":
            to = "images of noise, because there are no real ones (expect much less than from those)"
        fitted = f"Weights fitted in closed form in {self.seconds:.0f} s to {self.images - self.judged} {to}"
        if self.error is None or self.unfitted is None:
            return f"{fitted}; how well was not measured, because no image was left to judge by."
        after = "" if self.polished is None else f", {_percent(self.polished)} after polish"
        return (
            f"{fitted}; of the outputs' variance {_percent(self.error)} is missed on {self.judged} others "
            f"({_percent(self.unfitted)} unfitted{after}).{self._alarm}"
        )

    @property
    def _alarm(self) -> str:
        """A sentence where the fit left little of the network; else empty."""
        error = self.error if self.polished is None else self.polished
        if error is None or error < MOST:
            return ""
        return " That is more than half of what the network gave: train it before you use it, or choose milder swaps."

    def table(self) -> Table:
        """The parts, a row each."""
        rows = [
            [one.target, one.kind, _share(one.before), _share(one.error), f"{one.ridge:g}", str(one.positions)]
            for one in self.layers
        ]
        title = "What was fitted (error on images not fitted to, in shares of the variance there)"
        return Table(
            title, ["layer", "kind", "carried over", "fitted", "ridge", "positions"], rows, frozenset({"kind"})
        )

    def __str__(self) -> str:
        return str(self.table())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(error: float | None) -> str:
    return "not measured" if error is None else f"{error:.3f}"
