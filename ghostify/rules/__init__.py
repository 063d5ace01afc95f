"""The rewrite rules, one file each: when a rewrite applies, what it costs, what it builds."""

from ghostify.rules import c_ghost, g_ghost, width
from ghostify.rules.base import CGhostSwap, GGhostSwap, Skip, Swap, WidthSwap

__all__ = ["CGhostSwap", "GGhostSwap", "Skip", "Swap", "WidthSwap", "c_ghost", "g_ghost", "width"]
