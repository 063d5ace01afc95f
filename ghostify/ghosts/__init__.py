"""The ghost layers: plain modules that know nothing of graphs."""

from ghostify.ghosts.c_ghost import CGhost, CGhostLinear, check, intrinsic_maps

__all__ = ["CGhost", "CGhostLinear", "check", "intrinsic_maps"]
