"""What a fit did, in names and numbers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ghostify.recipe import FitMode
from ghostify.tables import Table


class LayerError(BaseModel):
    """One part that was fitted.

    Errors are mean squared errors of what the network gives there, behind the activation, over the original's variance,
    on images held out: 0 is the original, 1 is what a constant would do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    target: str
    kind: Literal["ghost", "layer", "stage"]
    before: float
    """With the weights as they were carried over."""
    error: float
    ridge: float
    """Strength of the ridge in units of the mean variance; infinite where the weights carried over stay, for they did
    best or their layer changes them before it uses them."""
    positions: int


class Fit(BaseModel):
    """A fit of a converted network to calibration images."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    how: FitMode
    images: int
    seconds: float
    layers: tuple[LayerError, ...]
    error: float
    """Squared difference of the network's outputs over their variance, on images held out."""
    unfitted: float
    """The same with the weights as they were carried over."""
    polished: float | None = None
    """The same after the descent of polish (as the mean over its batches), where there was one."""
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One sentence on it."""
        to = "images"
        if self.how == "weights":
            to = "images of noise, for want of real ones (expect much less than from those)"
        before = f"{100 * self.unfitted:.1f} % unfitted{self._after}"
        return (
            f"Weights fitted in closed form in {self.seconds:.0f} s to {self.images} {to}; of the outputs' variance "
            f"{100 * self.error:.1f} % is missed on images held out ({before})."
        )

    @property
    def _after(self) -> str:
        return "" if self.polished is None else f", {100 * self.polished:.1f} % after polish"

    def table(self) -> Table:
        """The parts, a row each."""
        rows = [
            [one.target, one.kind, f"{one.before:.3f}", f"{one.error:.3f}", f"{one.ridge:g}", str(one.positions)]
            for one in self.layers
        ]
        title = "What was fitted (error on images held out, in shares of the variance there)"
        return Table(
            title, ["layer", "kind", "carried over", "fitted", "ridge", "positions"], rows, frozenset({"kind"})
        )

    def __str__(self) -> str:
        return str(self.table())
