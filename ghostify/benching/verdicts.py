"""Whether one network is faster than another, or the difference is noise.

What disturbs a machine for a while disturbs all that take turns alike, and cancels in a ratio.  One thing does not: two
set-ups of the very same network differ, because their weights and maps lie at other places in memory.  They differ by
2 % where the turns alone say ± 0.5 %.  So each network is set up S times, and the set-ups are the sample:

    y(t, s) = log time(t, s) − mean over s' of log time(t, s')      turn t, set-up s, of any network
    e(s)    = median over t of y(t, s)                              how much slower a set-up is than the average
    m(n)    = mean of e(s) over the S set-ups of network n
    v       = Σ over n and s of (e(s) − m(n))² / (N (S − 1))        one variance of all N networks

    log speed-up of n over the baseline b  =  m(b) − m(n)  ±  q √(2 v / S)

with q the quantile of Student's t for 95 % on both sides and N (S − 1) degrees of freedom: a one-way analysis of
variance, as any textbook has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
from scipy.special import stdtrit

Verdict = Literal["baseline", "faster", "slower", "no difference"]
Numbers = Sequence[Sequence[float]]

CONFIDENCE = 0.95
LEAST = 0.01
"""A smaller difference is none: what runs before a network in its turn may make as much."""


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the baseline, and between what numbers that lies with a confidence of 95 %."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """``faster`` or ``slower`` only where the whole interval is, and by more than ``LEAST``."""
        if self.low > 1 and self.ratio > 1 + LEAST:
            return "faster"
        if self.high < 1 and self.ratio < 1 / (1 + LEAST):
            return "slower"
        return "no difference"


def speedups(ms: Mapping[str, Numbers]) -> dict[str, Speedup]:
    """Of each network over the first, from the times of its set-ups: network → set-up → turn → milliseconds.

    Each network must be set up equally often, at least twice, and all must have taken the same turns.
    """
    effects = _effects(ms)
    means = effects.mean(1)
    half = _half_width(effects)
    found = {name: _speedup(means[0] - mean, half) for name, mean in zip(ms, means, strict=True)}
    return found | {next(iter(ms)): Speedup(1.0, 1.0, 1.0)}


def _effects(ms: Mapping[str, Numbers]) -> numpy.ndarray:
    """e(s) above: networks x set-ups."""
    logs = numpy.log(numpy.array(list(ms.values())))
    in_turn = logs - logs.mean((0, 1))  # what all suffer in a turn is gone
    # A median, because a run that was interrupted says nothing of the network.
    return numpy.median(in_turn, axis=2)


def _half_width(effects: numpy.ndarray) -> float:
    """Half of the interval of a difference of two networks' means."""
    networks, setups = effects.shape
    freedom = networks * (setups - 1)
    # One variance of all networks: three set-ups of each would tell too little of their own.
    variance = float(((effects - effects.mean(1, keepdims=True)) ** 2).sum()) / freedom
    quantile = float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
    return quantile * math.sqrt(2 * variance / setups)


def _speedup(difference: float, half: float) -> Speedup:
    return Speedup(math.exp(difference), math.exp(difference - half), math.exp(difference + half))
