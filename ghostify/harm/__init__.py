"""What one change, fitted, does to a network's outputs: measured on images held out, cheaply enough for every layer.

Outputs are compared where a planner looks, at the end: a layer that is hard to imitate may not matter, and one that is
easy to imitate may ruin everything behind it.
"""

from ghostify.harm.measure import measure_harms
from ghostify.harm.proxies import guessed_harms
from ghostify.harm.result import Harms, read_harms

__all__ = ["Harms", "guessed_harms", "measure_harms", "read_harms"]
