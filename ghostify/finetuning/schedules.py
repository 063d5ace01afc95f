"""The learning rate of every step, as a function of its number alone: so nothing of it is saved, and a run that goes on
in the middle has the rates of one that was not stopped.

With t of T steps, the first W of which warm up, a peak p and u = (t - W) / (T - W), after the warm-up it is

    cosine      p (1 + cos πu) / 2                       (Loshchilov and Hutter, 2017, without restarts)
    linear      p (1 - u)
    step        p · drop^(milestones that t / T reached)
    constant    p
    one-cycle   cosines from p/25 up to p, down to p/250,000; the warm-up is the first (Smith and Topin, 2018)
"""

from __future__ import annotations

import math

from ghostify.recipe import TrainSettings

RISE, FALL = 25.0, 1e4
"""A one-cycle schedule starts at the peak over RISE, and ends at that over FALL."""


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """The rate of ``step`` (from 0) out of ``total``, by ``settings.schedule``, which begins with a warm-up.

    A warm-up takes ``settings.warmup`` of all steps, rounded, and rises in a line; the first step already moves, and
    the peak is reached right after it.
    """
    if settings.schedule == "one-cycle":
        return _one_cycle(step, total, settings)
    warm = round(settings.warmup * total)
    if step < warm:
        return settings.peak * (step + 1) / (warm + 1)
    if settings.schedule == "step":
        return settings.peak * settings.drop ** _passed(step, total, settings.milestones)
    if settings.schedule == "constant":
        return settings.peak
    passed = (step - warm) / max(1, total - warm)
    if settings.schedule == "linear":
        return settings.peak * (1 - passed)
    return _between(settings.peak, 0.0, passed)


def _passed(step: int, total: int, milestones: tuple[float, ...]) -> int:
    """How many milestones lie behind a step."""
    return sum(step >= round(share * total) for share in milestones)


def _one_cycle(step: int, total: int, settings: TrainSettings) -> float:
    """As ``torch.optim.lr_scheduler.OneCycleLR`` has it: the peak is a step, and so is the last rate."""
    lowest = settings.peak / RISE
    top, last = settings.warmup * total - 1, total - 1
    if step <= top:
        return _between(lowest, settings.peak, step / top if top else 1.0)
    return _between(settings.peak, lowest / FALL, min(1.0, (step - top) / (last - top)))


def _between(start: float, end: float, share: float) -> float:
    """Half a cosine from ``start`` to ``end``."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
