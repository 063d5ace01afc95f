"""The ghost layers: plain modules that know nothing of graphs."""

from ghostify.ghosts.c_ghost import CGhost, CGhostLinear, check, intrinsic_maps
from ghostify.ghosts.g_ghost import GGhostStage
from ghostify.ghosts.mix import Mix, PooledBatchNorm2d

__all__ = [
    "CGhost",
    "CGhostLinear",
    "GGhostStage",
    "Mix",
    "PooledBatchNorm2d",
    "check",
    "intrinsic_maps",
]
