"""What the short words of the tables mean, each once; below a table stand those that occur in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

TERMS: tuple[tuple[str, str, str], ...] = (
    ("MACs", "MACs", "multiply-adds for one input"),
    ("activations|acts", "activations, acts", "numbers that the convolutions and linear layers give out"),
    (r"\d+→\d+", "16→32 3x3 /2 g8", "channels in and out, kernel size, /stride, g groups"),
    ("@", "3 x 16 @ 32x32", "blocks x channels @ size of the maps"),
    ("stem", "stem", "the layer that reads the input"),
    ("pooled", "pooled", "works on maps of 1x1, behind a pooling"),
    ("depthwise", "depthwise", "one filter for each channel"),
    (r"s=\d+", "s", "one map in s is computed; the others are made from those"),
    (r"d=\d+", "d", "size of the filters that make them"),
    (r"m=\d+", "m", "so many maps are computed, in place of one in s"),
    (r"pw\d*", "pw", "a 1x1 convolution over all computed maps makes them, or helps to (pw8: of rank 8)"),
    (r"λ=[\d.]+", "λ", "share of a stage's channels that are made cheaply from its first block's output, Y1"),
    (r"mix\d(\+Y1)?", "mix", "pooled maps of the blocks (and, with +Y1, of Y1) are added to what is made"),
    ("end", "end", "the last block keeps its full width"),
    (r"width=[\d.]+|thin=[\d.]+", "width, thin", "share of the channels that is kept; thin: only inside blocks"),
    ("r_c|r_s", "r_c, r_s", "how many times fewer parameters and MACs a layer has, counted"),
    ("r_p|r_f", "r_p, r_f", "how many times fewer parameters and MACs a stage has, counted"),
    ("theory", "theory", "how many times fewer the papers' formulas promise"),
    (r"approx\.", "approx.", "the same by their short forms, which leave small terms out"),
    (r"Eq\.", "Eq. 13", "the same as the paper prints it, which leaves small terms out"),
    ("speed-up", "speed-up", "how many times faster than the baseline: the median of what turns and set-ups gave"),
    ("verdict", "verdict", "faster or slower only where all of the interval is, by more than 1 %"),
    ("memory", "memory", "the most that a run takes beyond the runtime itself: weights, maps and workspaces"),
    ("latency", "latency", "time that one run takes, measured side by side"),
    ("agreement", "agreement", "share of test images that both networks put into the same class"),
    ("m", "m 90%", "so many linear combinations of a layer's maps carry 90 % of the variance of what it gives"),
    ("ridge", "ridge", "how strongly the fit was held back, found on images left out"),
    ("positions", "positions", "places in the maps that the fit looked at"),
    ("similarity", "similarity", "mean correlation of each map with the one most like it; 1 is equal"),
)
"""(pattern of a word in a table, the word as it is explained, its meaning)."""


def explained(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A line for each term that occurs in the cells or above them; empty where none does."""
    words = {word for cell in (*columns, *(cell for row in rows for cell in row)) for word in cell.split()}
    found = [(name, meaning) for pattern, name, meaning in TERMS if any(re.fullmatch(pattern, word) for word in words)]
    return "\n".join(f"  {name}: {meaning}" for name, meaning in found)
