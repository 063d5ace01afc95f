"""The settings of a rewrite: what is replaced, by what, where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, field_validator

from ghostify.cheap import USUAL, Cheap, require_odd
from ghostify.effects import With
from ghostify.errors import PlanError, did_you_mean
from ghostify.settings import Settings

Role = Literal["body", "stem", "depthwise", "pooled", "classifier", "channels-last"]
Parts = Literal["linear", "norm-act"]
Ratio = Annotated[int, Field(ge=2, description="ratio s: every s output maps come from one intrinsic map")]
GhostRatio = Annotated[
    float, Field(gt=0, lt=1, description="ghost ratio λ: the share of a stage's channels made cheaply")
]
Width = Annotated[
    float, Field(gt=0, lt=1, description="share of channels kept by methods width, thin and mixed, where they narrow")
]
Method = Literal["c-ghost", "g-ghost", "both", "auto", "width", "thin", "mixed"]
Preset = Literal["default", "stream", "literal", "cifar", "imagenet", "regnet"]
StageCheap = Literal["1x1", "3x3", "5x5", "identity", "none"]
CheapInput = Literal["slice", "full", "outputs"]
Entry = Literal["slice", "projection", "stream"]
Keep = Literal["first", "strongest"]
Rounding = Literal["nearest", "down"]
Stream = Literal["scaled", "kept"]
_CONVS = With("method", ("c-ghost", "both", "auto", "mixed"))
_STAGES = With("method", ("g-ghost", "both", "auto"))
_THINNED = With("method", ("g-ghost", "both", "auto", "width", "thin", "mixed"))
_NARROWED = With("method", ("width", "thin", "mixed"))
_MIXED = With("mix", without=(0,), choose="a mix of 1 or 2")
_CHEAP = With("cheap", without=("none",), choose="another cheap operation")
_OLDER = With("cheap", (None, *get_args(StageCheap)), choose="cheap, which tells both, as in depthwise 5 + pointwise")


def _odd(d: int) -> int:
    with _as_value_error():
        require_odd(d)
    return d


@contextmanager
def _as_value_error() -> Iterator[None]:
    """What is wrong with a value, without the words that name it: pydantic's own name the setting."""
    try:
        yield
    except PlanError as problem:
        raise ValueError(str(problem).partition(": ")[2].removesuffix(".")) from None


Kernel = Annotated[int, Field(ge=1, description="size d of depthwise filters, odd"), AfterValidator(_odd)]


def _cheap_operation(value: Any) -> Cheap:
    with _as_value_error():
        return Cheap.of(value)


CheapOperation = Annotated[Cheap, PlainValidator(_cheap_operation), PlainSerializer(str)]
"""A cheap operation of a C-Ghost module, written and read as a person writes it."""


def _cheap_setting(value: Any) -> Any:
    """The words of stages, or the value of convolutions; the two have no word in common."""
    return value if value in (None, "auto", *get_args(StageCheap)) else _cheap_operation(value)


def of_stages(cheap: Any) -> bool:
    """Whether a cheap operation is one of G-Ghost stages."""
    return isinstance(cheap, str) and cheap in get_args(StageCheap)


def of_convolutions(cheap: Any) -> Any:
    """The cheap operation if it is one of C-Ghost modules, else None."""
    return None if of_stages(cheap) else cheap


CheapSetting = Annotated[
    Cheap | str | None, PlainValidator(_cheap_setting), PlainSerializer(lambda cheap: cheap and str(cheap))
]


def _known_pointwise(value: Any) -> Any:
    """One message for a union, which would tell what is wrong with each of its parts."""
    if value in ("none", "auto", "full") or (str(value).isdecimal() and int(value) >= 1):
        return value
    hint = did_you_mean(str(value), ("none", "auto", "full"))
    raise ValueError(f"it must be none, auto, full or a rank of 1 or more{hint and '.'}{hint}")


Pointwise = Annotated[
    Literal["none", "auto", "full"] | int,
    BeforeValidator(_known_pointwise),
    Field(
        description="1x1 convolution over all intrinsic maps beside the filters of size d: none, auto, full or a rank"
    ),
]


class StageForm(Settings):
    """The form of a G-Ghost stage; what is None comes from the preset (``rules/g_ghost`` tells what each has)."""

    cheap: Annotated[
        CheapSetting,
        Field(
            description="cheap operation that makes the ghosts; of a C-Ghost module depthwise 3, as in the papers, "
            "pointwise (a 1x1 convolution over all intrinsic maps), pointwise 8 (of rank 8), or depthwise 3 + "
            "pointwise; auto: pointwise for kernels larger than 1x1, depthwise 3 for others; of a "
            "G-Ghost stage 1x1, 3x3, 5x5, identity or none"
        ),
        replace(_CONVS, of=of_convolutions),
        replace(_STAGES, of=of_stages),
    ] = None
    cheap_input: Annotated[
        CheapInput | None,
        Field(
            description="what it reads: slice, the other channels of Y1; full, all of them; outputs, those and what "
            "every thin block gives"
        ),
        _STAGES,
        _CHEAP,
    ] = None
    entry: Annotated[
        Entry | None,
        Field(
            description="what thin blocks read: slice, their channels alone; projection, the first of them all of Y1, "
            "with a projection shortcut; stream, each of them the other channels of Y1, too"
        ),
        _STAGES,
    ] = None
    mix: Annotated[Literal[0, 1, 2] | None, Field(description="layers of the mix operation; 0 for none"), _STAGES] = (
        None
    )
    mix_y1: Annotated[bool | None, Field(description="whether the mix operation pools Y1, too"), _STAGES, _MIXED] = None
    end: Annotated[
        bool | None, Field(description="whether the last block keeps its full width, after the ghosts"), _STAGES
    ] = None
    inner_width: Annotated[
        float | None,
        Field(gt=0, le=1, description="share of the channels kept inside thin blocks; by default that of their stream"),
        _STAGES,
    ] = None
    group_width: Annotated[
        float | None,
        Field(gt=0, le=1, description="share of a group kept in grouped convolutions; 1 drops groups"),
        _THINNED,
    ] = None
    keep: Annotated[
        Keep | None, Field(description="which channels stay: the first, or those of strongest filters"), _THINNED
    ] = None


class _OlderWords(Settings):
    """The cheap operation of C-Ghost modules as older recipes tell it, by two words; ``cheap`` tells all of it."""

    d: Annotated[Kernel | None, replace(_CONVS, harmless=(USUAL,)), _OLDER] = None
    pointwise: Annotated[Pointwise | None, replace(_CONVS, harmless=("auto",)), _OLDER] = None


class SiteSettings(StageForm, _OlderWords):
    """What may be set for one convolution or stage, or for a pattern of them; what is None is inherited."""

    s: Annotated[int, Field(ge=1, description="as s for all; 1 leaves a layer as it is")] | None = None
    m: Annotated[int, Field(ge=1, description="as m for all")] | None = None
    parts: Parts | None = None
    ratio: GhostRatio | None = None
    width: Annotated[float, Field(gt=0, le=1, description="as width for all; 1 leaves a block as it is")] | None = None


class GhostSettings(StageForm, _OlderWords):
    """How convolutions become C-Ghost modules (IJCV paper, Eq. 1-5) and stages G-Ghost stages (Eq. 6-12)."""

    word = "method"

    method: Annotated[
        Method,
        Field(
            description="what is replaced: c-ghost: convolutions; g-ghost: stages; both: stages, then the "
            "convolutions left; auto: c-ghost, or g-ghost if that is not faster (on a GPU the other way round); and "
            "without ghosts, width: every layer is narrower (a baseline); thin: blocks are narrower inside, and what "
            "they add to each other stays as it is; mixed: thin, then c-ghost inside"
        ),
    ] = "c-ghost"
    s: Annotated[Ratio, replace(_CONVS, harmless=(1,))] = 2
    m: Annotated[
        int | None, Field(ge=1, description="how many maps of a layer are intrinsic, in place of n/s"), _CONVS
    ] = None
    parts: Annotated[
        Parts, Field(description="linear: the network's own norm follows; norm-act: BN + ReLU in each part"), _CONVS
    ] = "linear"
    include: Annotated[tuple[str, ...], Field(description="pattern of layers to consider, as in 'layer[34].*'")] = (
        "*",
    )
    exclude: Annotated[tuple[str, ...], Field(description="pattern of layers to leave alone")] = ()
    also: Annotated[
        tuple[Role, ...],
        Field(
            description="take layers that are left alone by default: stem, classifier, pooled (on 1x1 maps), "
            "depthwise, or channels-last (linear layers on maps)"
        ),
        _CONVS,
    ] = ()
    min_saving: Annotated[
        float,
        Field(
            ge=0,
            description="leave a layer alone that saves fewer multiply-adds (MACs) than this for each number more that "
            "it must read or write, because it would get slower; 0 takes every layer",
        ),
        replace(_CONVS, harmless=(0,)),  # "leave out nothing" holds with every method
    ] = 16.0
    ratio: Annotated[GhostRatio, _STAGES] = 0.5
    preset: Annotated[
        Preset,
        Field(
            description="form of a G-Ghost stage: default (our own), stream (our own, which keeps most of a trained "
            "network of basic blocks), or as the paper has it: literal, cifar, imagenet or regnet"
        ),
        _STAGES,
    ] = "default"
    width: Annotated[Width, replace(_NARROWED, harmless=(1,))] = 0.75
    round_to: Annotated[
        int,
        Field(
            ge=1,
            description="thinner widths are multiples of this, at least one; a layer of fewer channels keeps them all; "
            "and so are the intrinsic maps of pointwise ghosts, where a multiple is near",
        ),
    ] = 8
    rounding: Annotated[Rounding, Field(description="to the nearest multiple, or down"), _THINNED] = "nearest"
    set: Annotated[dict[str, SiteSettings], Field(description="settings by glob; later ones win")] = {}  # noqa: RUF012 - pydantic copies it

    @field_validator("include", "exclude", "also", mode="before")
    @classmethod
    def _one_or_many(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names
