"""The verbs.  Each parses its options into a recipe, calls one chapter, and prints; ``--help`` never imports torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ghostify.cli import options, show
from ghostify.cli.benching import bench
from ghostify.cli.exporting import export
from ghostify.cli.recipes import recipes_app
from ghostify.cli.runs import RunInterrupted, follows, new_folder, resumable, run_folder, run_name
from ghostify.cli.sweeping import sweep
from ghostify.cli.training import finetune
from ghostify.errors import PlanError
from ghostify.processes import rank
from ghostify.recipe import Recipe

if TYPE_CHECKING:
    from ghostify.planning import Plan

app = typer.Typer(
    name="ghostify",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes_app, name="recipes")


_SHARED = ("compress", "finetune", "analyze")
"""The verbs that several processes carry out together."""


@app.callback()
def ghostify(context: typer.Context, version: options.Version = False) -> None:
    """Rewrite any CNN with C-Ghost modules and G-Ghost stages, keeping its trained weights."""
    if rank() and context.invoked_subcommand not in _SHARED:
        raise typer.Exit  # the first process does it alone


@app.command()
def scan(
    model: options.Model = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    weights_strict: options.WeightsStrict = None,
    weights_allow: options.WeightsAllow = None,
    input: options.Input = None,
    recipe: options.RecipeFile = None,
    set: options.Set = None,
    seed: options.Seed = None,
    as_json: options.Json = False,
) -> None:
    """List a network's convolutions and stages, and what each costs.

    \b
    Example:
    ghostify scan torchvision:resnet50
    """
    settings = options.recipe_of("scan", recipe, set, **options.given(locals()))
    from ghostify.scanning import scan as scan_network
    from ghostify.subject import prepare

    subject = prepare(settings.model, settings.data, settings.seed)
    for note in subject.notes:
        show.say(note)
    found = scan_network(subject.model, subject.example)
    if as_json:
        show.json(found.model_dump(mode="json"))
    else:
        show.table(found.table())
        if found.stages:
            show.table(found.stage_table())


@app.command()
def analyze(
    model: options.Model = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    weights_strict: options.WeightsStrict = None,
    weights_allow: options.WeightsAllow = None,
    input: options.Input = None,
    data: options.DataSource = None,
    images: options.Images = None,
    layers: options.Layers = None,
    kernel: options.FilterSize = None,
    tolerance: options.Tolerance = None,
    recipe: options.RecipeFile = None,
    set: options.Set = None,
    seed: options.Seed = None,
    device: options.Device = None,
    figures: options.Figures = False,
    output: options.AnalysisOutput = None,
    as_json: options.Json = False,
) -> None:
    """Say how redundant a network's feature maps are, and what s, d and λ that allows: a table, JSON, CSV, a page.

    \b
    Example:
    ghostify analyze torchvision:resnet50 --weights DEFAULT --data folder:images
    """
    settings = options.recipe_of("analyze", recipe, set, **options.given(locals()))
    from ghostify.experiment import analyze as analyzed
    from ghostify.reporting.analysis_files import write_analysis
    from ghostify.reporting.figures import require_figures

    if rank():
        analyzed(settings, show.Watcher(quiet=True))
        return
    if figures:
        require_figures()
    with new_folder(output or Path("analyses") / run_name(settings)) as folder:
        found = analyzed(settings, show.Watcher(quiet=as_json))
        write_analysis(folder, found.analysis, found.pictures, figures)
    if as_json:
        show.json({"folder": str(folder), **found.analysis.model_dump(mode="json")})
    else:
        show.table(found.analysis.table())
        if found.analysis.stages:
            show.table(found.analysis.stage_table())
        show.say(f"The page with pictures: {folder / 'report.html'}")
        planned = f"ghostify plan {shlex.quote(settings.model.source)} --from-analysis {shlex.quote(str(folder))}"
        show.say(f"A plan of what is advised: {planned}")
    if not found.analysis.complete:
        raise RunInterrupted(f"Interrupted: what was done is in {folder}.")


@app.command()
def plan(
    model: options.Model = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    weights_strict: options.WeightsStrict = None,
    weights_allow: options.WeightsAllow = None,
    input: options.Input = None,
    data: options.DataSource = None,
    from_analysis: options.FromAnalysis = None,
    method: options.MethodName = None,
    s: options.S = None,
    cheap: options.CheapForm = None,
    d: options.D = None,
    pointwise: options.PointwiseForm = None,
    ratio: options.GhostShare = None,
    preset: options.PresetName = None,
    width: options.Width = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    also: options.Also = None,
    min_saving: options.MinSaving = None,
    target: options.Targets = None,
    keep: options.Kept = None,
    runtime: options.RuntimeName = None,
    batch: options.TimedBatch = None,
    threads: options.Threads = None,
    measure: options.Measure = None,
    recipe: options.RecipeFile = None,
    set: options.Set = None,
    seed: options.Seed = None,
    device: options.Device = None,
    output: options.PlanOutput = None,
    as_json: options.Json = False,
) -> None:
    """Say what would become a ghost module, what would not, and why; write it down to be edited.

    \b
    Example:
    ghostify plan torchvision:resnet50 -o plan.yaml
    """
    asked = options.given(locals())
    settings = options.recipe_of("plan", recipe, set, **asked)
    if from_analysis:
        decided = {name: asked[name] for name in options.GHOST_OPTIONS if name in asked and name != "method"}
        options.refuse_together("--from-analysis", from_analysis, decided | options.set_for_plans(set))
        settings = _as_advised(settings, from_analysis)
    from ghostify.experiment import propose

    proposed = propose(settings, show.Watcher())
    if output:
        _write_new(output, proposed.to_yaml())
        show.say(f"Plan written to {output}")
    if as_json:
        show.json(proposed.model_dump(mode="json"))
    else:
        show.table(proposed.table())


@app.command()
def compress(
    context: typer.Context,
    model: options.Model = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    weights_strict: options.WeightsStrict = None,
    weights_allow: options.WeightsAllow = None,
    input: options.Input = None,
    data: options.DataSource = None,
    metric: options.Metric = None,
    loss: options.Loss = None,
    batch_size: options.BatchSize = None,
    plan: options.PlanFile = None,
    method: options.MethodName = None,
    s: options.S = None,
    cheap: options.CheapForm = None,
    d: options.D = None,
    pointwise: options.PointwiseForm = None,
    ratio: options.GhostShare = None,
    preset: options.PresetName = None,
    width: options.Width = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    also: options.Also = None,
    min_saving: options.MinSaving = None,
    target: options.Targets = None,
    keep: options.Kept = None,
    runtime: options.RuntimeName = None,
    batch: options.TimedBatch = None,
    threads: options.Threads = None,
    measure: options.Measure = None,
    fit: options.FitHow = None,
    calibration: options.Calibration = None,
    epochs: options.EpochsIfAny = None,
    optimizer: options.OptimizerName = None,
    lr: options.LearningRate = None,
    schedule: options.ScheduleName = None,
    warmup: options.WarmUp = None,
    freeze: options.Freeze = None,
    distill: options.Distill = None,
    teacher: options.TeacherName = None,
    mixup: options.MixUp = None,
    cutmix: options.CutMix = None,
    ema: options.MovingAverage = None,
    amp: options.MixedPrecision = None,
    recipe: options.RecipeFile = None,
    set: options.Set = None,
    seed: options.Seed = None,
    device: options.Device = None,
    output: options.Output = None,
    tensorboard: options.TensorBoard = None,
    resume: options.Resume = None,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Rewrite a network with ghost modules, fit them, measure it, fine-tune it if asked, and save it in a run folder.

    \b
    Example:
    ghostify compress torchvision:resnet50 --weights DEFAULT --data folder:images
    """
    asked = options.given(locals())
    decided = {name: asked[name] for name in options.PLAN_OPTIONS if name in asked}
    options.refuse_together("--plan", plan, decided | options.set_for_plans(set))
    said = {**options.typed(context, asked), "plan": plan, "recipe": recipe, "set": set, "output": output}
    options.refuse_together("--resume", resume, said)
    settings = resumable(resume, "compress") if resume else options.recipe_of("compress", recipe, set, **asked)
    if dry_run:
        if not rank():
            _dry_run(settings, plan, as_json)
        return
    from ghostify.budgeting import settled
    from ghostify.experiment import compress as run
    from ghostify.subject import require_source

    require_source(settings.model)
    settings = settled(settings) if settings.budget.asked else settings
    given = _read_plan(plan, resume)
    if follows(settings):
        return
    with run_folder(settings, output, resume, given, "compress") as folder:
        outcome = run(settings, folder, show.Watcher(quiet=as_json), given)
    show.outcome(outcome, as_json)


app.command()(sweep)


app.command()(finetune)


@app.command()
def optimize(
    run: options.RunFolder,
    output: options.OptimizedOutput = None,
    as_json: options.Json = False,
) -> None:
    """Bring a run's network into the form that runs fastest, equal to it, into a new run folder; measure both forms.

    \b
    Example:
    ghostify optimize runs/digits
    """
    from ghostify.experiment import optimize as optimized

    with new_folder(output or run.parent / f"{run.resolve().name}-inference") as folder:
        outcome = optimized(run, folder, show.Watcher(quiet=as_json))
    if as_json:
        show.json({"folder": str(folder), **outcome.report.model_dump(mode="json")})
        return
    for table in outcome.report.forms():
        show.table(table)
    show.say(f"Saved in {folder}; it is a run folder like any other, but not to be trained.")


app.command()(bench)
app.command()(export)


@app.command(name="eval")
def evaluate(
    model: options.Model = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    weights_strict: options.WeightsStrict = None,
    weights_allow: options.WeightsAllow = None,
    input: options.Input = None,
    data: options.DataSource = None,
    metric: options.Metric = None,
    batch_size: options.BatchSize = None,
    recipe: options.RecipeFile = None,
    set: options.Set = None,
    seed: options.Seed = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Measure a network's accuracy on test images, or what a --metric of your own tells.

    \b
    Example:
    ghostify eval runs/digits --data digits
    """
    settings = options.recipe_of("eval", recipe, set, **options.given(locals()))
    from ghostify.experiment import measure_accuracy

    accuracy, notes = measure_accuracy(settings, show.Watcher(quiet=as_json))
    if as_json:
        show.json({**accuracy.model_dump(), **({"notes": notes} if notes else {})})
    else:
        show.line(f"{accuracy.name} {accuracy}")


@app.command()
def report(
    run: options.RunFolder,
    layers: options.Detailed = False,
    as_json: options.Json = False,
) -> None:
    """Show the report of a run again: theory beside counts beside measurements.

    \b
    Example:
    ghostify report runs/digits --layers
    """
    from ghostify.exporting import exports_in
    from ghostify.exporting.result import exports_table
    from ghostify.finetuning import TITLES, curves_in, read_histories
    from ghostify.saving import read_report

    found, files = read_report(run), exports_in(run)
    if as_json:
        listed = {"exports": [file.model_dump(mode="json") for file in files]} if files else {}
        show.json({**found.model_dump(mode="json"), **show.trainings(run), **listed})
        return
    for table in found.details() if layers else ():
        show.table(table)
    for table in (found.summary(), *found.forms()):
        show.table(table)
    for name, history in read_histories(run).items():
        show.table(history.table(TITLES[name]))
        show.say(f"Its curves: {curves_in(run, name)}")
    if files:
        show.table(exports_table(files))


@app.command()
def env(as_json: options.Json = False) -> None:
    """Show the versions and the hardware that results depend on."""
    from ghostify.saving import describe_environment

    found = describe_environment()
    if as_json:
        show.json(found)
        return
    for key, value in {**found, **found.pop("libraries")}.items():
        show.line(f"{key:14}{value}")


def _as_advised(settings: Recipe, path: Path) -> Recipe:
    """The settings with what an analysis advises for the method asked for."""
    from ghostify.analysis import advised, read_analysis

    found = read_analysis(path)
    ghost = advised(found.layers, found.stages, settings.ghost.method)
    if not ghost.include:
        raise PlanError(
            f"Analysis {str(path)!r} advises no change by method {ghost.method}, so there is nothing to plan; "
            "why stands in its table. Another --method, or an analysis with a larger --tolerance, may find some."
        )
    return settings.model_copy(update={"ghost": ghost})


def _read_plan(path: Path | None, resume: Path | None) -> Plan | None:
    from ghostify.planning import read_plan

    noted = resume / "plan-given.yaml" if resume else None
    if path is None and noted and noted.is_file():
        path = noted
    return read_plan(path) if path else None


def _dry_run(settings: Recipe, plan: Path | None, as_json: bool) -> None:
    from ghostify.experiment import propose

    proposed = propose(settings, show.Watcher(), _read_plan(plan, None))
    if as_json:
        show.json(proposed.model_dump(mode="json"))
    else:
        show.table(proposed.table())
        show.say("Dry run: nothing was written.")


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, entirely or not at all: nothing is overwritten."""
    try:
        file = path.open("x", encoding="utf-8")  # it was not there: from here on it is ours to remove
        try:
            with file:
                file.write(text)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise PlanError(f"{str(path)!r} is there already and is not overwritten; choose another name.") from None
    except FileNotFoundError:
        raise PlanError(f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}.") from None
    except OSError as problem:
        raise PlanError(f"{str(path)!r} cannot be written: {problem.strerror}.") from None
