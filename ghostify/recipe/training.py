"""The settings of one training run: its optimiser, its rate, what regularises it, and what teaches it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from ghostify.effects import LATER, With
from ghostify.settings import Settings

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["cosine", "linear", "step", "one-cycle", "constant"]
Precision = Literal["no", "bf16", "fp16"]
FeaturePlace = Literal["stages", "blocks"]

LR = 0.02
"""The peak rate of SGD where none is given and nothing was fitted."""
ADAMW_LR = 1e-3
"""The same of AdamW, whose steps do not grow with the gradient."""
AUTO = "auto"
"""The rate is found by a test (``finetuning/rate.py``)."""

_TRAINED = With("epochs", without=(0,), choose="epochs of 1 or more")
_TAUGHT = With("distill", without=(0,), choose="a distill above 0")
_LABELLED = With("distill", without=(1,), choose="a distill below 1")
_MATCHED = With("features", without=(0,), choose="features above 0")
_STEPPED = With("schedule", ("step",))
_BY_SGD = With("optimizer", ("sgd",))


def _rate(value: Any) -> Any:
    """A rate as it is kept: a number, or ``auto``."""
    if value is None or value == AUTO:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ValueError("it must be a number of more than 0, or auto")
    return number


def _precision(value: Any) -> Any:
    """Earlier files say yes or no, when there was one precision to choose; YAML reads ``no`` as false."""
    return {True: "bf16", False: "no"}[value] if isinstance(value, bool) else value


class TrainSettings(Settings):
    """One training run; by default SGD with Nesterov momentum, linear warm-up, then cosine to zero."""

    epochs: Annotated[int, Field(ge=0, description="epochs of training")] = 1
    optimizer: Annotated[
        OptimizerName, Field(description="what takes the steps: sgd, with Nesterov momentum, or adamw"), _TRAINED, LATER
    ] = "sgd"
    lr: Annotated[
        float | str | None,
        PlainValidator(_rate),
        Field(
            description="peak learning rate, or auto: found by a short test on training images; by default auto "
            f"after a fit, else {LR:g} (adamw: {ADAMW_LR:g})"
        ),
        _TRAINED,
    ] = None
    kept_lr: Annotated[
        float,
        Field(gt=0, description="learning rate of the layers that were kept, in shares of that of those swapped in"),
        _TRAINED,
        LATER,
    ] = 1.0
    schedule: Annotated[
        ScheduleName,
        Field(description="how the rate falls after its warm-up: cosine, linear, step, one-cycle or constant"),
        _TRAINED,
        LATER,
    ] = "cosine"
    milestones: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(description="shares of all steps after which schedule step lowers the rate"),
        _TRAINED,
        _STEPPED,
        LATER,
    ] = (0.5, 0.75)
    drop: Annotated[
        float, Field(gt=0, lt=1, description="what schedule step multiplies the rate by"), _TRAINED, _STEPPED, LATER
    ] = 0.1
    warmup: Annotated[
        float, Field(ge=0, le=1, description="share of all steps in which the rate rises to its peak"), _TRAINED
    ] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of sgd"), _TRAINED, _BY_SGD] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, of all but norms and biases"), _TRAINED] = (
        5e-4
    )
    freeze: Annotated[
        tuple[str, ...],
        Field(description="modules that stay as they are, statistics included, by name or pattern, as in layer1.*"),
        _TRAINED,
        LATER,
    ] = ()
    distill: Annotated[
        float, Field(ge=0, le=1, description="weight of the original network's soft labels, 0 to 1"), _TRAINED
    ] = 0.0
    temperature: Annotated[float, Field(gt=0, description="temperature of the soft labels"), _TRAINED, _TAUGHT] = 4.0
    teacher: Annotated[
        str | None,
        Field(description="another network that teaches in place of the original: a source, or a run folder"),
        _TRAINED,
        _TAUGHT,
        LATER,
    ] = None
    teacher_weights: Annotated[
        str | None,
        Field(description="a checkpoint file of the teacher; by default the weights that its source itself offers"),
        _TRAINED,
        With("teacher", without=(None,), choose="a teacher, as in --teacher timm:resnet50"),
        LATER,
    ] = None
    features: Annotated[
        float, Field(ge=0, description="weight of matching the teacher's feature maps"), _TRAINED, _TAUGHT, LATER
    ] = 0.0
    features_at: Annotated[
        FeaturePlace,
        Field(description="where feature maps are matched: at the outputs of stages, or of all their blocks"),
        _TRAINED,
        _MATCHED,
        LATER,
    ] = "stages"
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of each label that is spread over all classes"), _TRAINED, _LABELLED
    ] = 0.0
    mixup: Annotated[
        float,
        Field(ge=0, description="alpha of mixup, which blends pairs of images and their labels; 0 for none"),
        _TRAINED,
        LATER,
    ] = 0.0
    cutmix: Annotated[
        float,
        Field(ge=0, description="alpha of cutmix, which puts a box of one image into another; 0 for none"),
        _TRAINED,
        LATER,
    ] = 0.0
    ema: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="decay of a moving average of the weights, as in 0.999, which is measured and delivered in "
            "their place",
        ),
        _TRAINED,
        LATER,
    ] = None
    renew_norms: Annotated[
        int,
        Field(
            ge=0,
            description="training batches by which the statistics of batch norms are renewed before each measurement",
        ),
        _TRAINED,
        LATER,
    ] = 0
    clip: Annotated[float | None, Field(gt=0, description="gradient norm clipped to this"), _TRAINED] = None
    amp: Annotated[
        Precision, BeforeValidator(_precision), Field(description="mixed precision: bf16, fp16, or no"), _TRAINED
    ] = "no"
    accumulate: Annotated[
        int,
        Field(
            ge=1,
            description="micro-batches that a batch is run in, for which a device's memory is too small as a whole",
        ),
        _TRAINED,
        LATER,
    ] = 1
    channels_last: Annotated[
        bool | None,
        Field(
            description="maps with their channels last in memory; by default on a CPU, where that is faster, unless "
            "the network's code needs another order"
        ),
        _TRAINED,
        LATER,
    ] = None
    compile: Annotated[bool, Field(description="the network compiled by torch.compile"), _TRAINED, LATER] = False
    save_every: Annotated[
        int | None,
        Field(
            ge=1,
            description="steps between checkpoints; by default as many as keep saving under 2 % of the time, and a "
            "minute at least; the end of an epoch is always saved",
        ),
        _TRAINED,
        LATER,
    ] = None

    def resolved(self, fitted: bool) -> TrainSettings:
        """These settings with a learning rate: the one given, or the default for a network that was fitted or not.

        What was fitted stands near an optimum, and which rate leaves it depends on the network, so that is tested.
        """
        if self.lr is not None:
            return self
        return self.at_rate(AUTO if fitted else self.peak)

    def at_rate(self, rate: float | str) -> TrainSettings:
        """These settings at another learning rate."""
        return self.model_copy(update={"lr": rate})

    @property
    def peak(self) -> float:
        """The peak learning rate; where none is given, or it is still to be found, that of a network not fitted."""
        if isinstance(self.lr, float):
            return self.lr
        return LR if self.optimizer == "sgd" else ADAMW_LR
