"""The settings of the images: where they come from, how they are prepared and varied, and how they are fed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ghostify.effects import With
from ghostify.settings import Settings

Damage = Literal["stop", "skip"]
Prepare = Literal["model", "data"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_VARIED = With("augment", (True,), choose="augment true")
_FED_BY_OTHERS = With("workers", without=(0,), choose="workers of 1 or more")


def _numbers(value: Any) -> Any:
    """``2,9``, as a command line has it, as a list."""
    return value.split(",") if isinstance(value, str) else value


Strength = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0, le=30)]], BeforeValidator(_numbers)]
"""RandAugment's number of operations and their magnitude, of 30."""


class DataSettings(Settings):
    """Where the images come from, and how they are fed."""

    source: Annotated[
        str,
        Field(
            description="the images: digits, folder:PATH, cifar10:PATH, cifar100:PATH, webdataset:PATTERN, fake, or "
            "package.module:function"
        ),
    ]
    metric: Annotated[
        str | None,
        Field(
            description="package.module:function of (outputs, labels) that gives a number, larger is better, or an "
            "object with update and compute; by default accuracy"
        ),
    ] = None
    loss: Annotated[
        str | None,
        Field(
            description="package.module:function of (outputs, labels), or of (model, inputs, labels), that gives what "
            "training lowers; by default cross entropy"
        ),
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="images per batch")] = 128
    workers: Annotated[int, Field(ge=0, description="loader processes")] = 0
    prefetch: Annotated[
        int, Field(ge=1, description="batches that each loader process has ready ahead"), _FED_BY_OTHERS
    ] = 2
    prepare: Annotated[
        Prepare,
        Field(
            description="how images are resized, cut and normalised: model: as the network's trained weights want "
            "them, where torchvision or timm tells; data: as is usual for the images"
        ),
    ] = "model"
    resize: Annotated[
        int | None, Field(ge=1, description="shorter side to which an image is brought before its middle is cut out")
    ] = None
    interpolation: Annotated[Interpolation | None, Field(description="how images are resized")] = None
    mean: Annotated[
        tuple[float, ...] | None,
        BeforeValidator(_numbers),
        Field(description="mean of each channel of pixels in 0 to 1, by which images are normalised"),
    ] = None
    std: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...] | None,
        BeforeValidator(_numbers),
        Field(description="standard deviation of each channel, likewise"),
    ] = None
    augment: Annotated[bool, Field(description="random crops (and flips where a mirror image is still the class)")] = (
        True
    )
    randaugment: Annotated[
        Strength | None,
        Field(description="RandAugment besides: how many operations, and their magnitude of 30, as in 2,9"),
        _VARIED,
    ] = None
    damaged: Annotated[
        Damage,
        Field(
            description="what becomes of images that cannot be read: stop: an error that names the first; skip: they "
            "are left out, named and counted"
        ),
    ] = "stop"
    limit: Annotated[int | None, Field(ge=1, description="use only this many images of each split")] = None
    hold_out: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="share of the training images held out to choose the best epoch by; 0 for none; by default "
            "the images of val/ do that where there is a test/ besides, else a tenth is held out (at most 5,000)",
        ),
    ] = None
