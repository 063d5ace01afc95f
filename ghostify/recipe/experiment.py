"""The settings of an experiment around the rewrite: model, fit, analysis."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ghostify.effects import LATER, With
from ghostify.inputs import GRAMMAR, settled_inputs
from ghostify.recipe.ghost import Kernel
from ghostify.settings import Settings

Arrange = Literal["none", "reorder", "select"]
FitMode = Literal["auto", "none", "weights", "data", "polish"]
_FITTED = With("how", ("auto", "data", "weights", "polish"))
_POLISHED = With("how", ("polish",))
_LOADED = With("weights", without=(None, "DEFAULT"), choose="a checkpoint file, as in --weights FILE")


def _settled_inputs(value: Any) -> Any:
    if value is None:
        return None
    try:
        return settled_inputs(value)
    except ValueError as problem:
        raise ValueError(f"{problem}; write {GRAMMAR}") from None


class ModelSettings(Settings):
    """Where the network comes from."""

    source: Annotated[
        str,
        Field(
            description="the network: torchvision:NAME, timm:NAME, ghostify:NAME, package.module:function, or a run "
            "folder"
        ),
    ]
    args: Annotated[dict[str, Any], Field(description="keyword arguments of the constructor")] = {}  # noqa: RUF012 - pydantic copies it
    weights: Annotated[
        str | None, Field(description="a checkpoint file, or DEFAULT for the weights the source itself offers")
    ] = None
    weights_key: Annotated[
        str | None, Field(description="which weights of a checkpoint that holds several, as in model_ema"), _LOADED
    ] = None
    weights_strict: Annotated[
        bool, Field(description="no: load what fits of a checkpoint and leave the rest"), _LOADED
    ] = True
    weights_allow: Annotated[
        tuple[str, ...],
        Field(description="classes a checkpoint may hold besides tensors, as in argparse.Namespace"),
        _LOADED,
    ] = ()
    input: Annotated[
        tuple[int, ...] | tuple[str, ...] | None,
        BeforeValidator(_settled_inputs),
        Field(
            description="what the network takes, without the batch: 3,224,224, or 1024, or 128:int64 for whole "
            "numbers, or t=scalar for a keyword; once for each input; by default the source is asked"
        ),
    ] = None


class FitSettings(Settings):
    """How trained weights are fitted into what takes a layer's place, in closed form (``docs/fitting.md``).

    The switches say which pieces of the method are used; they are there to be measured.
    """

    word = "how"

    how: Annotated[
        FitMode,
        Field(
            description="how weights are carried over: data: fitted to calibration images; weights: fitted to noise, "
            "without images; polish: as data, then by gradient; none: cut, not fitted; auto: data where there are "
            "images, else none"
        ),
    ] = "auto"
    images: Annotated[int, Field(ge=1, description="calibration images, without labels"), _FITTED] = 512
    seconds: Annotated[float, Field(gt=0, description="time for polish"), _POLISHED] = 60.0
    compensate: Annotated[
        bool, Field(description="sums are fitted, so that a layer makes good earlier errors"), _FITTED
    ] = True
    rectified: Annotated[bool, Field(description="errors that the activation hides do not count"), _FITTED] = True
    kept: Annotated[bool, Field(description="layers that are kept are fitted to their new inputs, too"), _FITTED] = True
    arrange: Annotated[
        Arrange,
        Field(
            description="how it is chosen which maps are intrinsic: reorder: by the order of the network's channels; "
            "select: that, and by a selection of channels at run time where layers share an order; none: the first are"
        ),
        _FITTED,
    ] = "select"
    sensitive: Annotated[
        bool,
        Field(description="where a rank is chosen, errors count by what they do to the network's outputs"),
        _FITTED,
        LATER,
    ] = True
    joint: Annotated[
        bool, Field(description="intrinsic maps are those that serve all maps best, together"), _FITTED
    ] = True

    def resolved(self, images: bool) -> FitMode:
        """``auto`` by whether there are images; any other way is itself."""
        if self.how == "auto":
            return "data" if images else "none"
        return self.how


class AnalysisSettings(Settings):
    """How the redundancy of feature maps is measured, and what is advised."""

    images: Annotated[int, Field(ge=8, description="images to look at, without labels")] = 128
    layers: Annotated[tuple[str, ...], Field(description="pattern of layers and stages to look at")] = ("*",)
    d: Annotated[Kernel, Field(description="size of the filters that ghosts are made by, odd")] = 3
    tolerance: Annotated[
        float, Field(gt=0, lt=1, description="share of the variance of a layer's (or stage's) maps that may be lost")
    ] = 0.1
