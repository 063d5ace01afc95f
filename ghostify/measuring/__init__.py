"""Measurements on running networks: their latency side by side, and their accuracy."""

from ghostify.measuring.accuracy import Accuracy, agreement, evaluate
from ghostify.measuring.latency import Comparison, Latency, Timings, compare, latency, measure, speedup, timed
from ghostify.measuring.metrics import Metric, Score

__all__ = [
    "Accuracy",
    "Comparison",
    "Latency",
    "Metric",
    "Score",
    "Timings",
    "agreement",
    "compare",
    "evaluate",
    "latency",
    "measure",
    "speedup",
    "timed",
]
