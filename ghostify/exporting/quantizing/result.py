"""``Quantized``: what int8 was made of, as a value."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

_HELD_IN = "module."
"""Where the network lies in what a file is written from."""


class Kept(BaseModel):
    """A layer that stays in 32-bit floats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    error: float
    """How far the outputs move, as a share of themselves, when it alone is in int8."""

    def __str__(self) -> str:
        return f"{self.layer.removeprefix(_HELD_IN)} (in int8 it alone moves the outputs by {self.error:.0%})"


class Quantized(BaseModel):
    """What a file in int8 was calibrated on, and which layers are not in int8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """Images that scales were read off."""
    layers: int
    """Convolutions and linear layers there are."""
    kept: tuple[Kept, ...] = ()
    faint: dict[str, int] = {}
    """By layer, maps that it reads no more, because int8 makes zeros of them."""

    def __str__(self) -> str:
        kept = ", ".join(str(one) for one in self.kept)
        left = f"; in float stays {kept}" if kept else ""
        return f"int8 calibrated on {self.samples} images, {self.layers - len(self.kept)} of {self.layers} layers{left}"
