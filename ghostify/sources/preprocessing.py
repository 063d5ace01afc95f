"""How an image becomes what a network takes: resized, its middle cut out, normalised.

Weights give the accuracy they are published with only for images prepared as they were trained.  torchvision tells how
by the transforms of its weights, timm by the data config of its networks; a run folder keeps what it was made with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ghostify.errors import DataError
from ghostify.recipe import DataSettings, Interpolation, ModelSettings

Shape = tuple[int, int, int]
LARGE = 64
"""Images up to this size are looked at whole; of larger ones, the middle."""
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_USUAL = 256 / 224
"""How much larger than what is cut out of it a large image is, where nobody says: as ImageNet is tested."""


class Scale(BaseModel):
    """Mean and standard deviation per channel that pixels in [0, 1] are normalised with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) → (n, C, H, W)"""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def of_channels(self, channels: int) -> Scale:
        """The same for images of so many channels: grey has the mean of the colours', and each colour that of grey."""
        if len(self.mean) == channels:
            return self
        return Scale(mean=_spread(self.mean, channels), std=_spread(self.std, channels))


class Preprocessing(BaseModel):
    """How an image of any size becomes (C, H, W)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int]
    """(H, W) of what is cut out."""
    resize: int
    """The shorter side to which an image is brought first."""
    scale: Scale
    interpolation: Interpolation = "bilinear"
    squash: bool = False
    """Whether an image is brought to a square, whatever its proportions."""
    origin: str = ""
    """Whose it is, as in ``torchvision's ResNet50_Weights.IMAGENET1K_V2``; empty for what is usual."""

    @classmethod
    def usual(cls, shape: Shape, scale: Scale | None = None) -> Self:
        """What is done where nobody tells: ImageNet's statistics and, of large images, the middle of 224/256."""
        size = shape[1], shape[2]
        resize = round(min(size) * _USUAL) if max(size) > LARGE else min(size)
        mean, std = _IMAGENET
        return cls(size=size, resize=resize, scale=(scale or Scale(mean=mean, std=std)).of_channels(shape[0]))

    def at(self, shape: Shape) -> Preprocessing:
        """The same for a network that takes ``shape``: as much of an image, at another size."""
        size = shape[1], shape[2]
        resize = round(self.resize * min(size) / min(self.size))
        return self.model_copy(update={"size": size, "resize": resize, "scale": self.scale.of_channels(shape[0])})

    def overruled(self, settings: DataSettings) -> Preprocessing:
        """With what a person set.  Raises ``DataError`` where that cannot be."""
        channels = len(self.scale.mean)
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            if values is not None and len(values) != channels:
                raise DataError(f"data.{name} must have one number for each of {channels} channels, not {len(values)}.")
        if settings.resize is not None and settings.resize < min(self.size):
            raise DataError(
                f"data.resize {settings.resize} is smaller than what is cut out, {_by(self.size)}; give "
                f"{min(self.size)} or more."
            )
        scale = Scale(mean=settings.mean or self.scale.mean, std=settings.std or self.scale.std)
        given = {"resize": settings.resize, "interpolation": settings.interpolation}
        said = {name: value for name, value in given.items() if value is not None}
        return self.model_copy(update={**said, "scale": scale})

    def framed(self, image: Image.Image) -> Image.Image:
        """The middle of an image, in the size that is wanted."""
        from torchvision.transforms.v2 import functional

        high, wide = self.size
        if not self.origin and image.size == (wide, high):
            return image  # somebody has cut it already
        resized = functional.resize(image, self._resized(image.height, image.width), interpolation=self.filter)
        return functional.center_crop(resized, [high, wide])

    @property
    def filter(self) -> Any:
        """The interpolation as torchvision has it."""
        from torchvision.transforms import InterpolationMode

        return InterpolationMode(self.interpolation)

    def _resized(self, height: int, width: int) -> list[int]:
        """What ``torchvision``'s resize is asked for: the shorter side, or both."""
        high, wide = self.size
        if self.squash:
            return [round(self.resize * side / min(self.size)) for side in self.size]
        # both sides of what is cut out must fit in, also where it is no square
        factor = max(high / height, wide / width) * self.resize / min(self.size)
        return [max(round(factor * min(height, width)), 1)]

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.scale.mean, self.scale.std))
        how = f"squashed to {self.resize}" if self.squash else f"shorter side to {self.resize}"
        framed = f"{how} ({self.interpolation}), middle {_by(self.size)}"
        return f"{framed}, mean {mean}, std {std}; {f'as for {self.origin}' if self.origin else 'the usual'}"


def own_preprocessing(settings: ModelSettings, model: nn.Module) -> Preprocessing | None:
    """What a network's trained weights want of images; None where it has none, or nobody tells."""
    kind, _, name = settings.source.partition(":")
    if settings.weights is None or kind not in ("torchvision", "timm"):
        return None
    return _torchvision(name, settings.weights) if kind == "torchvision" else _timm(name, model)


def _torchvision(name: str, weights: str) -> Preprocessing | None:
    """By the transforms of the weights: of a file, those that torchvision publishes it with, else of the default."""
    from torchvision import models

    known = models.get_model_weights(name)
    named = (one for one in known if str(getattr(one, "url", "")).endswith(f"/{Path(weights).name}"))
    chosen: Any = next(named, known.DEFAULT)
    preset = chosen.transforms()
    if not hasattr(preset, "crop_size"):
        return None  # detectors and segmenters take images as they are
    return Preprocessing(
        size=(preset.crop_size[0], preset.crop_size[0]),
        resize=preset.resize_size[0],
        scale=Scale(mean=tuple(preset.mean), std=tuple(preset.std)),
        interpolation=preset.interpolation.value,
        origin=f"torchvision's {chosen}",
    )


def _timm(name: str, model: nn.Module) -> Preprocessing:
    from timm.data.config import resolve_data_config

    config = resolve_data_config(model=model)
    high, wide = config["input_size"][1:]
    return Preprocessing(
        size=(high, wide),
        resize=int(min(high, wide) / config["crop_pct"]),  # rounded down, as timm does
        scale=Scale(mean=tuple(config["mean"]), std=tuple(config["std"])),
        interpolation=config["interpolation"],
        squash=config["crop_mode"] == "squash",
        origin=f"timm's {name}",
    )


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (round(sum(values) / len(values), 6),) * channels


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
