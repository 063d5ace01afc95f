"""The verbs.  Each parses its options into a recipe, calls one chapter, and prints; ``--help`` never imports torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from ghostify.cli import show
from ghostify.errors import DataError, GhostifyError, PlanError, RecipeError
from ghostify.recipe import Recipe, find_recipe, make_recipe, read_yaml, shipped_recipes

if TYPE_CHECKING:
    from ghostify.experiment import Outcome
    from ghostify.planning import Plan

app = typer.Typer(
    name="ghostify",
    help="Rewrite any CNN with C-Ghost modules and G-Ghost stages, keeping its trained weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="The recipes that come with ghostify.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

Model = Annotated[
    str | None,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, ghostify:NAME, package.module:function, or a run folder.",
        show_default=False,
    ),
]
Weights = Annotated[str | None, typer.Option(help="Checkpoint file, or DEFAULT for the source's pretrained weights.")]
Input = Annotated[str | None, typer.Option("--input", help="Shape of one input, as in 3,224,224.")]
DataSource = Annotated[
    str | None, typer.Option("--data", help="digits, folder:PATH, cifar10:PATH, fake, or package.module:function.")
]
RecipeFile = Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe file, or the name of one of ours.")]
RecipeName = Annotated[str, typer.Argument(help="Recipe file, or the name of one of ours.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting: finetune.lr=0.01, or of layers: 'layer4.*.s=4'. Repeatable."),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="c-ghost: convolutions (the default); g-ghost: stages; both; auto: by device; without ghosts, width: "
        "every layer narrower, thin: blocks narrower inside.",
    ),
]
GhostShare = Annotated[float | None, typer.Option("--ratio", help="Ghost ratio λ of a stage, between 0 and 1.")]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="Form of a G-Ghost stage: default, literal, cifar, imagenet, regnet.")
]
Width = Annotated[float | None, typer.Option("--width", help="Share of channels kept by --method width and thin.")]
S = Annotated[int | None, typer.Option("--s", help="Ratio s: every s output maps come from one intrinsic map.")]
D = Annotated[int | None, typer.Option("--d", help="Kernel size d of the cheap operation, odd.")]
PointwiseForm = Annotated[
    str | None,
    typer.Option(
        "--pointwise",
        metavar="none|auto|full|RANK",
        help="1x1 convolution over all intrinsic maps, added to the ghosts: none, as in the papers; auto: where it is "
        "cheap; full; or a rank.",
    ),
]
Include = Annotated[list[str] | None, typer.Option(help="Glob of layers to consider. Repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Glob of layers to leave alone. Repeatable.")]
Also = Annotated[
    list[str] | None,
    typer.Option(
        help="Take what is left alone by default: stem, classifier, pooled, depthwise, channels-last (linear layers on "
        "maps). Repeatable."
    ),
]
MinSaving = Annotated[
    float | None, typer.Option(help="Least MACs saved per element moved; 0 ghosts even what gets slower.")
]
FitHow = Annotated[
    str | None,
    typer.Option(
        "--fit",
        help="How the weights are carried over: data (fitted to training images; the default with --data), weights "
        "(to noise), polish (data, then by gradient), none.",
    ),
]
Calibration = Annotated[int | None, typer.Option("--calibration", help="Training images the fit looks at.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
BatchSize = Annotated[int | None, typer.Option(help="Images per batch.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of fine-tuning.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate of fine-tuning.")]
Distill = Annotated[float | None, typer.Option(help="Weight (0 to 1) of the original network's soft labels.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; numbered when it is taken.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with an interrupted run folder.")]


@app.command()
def scan(
    model: Model = None,
    weights: Weights = None,
    input: Input = None,
    recipe: RecipeFile = None,
    set: Set = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """List a network's convolutions and stages, and what each costs.

    ghostify scan torchvision:resnet50
    """
    settings = _recipe(recipe, set, model=model, weights=weights, input=input, seed=seed)
    from ghostify.experiment import prepare
    from ghostify.rewriting import survey

    subject = prepare(settings.model, settings.data, settings.seed)
    found = survey(subject.model, subject.example)
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        show.table(found.table())
        if found.stages:
            show.table(found.stage_table())


@app.command()
def analyze(
    model: Model = None,
    weights: Weights = None,
    input: Input = None,
    data: DataSource = None,
    images: Annotated[int | None, typer.Option("--images", help="Images to look at, without labels.")] = None,
    layers: Annotated[
        list[str] | None, typer.Option("--layers", help="Glob of layers and stages to look at. Repeatable.")
    ] = None,
    kernel: Annotated[
        int | None, typer.Option("--d", help="Size d of the filters that ghosts are made by, odd.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="Share of a layer's variance that may be lost.")
    ] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Draw figures (PNG and SVG), too.")] = False,
    recipe: RecipeFile = None,
    set: Set = None,
    seed: Seed = None,
    device: Device = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report; numbered when it is taken.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how redundant a network's feature maps are, and what s, d and λ that allows: a table, JSON, CSV, a page.

    ghostify analyze torchvision:resnet50 --weights DEFAULT --data folder:imagenet
    """
    settings = _recipe(recipe, set, **_given(locals()))
    from ghostify.experiment import look
    from ghostify.reporting.analysis_files import write_analysis
    from ghostify.reporting.figures import require_figures
    from ghostify.saving import discard, reserve

    if figures:
        require_figures()
    folder = reserve(output or Path("analyses") / _run_name(settings))
    try:
        found = look(settings, show.Watcher(quiet=as_json))
        write_analysis(folder, found.analysis, found.pictures, figures)
    except BaseException:
        discard(folder)
        raise
    if as_json:
        _print_json({"folder": str(folder), **found.analysis.model_dump(mode="json")})
    else:
        show.table(found.analysis.table())
        if found.analysis.stages:
            show.table(found.analysis.stage_table())
        show.say(f"The page with pictures: {folder / 'report.html'}")
        show.say(f"A plan of what is advised: ghostify plan {settings.model.source} --from-analysis {folder}")
    if not found.analysis.complete:
        raise RunInterrupted(f"Interrupted: what was done is in {folder}.")


@app.command()
def plan(
    model: Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan to this file.")] = None,
    from_analysis: Annotated[
        Path | None, typer.Option("--from-analysis", help="Plan what `ghostify analyze` advised in this folder.")
    ] = None,
    weights: Weights = None,
    input: Input = None,
    method: MethodName = None,
    s: S = None,
    d: D = None,
    pointwise: PointwiseForm = None,
    ratio: GhostShare = None,
    preset: PresetName = None,
    width: Width = None,
    include: Include = None,
    exclude: Exclude = None,
    also: Also = None,
    min_saving: MinSaving = None,
    recipe: RecipeFile = None,
    set: Set = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say what would become a ghost module, what would not, and why; write it down to be edited.

    ghostify plan torchvision:resnet50 -o plan.yaml
    """
    options = _given(locals())
    settings = _recipe(recipe, set, **options)
    if from_analysis:
        decided = {name: options[name] for name in _GHOST_OPTIONS if name in options and name != "method"}
        _refuse_together("--from-analysis", from_analysis, decided)
        settings = _as_advised(settings, from_analysis)
    from ghostify.experiment import propose

    proposed = propose(settings)
    if output:
        _write_new(output, proposed.to_yaml())
        show.say(f"Plan written to {output}")
    if as_json:
        _print_json(proposed.model_dump(mode="json"))
    else:
        show.table(proposed.table())


@app.command()
def compress(
    model: Model = None,
    plan: Annotated[Path | None, typer.Option(help="A plan to carry out, from `ghostify plan -o`.")] = None,
    weights: Weights = None,
    input: Input = None,
    data: DataSource = None,
    method: MethodName = None,
    s: S = None,
    d: D = None,
    pointwise: PointwiseForm = None,
    ratio: GhostShare = None,
    preset: PresetName = None,
    width: Width = None,
    include: Include = None,
    exclude: Exclude = None,
    also: Also = None,
    min_saving: MinSaving = None,
    fit: FitHow = None,
    calibration: Calibration = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    distill: Distill = None,
    batch_size: BatchSize = None,
    recipe: RecipeFile = None,
    set: Set = None,
    seed: Seed = None,
    device: Device = None,
    output: Output = None,
    resume: Resume = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and what it saves; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Rewrite a network with ghost modules, fit them, measure it, fine-tune it if asked, and save it in a run folder.

    ghostify compress torchvision:resnet50 --weights DEFAULT --data folder:imagenet --epochs 3 --distill 0.7
    """
    options = _given(locals())
    _refuse_together("--plan", plan, {name: options[name] for name in _GHOST_OPTIONS if name in options})
    _refuse_together("--resume", resume, {**options, "plan": plan, "recipe": recipe, "set": set, "output": output})
    settings = _resumable(resume) if resume else _recipe(recipe, set, **options)
    if dry_run:
        _dry_run(settings, plan, as_json)
        return
    from ghostify.experiment import compress as run

    given = _read_plan(plan, resume)
    with _run_folder(settings, output, resume, given, "compress") as folder:
        outcome = run(settings, folder, show.Watcher(quiet=as_json), given)
    _show_outcome(outcome, as_json)


@app.command()
def finetune(
    model: Model = None,
    weights: Weights = None,
    input: Input = None,
    data: DataSource = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    distill: Distill = None,
    batch_size: BatchSize = None,
    recipe: RecipeFile = None,
    set: Set = None,
    seed: Seed = None,
    device: Device = None,
    output: Output = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Train a saved run further (or any network as it is), into a new run folder.

    ghostify finetune runs/digits --data digits --epochs 5
    """
    options = _given(locals())
    _refuse_together("--resume", resume, {**options, "recipe": recipe, "set": set, "output": output})
    settings = _resumable(resume) if resume else _recipe(recipe, set, **{"epochs": 1, **options})
    if not settings.data:
        raise DataError("Fine-tuning needs images; give them, as in --data folder:PATH.")
    from ghostify.experiment import train

    with _run_folder(settings, output, resume, None, "finetune") as folder:
        outcome = train(settings, folder, show.Watcher(quiet=as_json))
    _show_outcome(outcome, as_json)


@app.command(name="eval")
def evaluate(
    model: Model = None,
    weights: Weights = None,
    input: Input = None,
    data: DataSource = None,
    batch_size: BatchSize = None,
    recipe: RecipeFile = None,
    set: Set = None,
    seed: Seed = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure a network's accuracy on test images.

    ghostify eval runs/digits --data digits
    """
    settings = _recipe(recipe, set, **_given(locals()))
    from ghostify.experiment import measure_accuracy

    accuracy = measure_accuracy(settings, show.Watcher(quiet=as_json))
    if as_json:
        _print_json(accuracy.model_dump())
    else:
        show.out.print(f"accuracy {accuracy}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    layers: Annotated[bool, typer.Option("--layers", help="Stage by stage and layer by layer, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show the report of a run again: theory beside counts beside measurements.

    ghostify report runs/digits --layers
    """
    from ghostify.saving import read_report

    found = read_report(run)
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    for table in found.details() if layers else ():
        show.table(table)
    show.table(found.summary())


@app.command()
def env(as_json: Json = False) -> None:
    """Show the versions and the hardware that results depend on."""
    from ghostify.saving import describe_environment

    found = describe_environment()
    if as_json:
        _print_json(found)
        return
    for key, value in {**found, **found.pop("libraries")}.items():
        show.out.print(f"{key:14}{value}")


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """Name the recipes that come with ghostify."""
    titles = {name: _title(path) for name, path in shipped_recipes().items()}
    if as_json:
        _print_json(titles)
        return
    from ghostify.tables import Table

    show.table(Table("", ["recipe", "what it does"], [[*row] for row in titles.items()], frozenset({"what it does"})))


@recipes_app.command("show")
def show_recipe(name: RecipeName, as_json: Json = False) -> None:
    """Print a recipe; as JSON, with every default filled in."""
    path = find_recipe(name)
    recipe = _validated_recipe(path)
    if as_json:
        _print_json(recipe.model_dump(mode="json"))
    else:
        print(path.read_text(encoding="utf-8"), end="")


@recipes_app.command("check")
def check_recipe(name: RecipeName, as_json: Json = False) -> None:
    """Check a recipe's keys and values."""
    path = find_recipe(name)
    _validated_recipe(path)
    if as_json:
        _print_json({"recipe": str(path), "valid": True})
    else:
        show.out.print(f"{path} is a valid recipe.")


def main() -> None:
    """The console script: run a verb, and turn what goes wrong into one line and an exit code.

    0 done; 1 an error of ours; 2 a command that cannot be parsed; 130 interrupted.
    """
    try:
        app()
    except GhostifyError as problem:
        show.error(str(problem))
        sys.exit(1)
    except RunInterrupted as stop:
        show.error(str(stop))
        sys.exit(130)


# -- options → recipe ------------------------------------------------------------------------------------------

_KEYS = {
    "model": "model.source",
    "weights": "model.weights",
    "input": "model.input",
    "data": "data.source",
    "batch_size": "data.batch_size",
    "method": "ghost.method",
    "ratio": "ghost.ratio",
    "preset": "ghost.preset",
    "width": "ghost.width",
    "s": "ghost.s",
    "d": "ghost.d",
    "pointwise": "ghost.pointwise",
    "include": "ghost.include",
    "exclude": "ghost.exclude",
    "also": "ghost.also",
    "min_saving": "ghost.min_saving",
    "fit": "fit.how",
    "calibration": "fit.images",
    "images": "analysis.images",
    "layers": "analysis.layers",
    "kernel": "analysis.d",
    "tolerance": "analysis.tolerance",
    "epochs": "finetune.epochs",
    "lr": "finetune.lr",
    "distill": "finetune.distill",
    "seed": "seed",
    "device": "device",
}


_GHOST_OPTIONS = (
    "method",
    "ratio",
    "preset",
    "width",
    "s",
    "d",
    "pointwise",
    "include",
    "exclude",
    "also",
    "min_saving",
)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Of a command's local variables, the options that are settings and were given."""
    return {name: options[name] for name in _KEYS if options.get(name) not in (None, [])}


def _recipe(name: str | None, assignments: list[str] | None, **options: Any) -> Recipe:
    """The recipe a command line adds up to: a file's, then the options, then ``--set``."""
    overrides = {_KEYS[option]: _option(option, value) for option, value in options.items() if value is not None}
    overrides |= dict(_assignment(text) for text in assignments or [])
    values = read_yaml(find_recipe(name), RecipeError, "Recipe") if name else {}
    if not name and "model.source" not in overrides:
        raise RecipeError("Which model? Give one, as in torchvision:resnet50, or a --recipe.")
    if not isinstance(values, dict):
        raise RecipeError(f"Recipe {name!r} must hold settings as 'key: value'.")
    return make_recipe(values, overrides, where=f"Recipe {name!r}" if name else "The settings given")


def _refuse_together(option: str, value: Any, others: dict[str, Any]) -> None:
    """Refuse options that ``option`` would silently overrule: a plan or an interrupted run has decided them."""
    if value is None:
        return
    if clashing := [name for name, other in others.items() if other is not None]:
        name = clashing[0] if clashing[0] == "model" else f"--{clashing[0].replace('_', '-')}"
        raise RecipeError(f"{option} {str(value)!r} decides that already; leave out {name}.")


def _as_advised(settings: Recipe, path: Path) -> Recipe:
    """The settings with what an analysis advises for the method asked for."""
    from ghostify.analysis import advised, read_analysis

    found = read_analysis(path)
    return settings.model_copy(update={"ghost": advised(found.layers, found.stages, settings.ghost.method)})


def _option(name: str, value: Any) -> Any:
    if name != "input":
        return value
    try:
        return [int(size) for size in str(value).replace("x", ",").split(",")]
    except ValueError:
        raise RecipeError(f"--input {value!r} is not a shape; give it as in 3,224,224.") from None


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text!r} is not KEY=VALUE.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {text!r}: the value is not valid YAML.") from None


def _validated_recipe(path: Path) -> Recipe:
    return make_recipe(read_yaml(path, RecipeError, "Recipe"), where=f"Recipe {str(path)!r}")


def _title(path: Path) -> str:
    """The first comment line of a recipe after the one with its command."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    return next((line for line in lines[1:] if line), "")


# -- run folders -----------------------------------------------------------------------------------------------


@contextmanager
def _run_folder(
    settings: Recipe, output: Path | None, resume: Path | None, given: Plan | None, verb: str
) -> Iterator[Path]:
    """A folder for the run: what was asked for is put down first; an empty folder is not left behind."""
    from ghostify.saving import discard, note_request, reserve

    folder = resume or reserve(output or Path("runs") / _run_name(settings))
    try:
        if not resume:
            note_request(folder, settings, given)
        yield folder
    except KeyboardInterrupt:
        discard(folder)
        how = f" Go on with: ghostify {verb} --resume {folder}" if folder.exists() else ""
        raise RunInterrupted(f"Interrupted.{how}") from None
    except BaseException:
        discard(folder)
        raise


class RunInterrupted(Exception):
    """Ctrl-C in a run, and how to go on."""


def _run_name(settings: Recipe) -> str:
    name = settings.name or Path(settings.model.source.rpartition(":")[2]).name
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name) or "run"


def _resumable(folder: Path) -> Recipe:
    from ghostify.saving import resumable

    return resumable(folder)


def _read_plan(path: Path | None, resume: Path | None) -> Plan | None:
    from ghostify.planning import read_plan

    noted = resume / "plan-given.yaml" if resume else None
    if path is None and noted and noted.is_file():
        path = noted
    return read_plan(path) if path else None


def _dry_run(settings: Recipe, plan: Path | None, as_json: bool) -> None:
    from ghostify.experiment import propose

    proposed = propose(settings, _read_plan(plan, None))
    if as_json:
        _print_json(proposed.model_dump(mode="json"))
    else:
        show.table(proposed.table())
        show.say("Dry run: nothing was written.")


def _show_outcome(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        _print_json({"folder": str(outcome.folder), **outcome.report.model_dump(mode="json")})
        return
    show.table(outcome.report.summary())
    show.say(f"Saved in {outcome.folder}; see each layer with: ghostify report {outcome.folder} --layers")


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet: nothing is overwritten."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise PlanError(f"{str(path)!r} is there already and is not overwritten; choose another name.") from None
    except OSError as problem:
        raise PlanError(f"{str(path)!r} cannot be written: {problem.strerror}.") from None


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
