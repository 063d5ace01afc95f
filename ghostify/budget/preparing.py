"""All that is to be known before a budget is met: what may be chosen, what it costs, what harm it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ghostify.batches import Batch, join
from ghostify.budget.candidates import Numbered, candidates
from ghostify.budget.checking import Witness
from ghostify.budget.choosing import Choosing
from ghostify.budget.estimating import expected, proxies
from ghostify.budget.pricing import Prices, clocked, counted
from ghostify.budget.timing import Stopwatch
from ghostify.clock import Clock, Place, surroundings_in
from ghostify.errors import PlanError
from ghostify.fitting.calibration import Calibration
from ghostify.harm import Harms, measure_harms
from ghostify.planning import scan_for
from ghostify.recipe import BudgetSettings, GhostSettings
from ghostify.scanning import Scan
from ghostify.tracing import Recording

_ALL = "mixed"
"""The method whose rules a budget chooses among where none is asked for."""

Told = Callable[[int, int], None]
Watched = Callable[[str], AbstractContextManager[Told | None]]
"""By what is measured, who is told how much of it is done."""


def unwatched(what: str) -> AbstractContextManager[Told | None]:
    """Nobody is told."""
    return nullcontext()


def settings_under(ghost: GhostSettings) -> GhostSettings:
    """What may be touched under a budget: by all rules where no method was asked for, whatever it saves.

    Raises ``PlanError`` for a method that offers nothing to choose among.
    """
    given = ghost.model_fields_set
    method = ghost.method if "method" in given and ghost.method != "auto" else _ALL
    if method == "width":
        raise PlanError("Method width scales all layers alike, so a budget has nothing to choose; choose method mixed.")
    update: dict[str, Any] = {"method": method}
    if "min_saving" not in given:
        update["min_saving"] = 0.0  # the budget says what is to be saved, and the clock where nothing is
    return ghost.model_copy(update=update)


def prepared(
    recording: Recording,
    ghost: GhostSettings,
    budget: BudgetSettings,
    place: Place | None = None,
    *,
    images: Batch | None = None,
    held: Batch | None = None,
    harms: Harms | None = None,
    fitted: bool = True,
    device: torch.device | None = None,
    watched: Watched = unwatched,
) -> Choosing:
    """A budget for a recorded network, ready to be met.

    ``place`` is where time is measured (None: on the CPU).  ``images``, without labels, are what harm is measured on,
    where nobody has measured it before (``harms``); without either it is a proxy.  ``held`` are others, on which the
    result is judged.

    Raises ``PlanError`` where there is nothing to choose, ``RecipeError`` where time cannot be measured.
    """
    ghost = settings_under(ghost)
    scan = scan_for(recording, ghost, fitted)
    numbered = Numbered.of(candidates(scan, ghost, fitted=fitted))
    prices, stopwatch = counted(scan.cost, numbered), None
    if budget.measure and (budget.timed or not budget.target):
        here = place or Place(runtime=budget.runtime, threads=budget.threads, batch=budget.batch)
        stopwatch = Stopwatch(recording, here)
        prices = _with_time(prices, recording, scan, numbered, stopwatch, watched)
    if harms is None and images is not None and recording.whole:
        with watched("Measuring harm") as told:
            swaps = numbered.swaps(range(len(numbered.options)))
            harms = measure_harms(recording, images, swaps, device=device, told=told or _silent)
    witness = None
    if held is not None and recording.whole:
        witness = Witness(recording.model, scan, held, device or torch.device("cpu"))
    found = proxies(numbered, scan.cost) if harms is None else expected(numbered, harms) * _harder(witness, harms)
    curve = witness.curve if witness else None
    _require_kept_known(budget, witness, harms)
    return Choosing(recording, scan, ghost, budget, fitted, numbered, prices, found, harms, stopwatch, witness, curve)


def last_of(images: Any) -> Batch | None:
    """The images that a fit judges by, on which nothing was made; all where there are too few to hold any back."""
    if isinstance(images, Iterator | list):
        return None  # of a network in parts, whose parts are given other things
    found = Calibration.of(images)
    return join(found.judging or found.batches)


def _harder(witness: Witness | None, harms: Harms) -> float:
    """How much more harm an error does to images that the result is judged on than to those harm was measured on."""
    if witness is None or not harms.unsure:
        return 1.0
    return witness.judge.unsure / harms.unsure


def _require_kept_known(budget: BudgetSettings, witness: Witness | None, harms: Harms | None) -> None:
    """Refuse to keep what nobody can judge."""
    if budget.keep is None:
        return
    if witness is None or harms is None:
        raise PlanError(
            f"keep = {budget.keep} is judged on images, of a network that is recorded as a whole; give images, as in "
            "--data folder:PATH, or a target in place of it."
        )
    if budget.keep.kind == "accuracy" and witness.scores is None:
        raise PlanError(f"keep = {budget.keep}: the network gives no class scores; write a share, as in keep 0.99.")


def _with_time(
    prices: Prices, recording: Recording, scan: Scan, numbered: Numbered, stopwatch: Stopwatch, watched: Watched
) -> Prices:
    """Prices with those of the clock."""
    place = stopwatch.place
    around = surroundings_in(recording, place.batch)
    with watched(f"Timing pieces ({place})") as told:
        changes, own, layers = clocked(numbered, scan.sites, around, Clock(place), told or _silent)
    whole = stopwatch.alone()
    # Layers that take more by themselves than all of the network takes (maps that fit in a cache when it runs, say)
    # would promise to save more than there is.
    share = whole / max(whole, layers)
    times = {"changes": {**prices.changes, "latency": share * changes}, "own": {**prices.own, "latency": share * own}}
    return Prices(before={**prices.before, "latency": whole}, **times)


def _silent(done: int, total: int) -> None: ...
