"""The columns of the table of layers, each told once: the terminal, the CSV and the page show what this list says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ghostify.analysis.findings import LayerRedundancy
from ghostify.budget_result import Chosen, shown
from ghostify.tables import quantity

CARRIED = (0.9, 0.99)
"""Shares of a layer's variance of which the table says how many maps carry them."""
_OF_SPLITS = "error of ghosts, split with ratio s"
_OF_FILTERS = "error of one filter of size d"
_OF_RANKS = "rank curve"


@dataclass(frozen=True)
class Column:
    """What one column says of a layer, and where."""

    value: Callable[[LayerRedundancy], Any]
    """As the CSV has it; None for nothing."""
    key: str = ""
    """Its heading in the CSV; none there if empty."""
    head: str = ""
    """Its heading on the page, and in the terminal where it is ``printed``; on neither if empty."""
    printed: bool = False
    left: bool = False
    """Whether it is text, which begins at the left."""
    group: str = ""
    """What the page writes above it and its neighbours."""
    about: str = ""
    """What the page says when somebody points at the heading."""
    text: Callable[[LayerRedundancy], str] | None = None
    """What people read; None for the value itself."""
    hint: Callable[[LayerRedundancy], str] = lambda layer: ""
    """What the page says when somebody points at a cell."""
    strength: Callable[[LayerRedundancy], float] | None = None
    """How strongly the page colours a cell, from 0 to 1; None for not at all."""
    mark: str = ""
    """How the page draws a cell, where not as plain text: link, chip, badge (of the advice) or chosen."""

    def shown(self, layer: LayerRedundancy) -> str:
        """The cell of a layer as people read it."""
        if self.text is not None:
            return self.text(layer)
        value = self.value(layer)
        if isinstance(value, float):
            return f"{value:.2f}" if math.isfinite(value) else "–"
        return "" if value is None else str(value)


def layer_columns(layers: Sequence[LayerRedundancy]) -> list[Column]:
    """The columns for these layers, from left to right."""
    sizes = sorted({one.d for layer in layers for one in layer.filters})
    ratios = sorted({one.s for layer in layers for one in layer.splits})
    return [
        *_of_the_layer(layers),
        *map(_rank, CARRIED),
        *(_filter(d) for d in sizes),
        *(_other_than_shown(f"mse_d{d}", "filters", "d", d, "mse") for d in sizes),
        *(_split(s) for s in ratios),
        *(_other_than_shown(f"spread_s{s}", "splits", "s", s, "spread") for s in ratios),
        *_of_the_advice(),
        *(_of_the_plan() if any(layer.form for layer in layers) else ()),
        *(_of_the_choice(layers) if any(layer.chosen for layer in layers) else ()),
    ]


def _of_the_layer(layers: Sequence[LayerRedundancy]) -> list[Column]:
    order = {layer.name: number for number, layer in enumerate(layers, 1)}
    return [
        Column(attrgetter("name"), "layer", "layer", True, left=True, hint=attrgetter("name"), mark="link"),
        Column(lambda layer: order[layer.name], head="no.", about="order in the network"),
        Column(attrgetter("geometry"), "geometry", "geometry", True, left=True),
        Column(attrgetter("maps"), "maps", "maps"),
        Column(lambda layer: layer.size[0], "height"),
        Column(lambda layer: layer.size[1], "width"),
        Column(
            lambda layer: math.prod(layer.size),
            head="size",
            about="height and width of a map; sorted by area",
            text=lambda layer: "×".join(map(str, layer.size)),
        ),
        Column(attrgetter("cost.macs"), "macs"),
        Column(attrgetter("cost.params"), "params"),
        Column(
            attrgetter("share"),
            "share",
            "MACs",
            True,
            about="share of the MACs of the network",
            text=lambda layer: f"{layer.share:.1%}",
            hint=lambda layer: f"{quantity(layer.cost.macs)} MACs, {quantity(layer.cost.params)} parameters",
        ),
        Column(
            attrgetter("similarity"),
            "similarity",
            "similarity",
            True,
            about="mean over maps of the largest correlation with another map",
        ),
        Column(
            attrgetter("redundancy"),
            "redundancy",
            "redundancy",
            about="how much of the variance of a map a filter of one other map explains, the mean over maps",
            strength=attrgetter("redundancy"),
            mark="chip",
        ),
    ]


def _rank(share: float) -> Column:
    """How many combinations of maps carry a share of the variance; the fewer of all maps, the stronger in colour."""

    def needed(layer: LayerRedundancy) -> int | None:
        return layer.needed(1 - share) if layer.carried else None

    return Column(
        needed,
        f"rank_{share * 100:g}",
        f"m {share:.0%}",
        True,
        group=_OF_RANKS,
        about=f"the best m linear combinations of the maps carry {share:.0%} of what the layer gives",
        hint=lambda layer: f"{needed(layer)} of {layer.maps}" if layer.carried else "",
        strength=lambda layer: 1 - (needed(layer) or layer.maps) / layer.maps,
    )


def _filter(d: int) -> Column:
    return _error(f"error_d{d}", f"d={d}", _OF_FILTERS, _one_of("filters", "d", d))


def _split(s: int) -> Column:
    split = _one_of("splits", "s", s)

    def with_spread(layer: LayerRedundancy) -> str:
        found = split(layer)
        return "" if found is None else f"{found.error:.3f} ± {found.spread:.3f}"

    return _error(f"error_s{s}", f"s={s}", _OF_SPLITS, split, with_spread)


def _error(
    key: str,
    head: str,
    group: str,
    found: Callable[[LayerRedundancy], Any],
    hint: Callable[[LayerRedundancy], str] = lambda layer: "",
) -> Column:
    """An error over variance, stronger in colour the smaller it is."""

    def error(layer: LayerRedundancy) -> float | None:
        return getattr(found(layer), "error", None)

    def strength(layer: LayerRedundancy) -> float:
        value = error(layer)
        return 0.0 if value is None else 1 - value

    return Column(error, key, head, True, group=group, hint=hint, strength=strength)


def _other_than_shown(key: str, field: str, name: str, value: int, what: str) -> Column:
    """What only the CSV tells of a size of filters or of a split."""
    found = _one_of(field, name, value)
    return Column(lambda layer: getattr(found(layer), what, None), key)


def _one_of(field: str, name: str, value: int) -> Callable[[LayerRedundancy], Any]:
    """From a layer to the one of its ``field`` whose ``name`` has a value; to None where there is none."""
    return lambda layer: next((one for one in getattr(layer, field) if getattr(one, name) == value), None)


def _of_the_advice() -> list[Column]:
    return [
        Column(attrgetter("advice.s"), "advised_s"),
        Column(attrgetter("advice.d"), "advised_d"),
        Column(attrgetter("advice.m"), "advised_m"),
        Column(attrgetter("advice.reason"), "reason"),
        Column(
            lambda layer: layer.advice.before.macs - layer.advice.after.macs,
            head="advice",
            printed=True,
            left=True,
            about="sorted by the MACs that it saves",
            text=attrgetter("advice.short"),
            hint=attrgetter("advice.reason"),
            mark="badge",
        ),
    ]


def _of_the_plan() -> list[Column]:
    return [
        Column(
            attrgetter("form"),
            "chosen",
            "chosen",
            True,
            left=True,
            about="what the plan of the run made of the layer",
            text=lambda layer: layer.form or "keep",
            mark="chosen",
        )
    ]


def _of_the_choice(layers: Sequence[LayerRedundancy]) -> list[Column]:
    """What a plan under a budget knew: what a layer cost, what it costs now, and the harm expected of that."""
    quantity = next(layer.chosen.quantity for layer in layers if layer.chosen)
    head = {"latency": "ms", "macs": "MACs now"}.get(quantity, quantity)

    def said(what: Callable[[Chosen], float]) -> Callable[[LayerRedundancy], float | None]:
        return lambda layer: None if layer.chosen is None else what(layer.chosen)

    def costs(layer: LayerRedundancy) -> str:
        if layer.chosen is None:
            return ""
        return f"{shown(quantity, layer.chosen.before)} → {shown(quantity, layer.chosen.taken.cost)}"

    harm = said(lambda chosen: chosen.taken.harm)
    return [
        Column(said(lambda chosen: chosen.before), f"{quantity}_before"),
        Column(said(lambda chosen: chosen.taken.cost), f"{quantity}_planned"),
        Column(
            said(lambda chosen: chosen.before - chosen.taken.cost),
            head=head,
            printed=True,
            about="what the layer cost, and what it costs in the plan; sorted by what that saves",
            text=costs,
        ),
        Column(
            harm,
            "harm",
            "harm",
            True,
            about="what the choice alone was expected to do to the outputs of the network",
            text=lambda layer: "" if layer.chosen is None else f"{harm(layer):.2g}",
        ),
    ]
