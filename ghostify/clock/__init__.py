"""What a piece of a network costs on a runtime: measured once for each geometry, and kept."""

from ghostify.clock.cache import Cache
from ghostify.clock.clock import Clock
from ghostify.clock.paying import Judge, Measured, SwapTime, measured, paying, require_faster
from ghostify.clock.piece import Piece, Time, total
from ghostify.clock.pieces import pieces_of
from ghostify.clock.place import Place
from ghostify.clock.surroundings import Surroundings, surroundings_in

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
    "require_faster",
    "surroundings_in",
    "total",
]
