"""The verb ``sweep``: a network planned for several targets, and what each plan keeps."""

from __future__ import annotations

from pathlib import Path

import typer

from ghostify.cli import options, show
from ghostify.cli.runs import resumable, run_folder, run_name


def sweep(
    context: typer.Context,
    model: options.Model = None,
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    weights_strict: options.WeightsStrict = None,
    weights_allow: options.WeightsAllow = None,
    input: options.Input = None,
    data: options.DataSource = None,
    metric: options.Metric = None,
    batch_size: options.BatchSize = None,
    method: options.MethodName = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    targets: options.SweepTargets = None,
    of: options.SharesOf = None,
    neighbours: options.Neighbours = None,
    runtime: options.RuntimeName = None,
    batch: options.TimedBatch = None,
    threads: options.Threads = None,
    measure: options.Measure = None,
    fit: options.FitHow = None,
    calibration: options.Calibration = None,
    recipe: options.RecipeFile = None,
    set: options.Set = None,
    seed: options.Seed = None,
    device: options.Device = None,
    output: options.SweepOutput = None,
    resume: options.Resume = None,
    as_json: options.Json = False,
) -> None:
    """Plan a network for several targets, measure all beside what one would set by hand, and draw what each keeps.

    \b
    Example:
    ghostify sweep torchvision:resnet50 --weights DEFAULT --data folder:images --targets 0.8x,0.6x,0.4x
    """
    asked = options.given(locals())
    said = {**options.typed(context, asked), "recipe": recipe, "set": set, "output": output}
    options.refuse_together("--resume", resume, said)
    settings = resumable(resume, "sweep") if resume else options.recipe_of("sweep", recipe, set, **asked)
    from ghostify.budgeting import settled
    from ghostify.subject import require_source
    from ghostify.sweeping import sweep as swept

    settings = settled(settings)
    require_source(settings.model)
    folder_asked = output or Path("sweeps") / run_name(settings)
    with run_folder(settings, folder_asked, resume, None, "sweep") as folder:
        found = swept(settings, folder, show.Watcher(quiet=as_json))
    if as_json:
        show.json({"folder": str(folder), **found.model_dump(mode="json")})
        return
    show.table(found.table())
    show.say(found.verdict)
    show.say(f"The picture, and the plan of each network: {folder / 'sweep.html'}")
