"""The command line's options.  One that is a setting takes its help and default from ``recipe/``.

An option is a name (``--min-saving``) and the key of the setting it stands for (``ghost.min_saving``); what a verb was
given becomes a recipe by those keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ghostify import __version__
from ghostify.cli import streams
from ghostify.effects import given as given_in
from ghostify.errors import RecipeError, did_you_mean
from ghostify.inputs import GRAMMAR, settled_inputs
from ghostify.recipe import Recipe, group_of, make_recipe, meaning, read_yaml
from ghostify.shipped import find_recipe

KEYS: dict[str, str] = {}
"""The setting that each option stands for, by the option's name in Python (``min_saving`` → ``ghost.min_saving``)."""
FLAGS: dict[str, str] = {}
"""How each of these is typed."""

SUBJECT = "Model and data"
CHANGES = "What changes"
BUDGET = "What it may cost"
FITTING = "Fitting the weights"
TRAINING = "Fine-tuning"
TIMING = "What is timed, and where"
FILE = "What is written"
OUTPUT = "Output"
MORE = "Every other setting, and where it runs"


def _setting(
    name: str,
    key: str,
    panel: str,
    *,
    flag: str = "",
    metavar: str | None = None,
    default: str | None = None,
    repeatable: bool = False,
    hidden: bool = False,
    envvar: str | None = None,
) -> Any:
    """The option that stands for the setting ``key``; ``default`` is for where a verb's own is not the setting's.

    An older word for a setting is read and not shown (``hidden``); ``envvar`` gives it where nobody types it.
    """
    KEYS[name] = key
    flag = flag or f"--{name.replace('_', '-')}"
    FLAGS[name] = flag.partition("/")[0]
    about, usual = meaning(key)
    shown = _as_typed(usual) if default is None else default
    if shown:
        about = f"{about.removesuffix('.')} (default: {shown})."
    if repeatable or isinstance(usual, tuple):
        about = f"{about} Repeatable."
    shows: dict[str, Any] = {"metavar": metavar, "rich_help_panel": panel, "hidden": hidden, "show_default": False}
    return typer.Option(flag, help=about, envvar=envvar, **shows)


def _as_typed(default: Any) -> str:
    """A default as it would be typed; nothing for one that says "none given"."""
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _other(*flags: str, panel: str, help: str, **more: Any) -> Any:
    """An option that stands for no single setting."""
    return typer.Option(*flags, help=help, show_default=False, rich_help_panel=panel, **more)


KEYS["model"] = "model.source"
Model = Annotated[str | None, typer.Argument(help=meaning("model.source")[0], show_default=False, metavar="MODEL")]
Weights = Annotated[str | None, _setting("weights", "model.weights", SUBJECT, metavar="FILE|DEFAULT")]
WeightsKey = Annotated[str | None, _setting("weights_key", "model.weights_key", SUBJECT, metavar="NAME")]
WeightsStrict = Annotated[
    str | None, _setting("weights_strict", "model.weights_strict", SUBJECT, metavar="yes|no", default="yes")
]
WeightsAllow = Annotated[list[str] | None, _setting("weights_allow", "model.weights_allow", SUBJECT, metavar="CLASS")]
Input = Annotated[
    list[str] | None, _setting("input", "model.input", SUBJECT, metavar="[NAME=]SHAPE[:DTYPE]", repeatable=True)
]
DataSource = Annotated[str | None, _setting("data", "data.source", SUBJECT, metavar="SOURCE")]
Metric = Annotated[str | None, _setting("metric", "data.metric", SUBJECT, metavar="FUNCTION")]
Loss = Annotated[str | None, _setting("loss", "data.loss", SUBJECT, metavar="FUNCTION")]
BatchSize = Annotated[int | None, _setting("batch_size", "data.batch_size", SUBJECT)]

MethodName = Annotated[str | None, _setting("method", "ghost.method", CHANGES, metavar="METHOD")]
S = Annotated[int | None, _setting("s", "ghost.s", CHANGES)]
CheapForm = Annotated[str | None, _setting("cheap", "ghost.cheap", CHANGES, metavar="OPERATION")]
D = Annotated[int | None, _setting("d", "ghost.d", CHANGES, hidden=True)]
PointwiseForm = Annotated[str | None, _setting("pointwise", "ghost.pointwise", CHANGES, metavar="FORM", hidden=True)]
GhostShare = Annotated[float | None, _setting("ratio", "ghost.ratio", CHANGES)]
PresetName = Annotated[str | None, _setting("preset", "ghost.preset", CHANGES, metavar="PRESET")]
Width = Annotated[float | None, _setting("width", "ghost.width", CHANGES)]
Include = Annotated[list[str] | None, _setting("include", "ghost.include", CHANGES, metavar="PATTERN")]
Exclude = Annotated[list[str] | None, _setting("exclude", "ghost.exclude", CHANGES, metavar="PATTERN")]
Also = Annotated[list[str] | None, _setting("also", "ghost.also", CHANGES, metavar="ROLE")]
MinSaving = Annotated[float | None, _setting("min_saving", "ghost.min_saving", CHANGES)]
PlanFile = Annotated[
    Path | None, _other("--plan", panel=CHANGES, help="A plan to carry out, written by `ghostify plan -o`.")
]
FromAnalysis = Annotated[
    Path | None,
    _other("--from-analysis", panel=CHANGES, help="Plan what `ghostify analyze` advised in this folder."),
]

Targets = Annotated[list[str] | None, _setting("target", "budget.target", BUDGET, metavar="COST=AMOUNT")]
Kept = Annotated[str | None, _setting("keep", "budget.keep", BUDGET, metavar="SHARE")]
RuntimeName = Annotated[str | None, _setting("runtime", "budget.runtime", BUDGET, metavar="RUNTIME")]
TimedBatch = Annotated[int | None, _setting("batch", "budget.batch", BUDGET)]
Threads = Annotated[int | None, _setting("threads", "budget.threads", BUDGET)]
Measure = Annotated[
    bool | None,
    _setting("measure", "budget.measure", BUDGET, flag="--measure/--no-measure", envvar="GHOSTIFY_MEASURE"),
]

SweepTargets = Annotated[
    list[str] | None, _setting("targets", "sweep.targets", BUDGET, metavar="SHARES", default="0.8x,0.6x,0.4x")
]
SharesOf = Annotated[str | None, _setting("of", "sweep.of", BUDGET, metavar="COST")]
Neighbours = Annotated[
    bool | None, _setting("neighbours", "sweep.neighbours", BUDGET, flag="--neighbours/--no-neighbours")
]

FitHow = Annotated[str | None, _setting("fit", "fit.how", FITTING, metavar="HOW")]
Calibration = Annotated[int | None, _setting("calibration", "fit.images", FITTING)]

Epochs = Annotated[int | None, _setting("epochs", "finetune.epochs", TRAINING)]
EpochsIfAny = Annotated[int | None, _setting("epochs", "finetune.epochs", TRAINING, default="0")]
OptimizerName = Annotated[str | None, _setting("optimizer", "finetune.optimizer", TRAINING, metavar="NAME")]
LearningRate = Annotated[str | None, _setting("lr", "finetune.lr", TRAINING, metavar="RATE|auto")]
ScheduleName = Annotated[str | None, _setting("schedule", "finetune.schedule", TRAINING, metavar="NAME")]
WarmUp = Annotated[float | None, _setting("warmup", "finetune.warmup", TRAINING)]
Freeze = Annotated[list[str] | None, _setting("freeze", "finetune.freeze", TRAINING, metavar="PATTERN")]
Distill = Annotated[float | None, _setting("distill", "finetune.distill", TRAINING)]
TeacherName = Annotated[str | None, _setting("teacher", "finetune.teacher", TRAINING, metavar="MODEL")]
MixUp = Annotated[float | None, _setting("mixup", "finetune.mixup", TRAINING)]
CutMix = Annotated[float | None, _setting("cutmix", "finetune.cutmix", TRAINING)]
MovingAverage = Annotated[float | None, _setting("ema", "finetune.ema", TRAINING, metavar="DECAY")]
MixedPrecision = Annotated[str | None, _setting("amp", "finetune.amp", TRAINING, metavar="no|bf16|fp16")]

Images = Annotated[int | None, _setting("images", "analysis.images", SUBJECT)]
Layers = Annotated[list[str] | None, _setting("layers", "analysis.layers", CHANGES, metavar="PATTERN")]
FilterSize = Annotated[int | None, _setting("kernel", "analysis.d", CHANGES, flag="--d")]
Tolerance = Annotated[float | None, _setting("tolerance", "analysis.tolerance", CHANGES)]

Networks = Annotated[
    list[str],
    typer.Argument(
        help="Networks by source, run folders, or exported files (.onnx, .xml, .pt2); the first is the baseline.",
        show_default=False,
        metavar="NETWORK...",
    ),
]
Runtimes = Annotated[
    list[str] | None,
    _other(
        "--runtime",
        panel=TIMING,
        metavar="RUNTIME",
        help="Of eager, compile, onnxruntime and openvino, with commas or repeated (default: eager, or what can run "
        "all files).",
    ),
]
Batches = Annotated[
    list[str] | None,
    _other("--batch", panel=TIMING, metavar="N", help="Samples at a time, with commas or repeated (default: 1)."),
]
ThreadCounts = Annotated[
    list[str] | None,
    _other("--threads", panel=TIMING, metavar="N", help="CPU threads, with commas or repeated (default: 1)."),
]
TimedOn = Annotated[
    str,
    _other(
        "--device", panel=TIMING, help="cpu, cuda, cuda:1, or auto: a GPU where all runtimes use one (default: auto)."
    ),
]
TimedForm = Annotated[
    str,
    _other(
        "--form",
        panel=TIMING,
        metavar="inference|training",
        help="The form of networks and runs: the one that runs fastest, or the one that trains (default: inference).",
    ),
]
TimedInput = Annotated[
    list[str] | None,
    _other(
        "--input",
        panel=TIMING,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="The input of those whose source does not tell, as in 3,224,224. Repeatable.",
    ),
]
Seconds = Annotated[
    float, _other("--seconds", panel=TIMING, help="Time for each network in each setting (default: 3).")
]
Memory = Annotated[
    bool,
    _other("--memory/--no-memory", panel=TIMING, help="Measure memory, each in a process of its own (default: yes)."),
]
BenchOutput = Annotated[
    Path | None,
    _other("--output", "-o", panel=OUTPUT, help="A folder for the numbers and a picture. It is numbered when taken."),
]

RecipeFile = Annotated[
    str | None,
    _other("--recipe", "-r", panel=MORE, help="A recipe file, or the name of one of ours: `ghostify recipes list`."),
]
RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of one of ours: `ghostify recipes list`.")]
RecipeIfAny = Annotated[
    str | None,
    typer.Argument(help="A recipe file, or the name of one of ours; by default all of ours.", show_default=False),
]
TriedSteps = Annotated[
    int,
    _other("--steps", panel=MORE, min=0, help="Training steps to try on synthetic images; 0: none (default: 3)."),
]
Set = Annotated[
    list[str] | None,
    _other(
        "--set",
        panel=MORE,
        metavar="KEY=VALUE",
        help="Any setting, as in finetune.lr=0.01, or one of some layers, as in 'layer4.*.s=4'. Repeatable.",
    ),
]
Seed = Annotated[int | None, _setting("seed", "seed", MORE)]
Device = Annotated[str | None, _setting("device", "device", MORE)]
TensorBoard = Annotated[
    bool | None, _setting("tensorboard", "tensorboard", OUTPUT, flag="--tensorboard/--no-tensorboard")
]

Output = Annotated[
    Path | None,
    _other("--output", "-o", panel=OUTPUT, help="The run folder; the default is runs/NAME. It is numbered when taken."),
]
OptimizedOutput = Annotated[
    Path | None,
    _other(
        "--output", "-o", panel=OUTPUT, help="The run folder; the default is RUN-inference. It is numbered when taken."
    ),
]
FormatName = Annotated[
    str,
    _other(
        "--to",
        panel=FILE,
        metavar="FORMAT",
        help="What is written: onnx, openvino, executorch, torch-export, torchscript or aoti (default: onnx).",
    ),
]
OpenSizes = Annotated[
    str | None,
    _other(
        "--dynamic",
        panel=FILE,
        metavar="batch|size",
        help="Which sizes stay open: the batch, or height and width with it (default: none).",
    ),
]
FilePrecision = Annotated[
    str,
    _other("--precision", panel=FILE, metavar="fp32|fp16|int8", help="What the file computes in (default: fp32)."),
]
HalfIo = Annotated[
    bool, _other("--half-io", panel=FILE, help="A file in fp16 takes and gives 16-bit floats, too, not 32-bit ones.")
]
Opset = Annotated[int | None, _other("--opset", panel=FILE, metavar="N", help="That of an ONNX file (default: 18).")]
WrittenForm = Annotated[
    str,
    _other(
        "--form",
        panel=FILE,
        metavar="inference|training",
        help="The form that runs fastest, or layer by layer as it was trained (default: inference).",
    ),
]
ExportOutput = Annotated[
    Path | None,
    _other("--output", "-o", panel=OUTPUT, help="The file; the default is RUN/exports/RUN with the format's ending."),
]
PlanOutput = Annotated[Path | None, _other("--output", "-o", panel=OUTPUT, help="Write the plan to this file.")]
AnalysisOutput = Annotated[
    Path | None,
    _other(
        "--output",
        "-o",
        panel=OUTPUT,
        help="The report's folder; the default is analyses/NAME. It is numbered when taken.",
    ),
]
SweepOutput = Annotated[
    Path | None,
    _other(
        "--output",
        "-o",
        panel=OUTPUT,
        help="The sweep's folder; the default is sweeps/NAME. It is numbered when taken.",
    ),
]
Resume = Annotated[Path | None, _other("--resume", panel=OUTPUT, help="Go on with an interrupted run folder.")]
DryRun = Annotated[bool, _other("--dry-run", panel=OUTPUT, help="Show the plan and what it saves, and write nothing.")]
Figures = Annotated[bool, _other("--figures", panel=OUTPUT, help="Draw figures (PNG and SVG), too.")]
Detailed = Annotated[bool, _other("--layers", panel=OUTPUT, help="Show every stage and layer, and every class, too.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]


def _keep_stdout(asked: bool) -> bool:
    """Before anything of the user's is imported, whose prints would stand in the JSON."""
    if asked:
        streams.stdout.begin()
    return asked


Json = Annotated[
    bool,
    _other("--json", panel=OUTPUT, help="Print JSON on stdout, and nothing else there.", callback=_keep_stdout),
]


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ghostify {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True),
]

GHOST_OPTIONS = tuple(name for name, key in KEYS.items() if key.startswith("ghost."))
"""The options that decide a plan."""


PLAN_OPTIONS = (*GHOST_OPTIONS, "target", "keep")
"""Those that a plan has decided already."""


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a verb's local variables, the options that are settings and were given."""
    return {name: options[name] for name in KEYS if options.get(name) not in (None, [])}


def typed(context: typer.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options given, those that stand on the command line itself, not in the environment."""
    sources = {name: context.get_parameter_source(name) for name in given}
    return {name: value for name, value in given.items() if getattr(sources[name], "name", "") != "ENVIRONMENT"}


FORMS = ("inference", "training")
"""Of a network: the one that runs fastest, and the one that trains."""
USED = {
    "scan": ("model", "data"),
    "analyze": ("model", "data", "analysis"),
    "plan": ("model", "data", "ghost", "budget"),
    "compress": ("model", "data", "pretrain", "ghost", "budget", "fit", "finetune"),
    "sweep": ("model", "data", "ghost", "budget", "fit", "sweep"),
    "finetune": ("model", "data", "finetune"),
    "eval": ("model", "data"),
    "export": ("model", "data"),
}
"""The groups of settings that each verb makes use of; a recipe file may hold the others, for other verbs."""


def require_form(form: str) -> None:
    """Raises ``RecipeError`` for a form that there is not."""
    if form not in FORMS:
        raise RecipeError(f"--form is inference or training, not {form!r}.{did_you_mean(form, FORMS)}")


def recipe_of(verb: str, name: str | None, assignments: list[str] | None, **options: Any) -> Recipe:
    """The recipe a command line adds up to: a file's, then the options, then ``--set``.

    Raises ``RecipeError``, also for what is set of a group that the ``verb`` makes no use of.
    """
    overrides = {KEYS[option]: _value(option, value) for option, value in options.items() if value not in (None, [])}
    overrides |= dict(_assignment(text) for text in assignments or [])
    values = read_yaml(find_recipe(name), RecipeError, "Recipe") if name else {}
    if not name and "model.source" not in overrides:
        raise RecipeError("Which model? Give one, as in torchvision:resnet50, or a --recipe.")
    if not isinstance(values, dict):
        raise RecipeError(f"Recipe {name!r} must hold settings as 'key: value'.")
    _require_used(verb, overrides)
    try:
        recipe = make_recipe(values, overrides, where=f"Recipe {name!r}" if name else "The settings given")
    except RecipeError as problem:
        raise _of_option(problem, options) from None
    _refuse_beside_run(recipe, overrides)
    return recipe


def _refuse_beside_run(recipe: Recipe, overrides: Mapping[str, Any]) -> None:
    """Refuse what builds a network or loads weights where a run folder is named: a run holds both."""
    said = [key.split(".")[1] for key in overrides if key.startswith("model.")]
    if "source" not in said:  # the recipe's own
        said += given_in(recipe.model)
    idle = [name for name in said if name == "args" or name.startswith("weights")]
    if not idle:
        return
    from ghostify.saving import is_run

    if is_run(recipe.model.source):
        raise RecipeError(
            f"model.{idle[0]} has no effect on the run folder {recipe.model.source!r}, which holds its own network and "
            "weights; leave it out."
        )


def _require_used(verb: str, overrides: Mapping[str, Any]) -> None:
    grouped = {group for groups in USED.values() for group in groups}
    unused = grouped - set(USED[verb])
    key = next((key for key in overrides if group_of(key) in unused), None)
    if key is not None:
        raise RecipeError(f"--set {key}={overrides[key]}: it has no effect in `ghostify {verb}`; leave it out.")


def _of_option(problem: RecipeError, options: Mapping[str, Any]) -> RecipeError:
    """The problem under the name of the option that was typed, where it is that of one."""
    typed = [name for name in options if name != "model" and f"{problem.key}.".startswith(f"{KEYS[name]}.")]
    if not typed:
        return problem
    what = str(problem).partition(": ")[2]
    return RecipeError(f"{FLAGS[typed[0]]}: {what}")


def refuse_together(option: str, value: Any, others: Mapping[str, Any]) -> None:
    """Refuse options that ``option`` would silently overrule: a plan or an interrupted run has decided them."""
    if value is None:
        return
    if clashing := [name for name, other in others.items() if other is not None]:
        option_name, *key = clashing[0].split()
        name = " ".join([option_name if option_name == "model" else f"--{option_name.replace('_', '-')}", *key])
        raise RecipeError(f"{option} {str(value)!r} decides that already; leave out {name}.")


def set_for_plans(assignments: list[str] | None) -> dict[str, Any]:
    """What ``--set`` says of how a network is rewritten, by ``set KEY``; the method is not among it."""
    said = dict(_assignment(text) for text in assignments or [])
    return {f"set {key}": value for key, value in said.items() if group_of(key) == "ghost" and key != "ghost.method"}


def _value(name: str, value: Any) -> Any:
    return value if name != "input" else input_of(value)


def input_of(value: list[str]) -> tuple[int, ...] | tuple[str, ...]:
    """What ``--input`` says, as a recipe keeps it.  Raises ``RecipeError``."""
    try:
        return settled_inputs(value)
    except ValueError as problem:
        given = " ".join(f"--input {text!r}" for text in value)
        raise RecipeError(f"{given} cannot be read: {problem}; write {GRAMMAR}.") from None


def numbers(option: str, texts: list[str] | None) -> tuple[int, ...]:
    """Whole numbers, with commas or one by one; 1 where there are none.  Raises ``RecipeError``."""
    words = listed(texts) or ["1"]
    if wrong := [word for word in words if not word.isdecimal()]:
        raise RecipeError(f"{option} takes whole numbers of 1 or more, as in {option} 1,16, and not {wrong[0]!r}.")
    return tuple(map(int, words))


def listed(texts: list[str] | None) -> list[str]:
    """Words that were given with commas or one by one."""
    return [word.strip() for text in texts or [] for word in text.split(",")]


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text!r} is not KEY=VALUE.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {text!r}: the value is not valid YAML.") from None
