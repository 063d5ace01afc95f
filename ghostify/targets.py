"""What a compressed network is to cost, and what it is to keep, as values: how a person writes them, what they ask.

latency=0.5x   half the time of one forward pass        latency=12ms    so many milliseconds (s, ms, us)
macs=0.5x      half the multiply-adds                   macs=300M       so many (K, M, G)
params=0.3x    activations=0.7x                         params=3M       activations=2M
size=0.25x     a quarter of the bytes of the weights    size=20MB       so many bytes (kB, MB, GB)

0.99           outputs agree with the original's on 99 of 100 images
accuracy=-1.0  accuracy is at most one point lower than the original's
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ghostify.errors import RecipeError, did_you_mean

Quantity = Literal["latency", "macs", "params", "activations", "size"]
Kept = Literal["agreement", "accuracy"]

_TIMES = {"ms": 1.0, "s": 1e3, "us": 1e-3}
"""Latencies are told in milliseconds."""
_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": _TIMES,
    "macs": _COUNTS,
    "params": _COUNTS,
    "activations": _COUNTS,
    "size": _BYTES,
}
_EXAMPLES = {"latency": "12ms", "macs": "300M", "params": "3M", "activations": "2M", "size": "20MB"}
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))\s*([A-Za-zµ%]*)")
_WANTED = "latency=0.5x, latency=12ms, macs=0.5x, params=3M, activations=0.7x or size=20MB"
BYTES_PER_PARAMETER = 4
"""Of weights saved in single precision, which is what ``size`` counts."""


@dataclass(frozen=True)
class Target:
    """A bound on what a network costs: a share of what it cost before, or an amount in the unit of its quantity.

    Units are milliseconds (latency), plain counts (macs, params, activations) and bytes (size).
    """

    quantity: Quantity
    value: float
    relative: bool
    """Whether ``value`` is a share of what the original costs."""
    written: str = ""
    """As it was typed."""

    @classmethod
    def read(cls, text: str) -> Target:
        """The value that ``str`` writes.  Raises ``RecipeError`` with what is near for anything else."""
        name, equals, said = (part.strip() for part in str(text).partition("="))
        quantity = _named(name, tuple(_UNITS), f"write {_WANTED}")
        number = _NUMBER.fullmatch(said)
        if not equals or number is None:
            raise RecipeError(f"{str(text)!r} tells no amount; write {_wanted_of(quantity)}.")
        value, unit = float(number[1]), number[2]
        if not value > 0:
            raise RecipeError(f"{said!r} must be more than 0, as in {_wanted_of(quantity)}.")
        if unit in ("x", "X"):
            return cls(quantity, _share(value, said, quantity), True, f"{quantity}={value:g}x")
        return cls(quantity, value * _unit(quantity, unit, said), False, f"{quantity}={said}")

    @classmethod
    def of(cls, value: Target | str) -> Target:
        """A value, or what one is written as."""
        return value if isinstance(value, Target) else cls.read(value)

    def bound(self, before: float) -> float:
        """The most that is allowed where the original costs ``before``, in the unit of the quantity."""
        return self.value * before if self.relative else self.value

    def __str__(self) -> str:
        return self.written or f"{self.quantity}={self.value:g}{'x' * self.relative}"


@dataclass(frozen=True)
class Floor:
    """What is to be kept: a share of images on which outputs agree, or accuracy but for so many points."""

    kind: Kept
    value: float
    """The share (0 to 1), or the difference of accuracies in points (0 or less)."""

    @classmethod
    def read(cls, text: str | float) -> Floor:
        """The value that ``str`` writes.  Raises ``RecipeError`` for anything else."""
        name, equals, said = (part.strip() for part in str(text).rpartition("="))
        kind: Kept = _named(name, get_args(Kept), "write 0.99 or accuracy=-1.0") if equals else "agreement"
        number = _NUMBER.fullmatch(said)
        if number is None or number[2] not in ("", "%"):
            raise RecipeError(f"{str(text)!r} is no share to keep; write 0.99 or accuracy=-1.0.")
        value = float(number[1]) / (100 if number[2] and kind == "agreement" else 1)
        if kind == "agreement" and not 0 < value <= 1:
            raise RecipeError(f"{str(text)!r} is no share to keep; write one above 0 and up to 1, as in 0.99.")
        if kind == "accuracy" and not -100 < value <= 0:
            raise RecipeError(f"{str(text)!r} asks for more than the original; write points it may lose, as in -1.0.")
        return cls(kind, value)

    @classmethod
    def of(cls, value: Floor | str | float) -> Floor:
        """A value, or what one is written as."""
        return value if isinstance(value, Floor) else cls.read(value)

    @property
    def share(self) -> float:
        """The share of answers that must stay: who keeps all but one in a hundred loses at most one point."""
        return self.value if self.kind == "agreement" else 1 + self.value / 100

    def __str__(self) -> str:
        return f"{self.value:g}" if self.kind == "agreement" else f"accuracy={self.value:g}"


def _named(name: str, known: tuple[str, ...], wanted: str) -> Any:
    """``name`` in lower case, as one of the known names."""
    found = next((one for one in known if one == name.lower()), None)
    if found is None:
        raise RecipeError(f"{name!r} is nothing that can be asked for; {wanted}.{did_you_mean(name, known)}")
    return found


def _share(value: float, said: str, quantity: str) -> float:
    if value < 1:
        return value
    part = f"{quantity}={1 / value:.2g}x" if value > 1 else f"{quantity}=0.5x"
    raise RecipeError(f"{said!r} asks for no less than there is; write a share below 1, as in {part}.")


def _unit(quantity: str, unit: str, said: str) -> float:
    """How many of the quantity's own unit one of ``unit`` is."""
    units = _UNITS[quantity]
    found = next((size for name, size in units.items() if name.lower() == unit.lower()), None)
    if found is None:
        named = f"{unit!r} is no unit of {quantity}" if unit else f"{said!r} names no unit"
        known = [name for name in (*units, "x") if name]
        near = did_you_mean(unit, known) if unit else ""
        raise RecipeError(f"{named}; give it one, as in {_wanted_of(quantity)}.{near}")
    return found


def _wanted_of(quantity: str) -> str:
    return f"{quantity}=0.5x or {quantity}={_EXAMPLES[quantity]}"
