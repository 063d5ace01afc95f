"""What a fit has to say about itself, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized

from ghostify.fitting.agenda.correspondence import Part
from ghostify.fitting.kinds.choice import keeps_filters

WORSE = "The fit made the outputs worse on images that it had not seen, so the weights stay as carried over."


def on_starved(starved: Sequence[str]) -> list[str]:
    """One sentence on the parts with too few positions, each told by its name, its unknowns and its positions."""
    if not starved:
        return []
    others = _others(starved, " have too few")
    return [
        f"{starved[0]} to fit them to{others}: a stronger ridge holds it to its trained weights; more images "
        "would serve it better."
    ]


def on_filters(parts: Sequence[Part]) -> list[str]:
    """One sentence on the ghost modules of which the cheap operations alone are fitted."""
    kept = [part for part in parts if keeps_filters(part)]
    if not kept:
        return []
    primary = type(kept[0].module.primary).__name__
    return [
        f"{kept[0].name}{_others(kept)} keeps its primary filters, because a {primary} changes them before it "
        "convolves; its cheap operations are fitted to what those give."
    ]


def on_unfitted(skipped: Mapping[str, str]) -> list[str]:
    """One sentence on what was replaced and keeps the weights that were carried over: reasons by name."""
    if not skipped:
        return []
    name, reason = next(iter(skipped.items()))
    return [f"{name}{_others(skipped)} keeps the weights that were carried over, because it {reason}."]


def _others(all_of_them: Sized, have: str = "") -> str:
    """A parenthesis on how many there are besides the first."""
    return f" (and {len(all_of_them) - 1} more{have})" if len(all_of_them) > 1 else ""
