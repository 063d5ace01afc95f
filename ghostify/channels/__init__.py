"""Which channels hang together in a part of a network, and what is left of it with fewer of them.

``follow`` reads a part of the graph into ``Channels``; its ``coupling`` is the same in names and numbers, enough to
predict what a thinner copy costs; ``thinned`` makes that copy.  ``Ordering`` lets channels of a whole network change
places.
"""

from ghostify.channels.blocks import InnerBlock, inner_blocks
from ghostify.channels.coupling import Coupling, Segment, Vector, Weight
from ghostify.channels.grouping import Channels, Unreadable
from ghostify.channels.idle import idle_modules, outermost
from ghostify.channels.ordering import Ordering
from ghostify.channels.propagation import follow
from ghostify.channels.rewiring import rewired, stands_in
from ghostify.channels.thinning import narrowed, renumbered, silenced, sliced, thinned

__all__ = [
    "Channels",
    "Coupling",
    "InnerBlock",
    "Ordering",
    "Segment",
    "Unreadable",
    "Vector",
    "Weight",
    "follow",
    "idle_modules",
    "inner_blocks",
    "narrowed",
    "outermost",
    "renumbered",
    "rewired",
    "silenced",
    "sliced",
    "stands_in",
    "thinned",
]
