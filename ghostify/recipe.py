"""Recipe: one experiment as data.  Every setting of the tool is declared here, once, with its default and its meaning.

An unknown key is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
)

from ghostify.cheap import USUAL, Cheap, require_odd
from ghostify.effects import With, given, overruled, require_effect
from ghostify.errors import PlanError, RecipeError, did_you_mean
from ghostify.inputs import GRAMMAR, settled_inputs
from ghostify.settings import Settings, models_in
from ghostify.settings import make_settings as make_settings
from ghostify.settings import read_yaml as read_yaml
from ghostify.settings import validated as validated

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
Preset = Literal["default", "literal", "cifar", "imagenet", "regnet"]
StageCheap = Literal["1x1", "3x3", "5x5", "identity", "none"]
CheapInput = Literal["slice", "full"]
Entry = Literal["slice", "projection"]
Keep = Literal["first", "strongest"]
Rounding = Literal["nearest", "down"]
Stream = Literal["scaled", "kept"]
Arrange = Literal["none", "reorder", "select"]
FitMode = Literal["auto", "none", "weights", "data", "polish"]
_CONVS = With("method", ("c-ghost", "both", "auto", "mixed"))
_STAGES = With("method", ("g-ghost", "both", "auto"))
_THINNED = With("method", ("g-ghost", "both", "auto", "width", "thin", "mixed"))
_NARROWED = With("method", ("width", "thin", "mixed"))
_MIXED = With("mix", without=(0,), choose="a mix of 1 or 2")
_CHEAP = With("cheap", without=("none",), choose="another cheap operation")
_OLDER = With("cheap", (None, *get_args(StageCheap)), choose="cheap, which tells both, as in depthwise 5 + pointwise")
_TRAINED = With("epochs", without=(0,), choose="epochs of 1 or more")
_TAUGHT = With("distill", without=(0,), choose="a distill above 0")
_LABELLED = With("distill", without=(1,), choose="a distill below 1")
_FITTED = With("how", ("auto", "data", "weights", "polish"))
_POLISHED = With("how", ("polish",))
_LOADED = With("weights", without=(None, "DEFAULT"), choose="a checkpoint file, as in --weights FILE")


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


def _settled_inputs(value: Any) -> Any:
    if value is None:
        return None
    try:
        return settled_inputs(value)
    except ValueError as problem:
        raise ValueError(f"{problem}; write {GRAMMAR}") from None


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
        CheapInput | None, Field(description="what it reads: the other channels of Y1, or all of them"), _STAGES, _CHEAP
    ] = None
    entry: Annotated[
        Entry | None, Field(description="thin path: a slice of Y1, or all of it with a projection shortcut"), _STAGES
    ] = None
    mix: Annotated[Literal[0, 1, 2] | None, Field(description="layers of the mix operation; 0 for none"), _STAGES] = (
        None
    )
    mix_y1: Annotated[bool | None, Field(description="whether the mix operation pools Y1, too"), _STAGES, _MIXED] = None
    end: Annotated[
        bool | None, Field(description="whether the last block keeps its full width, after the ghosts"), _STAGES
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
            "convolutions left; auto: c-ghost for a CPU, g-ghost for a GPU; and without ghosts, width: every layer is "
            "narrower (a baseline); thin: blocks are narrower inside, and what they add to each other stays as it is; "
            "mixed: thin, then c-ghost inside"
        ),
    ] = "c-ghost"
    s: Annotated[Ratio, replace(_CONVS, harmless=(1,))] = 2
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
            description="form of a G-Ghost stage: default (our own), or as the paper has it: literal, cifar, "
            "imagenet or regnet"
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


class DataSettings(Settings):
    """Where the images come from, and how they are fed."""

    source: Annotated[
        str, Field(description="the images: digits, folder:PATH, cifar10:PATH, fake, or package.module:function")
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
    augment: Annotated[bool, Field(description="random crops (and flips where a mirror image is still the class)")] = (
        True
    )
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


LR = 0.02
FITTED_LR = 0.005
"""A fitted network stands near an optimum, which a larger rate first leaves (``docs/fitting.md``)."""


class TrainSettings(Settings):
    """One training run: SGD with Nesterov momentum, linear warm-up, then cosine to zero."""

    epochs: Annotated[int, Field(ge=0, description="epochs of training")] = 1
    lr: Annotated[
        float | None,
        Field(gt=0, description=f"peak learning rate; by default {FITTED_LR:g} after a fit, else {LR:g}"),
        _TRAINED,
    ] = None
    momentum: Annotated[float, Field(ge=0, lt=1), _TRAINED] = 0.9
    weight_decay: Annotated[float, Field(ge=0), _TRAINED] = 5e-4
    warmup: Annotated[float, Field(ge=0, le=1, description="share of all steps spent warming up"), _TRAINED] = 0.1
    distill: Annotated[
        float, Field(ge=0, le=1, description="weight of the original network's soft labels, 0 to 1"), _TRAINED
    ] = 0.0
    temperature: Annotated[float, Field(gt=0, description="temperature of the soft labels"), _TRAINED, _TAUGHT] = 4.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1), _TRAINED, _LABELLED] = 0.0
    clip: Annotated[float | None, Field(gt=0, description="gradient norm clipped to this"), _TRAINED] = None
    amp: Annotated[bool, Field(description="mixed precision (bfloat16)"), _TRAINED] = False

    def resolved(self, fitted: bool) -> TrainSettings:
        """These settings with a learning rate: the one given, or the default for a network that was fitted or not."""
        usual = FITTED_LR if fitted else LR
        return self.model_copy(update={"lr": usual}) if self.lr is None else self

    @property
    def peak(self) -> float:
        """The peak learning rate; where none is given, that of a network that was not fitted."""
        return LR if self.lr is None else self.lr


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
    ] = 0.3


class Recipe(Settings):
    """One experiment: which network, on which images, ghosted how, trained how."""

    name: str | None = None
    model: ModelSettings
    data: DataSettings | None = None
    pretrain: Annotated[
        TrainSettings | None, Field(description="train the original first, when there are no trained weights")
    ] = None
    ghost: GhostSettings = GhostSettings()
    fit: FitSettings = FitSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    finetune: Annotated[TrainSettings | None, Field(description="train the ghosted network afterwards")] = None
    seed: Annotated[int, Field(description="seed of everything random")] = 0
    device: Annotated[str, Field(description="where it runs: auto (a GPU if there is one), cpu, cuda, or cuda:1")] = (
        "auto"
    )


def meaning(key: str) -> tuple[str, Any]:
    """What a setting (``ghost.s``) means, as a sentence, and its default."""
    model: type[BaseModel] = Recipe
    *groups, name = key.split(".")
    for group in groups:
        model = next(models_in(model.model_fields[group].annotation))
    setting = model.model_fields[name]
    about = setting.description or name.replace("_", " ")
    default = None if setting.is_required() else setting.default
    return f"{about[0].upper()}{about[1:]}.", default


def read_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with ``overrides`` (dotted key → value) laid over it."""
    values = read_yaml(path, RecipeError, "Recipe")
    if not isinstance(values, dict):
        raise RecipeError(f"Recipe {str(path)!r} must hold settings as 'key: value'.")
    return make_recipe(values, overrides, where=f"Recipe {str(path)!r}")


def make_recipe(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, where: str = "Recipe") -> Recipe:
    """A recipe from plain values, with ``overrides`` (dotted key → value) laid over them.

    What the overrides leave without an effect in ``values`` falls away: a recipe of one method can be carried out by
    another.  Raises ``RecipeError``, also for a setting that has no effect with the others.
    """
    merged, overrides = _copied(values), overrides or {}
    for group in _groups():
        if isinstance(merged.get(group), dict):
            changes = {key.removeprefix(f"{group}."): value for key, value in overrides.items()}
            merged[group] = overruled(_groups()[group], merged[group], changes)
    for key, value in overrides.items():
        _override(merged, key, value, where)
    recipe = validated(Recipe, merged, where)
    _require_effect_of_all(recipe, where)
    _require_epochs(recipe, overrides, where)
    return recipe


def _require_effect_of_all(recipe: Recipe, where: str) -> None:
    try:
        for name in _groups():
            group = getattr(recipe, name)
            if group is not None:
                require_effect(group, f"{name}.")
        require_images(recipe.fit, recipe.data is not None, "data.source, as in --data folder:PATH")
    except RecipeError as problem:
        raise RecipeError(f"{where}: {problem}") from None


def _require_epochs(recipe: Recipe, overrides: Mapping[str, Any], where: str) -> None:
    """Refuse to train for a setting of fine-tuning alone: nobody said that it is to take place."""
    key = next((key for key in overrides if key.startswith("finetune.")), None)
    if key and recipe.finetune and "epochs" not in recipe.finetune.model_fields_set:
        raise RecipeError(f"{where}: {key} = {overrides[key]} has no effect without finetune.epochs, as in --epochs 1.")


def require_images(fit: FitSettings, images: bool, wanted: str) -> None:
    """Raise ``RecipeError`` for settings of a fit that does not take place, for want of images."""
    idle = next((name for name in given(fit) if name != "how"), None)
    if fit.resolved(images) == "none" and idle:
        raise RecipeError(
            f"fit.{idle} = {getattr(fit, idle)} has no effect without images; give {wanted}, or choose how weights."
        )


def _groups() -> dict[str, type[BaseModel]]:
    """The groups of settings in a recipe."""
    found = {name: list(models_in(field.annotation)) for name, field in Recipe.model_fields.items()}
    return {name: models[0] for name, models in found.items() if models}


def _override(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set ``key``: a setting of the recipe by its path, or ``LAYERS.s`` for the layers a glob matches."""
    head, _, last = key.rpartition(".")
    if _is_setting(Recipe, key.split(".")) or not _is_of_layers(key):
        _put(values, key, value, where)
        return
    _put(values, "ghost.set", values.get("ghost", {}).get("set", {}), where)
    values["ghost"]["set"].setdefault(head, {})[last] = value


def group_of(key: str) -> str:
    """The group of the recipe that a key of ``make_recipe`` changes: of ``LAYERS.s`` ghost, of no setting none."""
    if _is_setting(Recipe, key.split(".")):
        return key.partition(".")[0]
    return "ghost" if _is_of_layers(key) else ""


def _is_of_layers(key: str) -> bool:
    head, _, last = key.rpartition(".")
    return bool(head) and last in SiteSettings.model_fields


def _is_setting(model: type[BaseModel], path: list[str]) -> bool:
    info = model.model_fields.get(path[0])
    if info is None or len(path) == 1:
        return info is not None
    return any(_is_setting(part, path[1:]) for part in models_in(info.annotation)) or "dict" in str(info.annotation)


def _put(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: {key!r} does not name a setting: {parent!r} holds a plain value.")
        values = inner
    values[last] = value


def _copied(values: Any) -> Any:
    return {key: _copied(value) for key, value in values.items()} if isinstance(values, Mapping) else values
