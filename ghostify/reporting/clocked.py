"""What the clock says of each swap, beside theory and count, and why the three differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ghostify.clock import Measured, SwapTime
from ghostify.rules import Swap
from ghostify.rules.rows import Ratios

_ALIKE = 0.05
"""By what share two rates may differ and still be told as one."""


def columns_of(clock: Measured | None) -> list[str]:
    """The columns that swaps have besides, where they were timed."""
    return ["as it runs", "clock"] if clock else []


def times_of(clock: Measured | None, kind: type[Swap], target: str) -> list[str]:
    """How many times fewer MACs a swap leaves in the form that runs, and how many times less time."""
    if clock is None:
        return []
    swap = clock.of(kind.model_fields["rule"].default, target)
    if swap is None:
        return ["", ""]
    fewer = f"{swap.macs_before / swap.macs_after:.2f}x" if swap.macs_after else ""
    return [fewer, f"{swap.before.ms / swap.after.ms:.2f}x" if swap.after.ms else ""]


def whole_row(clock: Measured, theory: Ratios) -> list[str]:
    """The whole network in its inference form."""
    whole = clock.whole
    times = [f"{part.median_ms:.2f} ms" for part in (whole.before, whole.after)]
    promised = [f"{theory.r_s:.2f}x", f"{theory.approx_r_s:.2f}x"]
    return [f"as it runs ({clock.place})", *times, f"{whole.speedup:.2f}x", *promised]


def why(clock: Measured | None) -> Iterator[str]:
    """Why theory, count and clock differ, in sentences."""
    if clock is None:
        return
    timed = [swap for swap in clock.swaps if swap.macs_before and swap.macs_after]
    if timed:
        yield _of_swaps(clock, timed)
    if clock.swaps:
        yield (
            f"By what its swaps save, the network as it runs would be {clock.predicted:.2f}x faster; the whole is "
            f"{clock.whole.speedup:.2f}x faster ({clock.low:.2f} to {clock.high:.2f}), and what no swap touches is as "
            "slow as before."
        )


def _of_swaps(clock: Measured, timed: Sequence[SwapTime]) -> str:
    before, after = (sum(getattr(swap, when).ms for swap in timed) for when in ("before", "after"))
    macs_before, macs_after = (sum(getattr(swap, f"macs_{when}") for swap in timed) for when in ("before", "after"))
    because = _because(macs_before / before / 1e6, macs_after / after / 1e6)
    return (
        f"On {clock.place}, what was swapped takes {after:.3g} ms where it took {before:.3g} ms "
        f"({before / after:.2f}x), for {macs_before / macs_after:.2f}x fewer multiply-adds as it runs: {because}."
    )


def _because(was: float, now: float) -> str:
    """Why time shrinks by another ratio than multiply-adds do, by the rates (10^9 a second) before and after."""
    if abs(now / was - 1) < _ALIKE:
        return f"it computes as fast as before, {now:.3g} billion a second"
    if now < was:
        return (
            f"it computes {now:.3g} billion a second instead of {was:.3g}, because smaller layers keep a processor "
            "less busy and move as much memory"
        )
    return f"it computes {now:.3g} billion a second instead of {was:.3g}, because what was swapped was the slower kind"
