"""ghostify: rewrite any CNN with the GhostNets papers' modules, keeping its trained weights."""

__version__ = "0.1.0"
