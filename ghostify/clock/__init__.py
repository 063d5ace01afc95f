"""What a piece of a network costs on a runtime: measured once for each geometry, and kept."""

from ghostify.clock.cache import Cache
from ghostify.clock.clock import Clock
from ghostify.clock.judging import Judge
from ghostify.clock.paying import measured, paying, require_faster
from ghostify.clock.piece import Piece, Time, total
from ghostify.clock.pieces import pieces_of
from ghostify.clock.place import Place
from ghostify.clock.result import Measured, SwapTime
from ghostify.clock.surroundings import Surroundings, surroundings_in
from ghostify.clock.turns import ratio_between
from ghostify.clock.wholes import side_by_side

__all__ = [
    "Cache",
    "Clock",
    "Judge",
    "Measured",
    "Piece",
    "Place",
    "Surroundings",
    "SwapTime",
    "Time",
    "measured",
    "paying",
    "pieces_of",
    "ratio_between",
    "require_faster",
    "side_by_side",
    "surroundings_in",
    "total",
]
