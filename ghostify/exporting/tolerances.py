"""By how much a file may differ from its network: one table, by precision, and the reason for each entry.

    difference = max |file − network| / max |network|      of each output over all samples; the worst output counts
    agreement  = share of the samples that the file puts into the network's class, or into one tied with it

The difference is relative to the largest number of an output, not to each number: near zero every rounding error is
large beside the number that it stands in.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    """What a file of one precision may do.  Both are asked of fp32; below it, scores are judged by ``agreement`` alone,
    and all else (maps, boxes, numbers) by ``difference``.
    """

    difference: float
    agreement: float


TOLERANCES: dict[str, Tolerance] = {
    # A runtime adds up in another order: some 1e-6 by the end of a network.  What is wrong is wrong by far more.
    "fp32": Tolerance(1e-4, 1.0),
    # Steps of 2⁻¹¹ in every value, and a random walk over some hundred layers; one sample of 32 may stand on an edge.
    "fp16": Tolerance(2e-2, 0.95),
    # Steps of 2⁻⁸: eight times as coarse.
    "bf16": Tolerance(1e-1, 0.9),
    # 256 levels for each layer, chosen on some images.  What it costs in accuracy is told beside it.
    "int8": Tolerance(2.5e-1, 0.9),
}
"""By precision: what a file was asked to compute in or, where that is less, what the network computes in."""
TIE = 1e-4
"""Two classes are tied whose scores are nearer than this share of the sample's largest: rounding decides."""


ROUNDINGS = 4
"""A file in fp32 may differ by so many times what 64-bit floats make of its network, where that is more.

Some networks, deep ones with random weights above all, make much of rounding: an untrained DeepLabV3 is 1.2e-4 from
itself in 64-bit floats.  A file rounds differently and holds folded norms, so it may miss the exact outputs by as much
again on the other side, and by twice that in an unlucky sample.
"""
MOST = 1e-2
"""However much that is."""


def allowed(precision: str, rounding: float = 0.0) -> float:
    """The largest difference that a file may have whose network is ``rounding`` from itself in 64-bit floats."""
    usual = TOLERANCES[precision].difference
    return max(usual, min(ROUNDINGS * rounding, MOST)) if precision == "fp32" else usual


def judged_by_agreement(precision: str, has_scores: bool) -> bool:
    """Whether agreement alone decides, because single numbers are expected to differ."""
    return precision != "fp32" and has_scores
