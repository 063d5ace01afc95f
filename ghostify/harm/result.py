"""The harm of every candidate of a network, as a value: what a planner adds up, and a report shows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ghostify.errors import PlanError, did_you_mean
from ghostify.ghosts import intrinsic_maps
from ghostify.recipe import read_yaml, validated
from ghostify.rules import CGhostSwap, Swap
from ghostify.tables import Table

FORMAT = 1
_NOTHING = 1e-12
"""A harm or a share to stand for zero, of which one can still take the logarithm."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerHarm(_Value):
    """A layer whose ghosts are mixtures of its intrinsic maps, of whichever number m these are."""

    target: str
    maps: int
    """Output maps, n."""
    groups: int = 1
    carried: tuple[float, ...]
    """The rank curve: by number of intrinsic maps (of a group) from 1 on, the share of its outputs' weighted variance
    that the best so many combinations carry.
    """
    measured: dict[int, float]
    """By m, what the network's outputs miss with all later layers as they were."""
    compensation: float
    """The share of that which is left once later layers are fitted, too."""

    def missed(self, m: int) -> float:
        """The share of the outputs' variance that m intrinsic maps do not carry."""
        each = min(m // self.groups, len(self.carried))
        return 1.0 if each < 1 else max(0.0, 1 - self.carried[each - 1])

    def of(self, m: int) -> float:
        """What the network's outputs miss with m intrinsic maps, once later layers are fitted."""
        if m >= self.maps:
            return 0.0
        if m in self.measured:
            return self.measured[m] * self.compensation
        points = [(self.missed(rank), harm) for rank, harm in self.measured.items()]
        return self.compensation * between(points, self.missed(m))


class FormHarm(_Value):
    """Any other change: a depthwise ghost, a thin block, a stage."""

    target: str
    form: str
    """The settings of the swap."""
    measured: float
    compensation: float

    @property
    def harm(self) -> float:
        return self.measured * self.compensation


class Harms(_Value):
    """What each candidate change alone, fitted, does to the outputs of one network."""

    format: int = FORMAT
    network: str
    unit: Literal["KL", "error", "proxy"]
    """KL: divergence of the softmax, in nats; error: squared error in shares of the outputs' variance; proxy: a share
    of the layers' own outputs, weighed by MACs, for which no image was looked at.
    """
    images: int
    """That harm was measured on."""
    fitted: int
    """Other images, that changed and later layers were fitted to."""
    unsure: float | None = None
    """How unsure the original is of those images (``outputs``); None in files of earlier versions."""
    layers: tuple[LayerHarm, ...]
    forms: tuple[FormHarm, ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def of(self, swap: Swap, width: float = 1.0) -> float:
        """The harm of a swap; harms of the swaps of a plan add up to about the harm of the plan.

        ``width``: the share of a layer's maps that a thinner block leaves it, where the swap is of what is left.
        Raises ``PlanError`` for a swap that was no candidate.
        """
        if is_mixture(swap):
            layer = self._layers.get(swap.target)
            if layer is not None:
                return layer.of(round(_intrinsic(swap, layer, width) / width))
        found = self._forms.get((swap.target, form_of(swap)))
        if found is None:
            known = [*self._layers, *(target for target, _ in self._forms)]
            raise PlanError(
                f"The harm of {swap.target!r} as {swap.settings} was not measured; give it to measure_harms as a "
                f"candidate.{did_you_mean(swap.target, known)}"
            )
        return found.harm

    def total(self, swaps: Sequence[Swap]) -> float:
        """What all swaps of a plan together are expected to do to the outputs."""
        return sum(self.of(swap) for swap in swaps)

    @cached_property
    def _layers(self) -> dict[str, LayerHarm]:
        return {layer.target: layer for layer in self.layers}

    @cached_property
    def _forms(self) -> dict[tuple[str, str], FormHarm]:
        return {(form.target, form.form): form for form in self.forms}

    def table(self) -> Table:
        """A line for each layer: what half, a quarter and an eighth of its maps carry, and the harm of keeping them."""
        rows = []
        for layer in self.layers:
            counts = [max(1, layer.maps // parts) for parts in (2, 4, 8)]
            rows.append(
                [
                    layer.target,
                    str(layer.maps),
                    *(f"{1 - layer.missed(m):.1%}" for m in counts),
                    *(f"{layer.of(m):.4f}" for m in counts),
                    f"{layer.compensation:.2f}",
                ]
            )
        title = f"{self.network}: harm ({self.unit}) on {self.images} images held out"
        columns = ["layer", "maps", "n/2 carry", "n/4", "n/8", "harm n/2", "harm n/4", "harm n/8", "left"]
        note = (
            "carry: share of the outputs' variance; harm: what the network's outputs miss; left: share of a harm that "
            "remains once later layers are fitted."
        )
        return Table(title, columns, rows, note="\n".join([note, *self.notes]))

    def __str__(self) -> str:
        return str(self.table())


def is_mixture(swap: Swap) -> bool:
    """Whether a full pointwise convolution makes a swap's ghosts, so that only the number m of intrinsic maps counts.

    Depthwise filters beside it buy next to nothing, so the same harm stands for both.
    """
    return isinstance(swap, CGhostSwap) and swap.cheap.pointwise == "full" and swap.parts == "linear"


def form_of(swap: Swap) -> str:
    """What tells one swap of a target from another: its settings without names and costs."""
    apart = {"target", "geometry", "before", "after", "blocks", "inner", "ordered"}
    return json.dumps(swap.model_dump(mode="json", exclude=apart, exclude_none=True), sort_keys=True)


def between(points: Sequence[tuple[float, float]], missed: float) -> float:
    """The harm at a share missed, given some (share, harm): by powers of it, one from each point to the next.

    Zero where nothing is missed; beyond the last points as the nearest two suggest.
    """
    if missed <= _NOTHING or not points:
        return 0.0
    logs = sorted((math.log(max(x, _NOTHING)), math.log(max(y, _NOTHING))) for x, y in points)
    x = math.log(missed)
    spans = [span for span in pairwise(logs) if span[1][0] > span[0][0]]
    if not spans:  # of one point: a share missed does its share of harm
        return math.exp(logs[0][1] + x - logs[0][0])
    (left, low), (right, high) = next((span for span in spans if x <= span[1][0]), spans[-1])
    return math.exp(low + (high - low) * (x - left) / (right - left))


def read_harms(path: str | Path) -> Harms:
    """The harms in a JSON file.  Raises ``PlanError``."""
    return validated(Harms, read_yaml(Path(path), PlanError, "Harms"), f"Harms {str(path)!r}", PlanError)


def _intrinsic(swap: Swap, layer: LayerHarm, width: float) -> int:
    assert isinstance(swap, CGhostSwap)
    return swap.m or intrinsic_maps(round(layer.maps * width), swap.s, layer.groups)
