"""The verb ``finetune``: a network trained further."""

from __future__ import annotations

from ghostify.cli import options, show
from ghostify.cli.runs import follows, resumable, run_folder
from ghostify.errors import DataError, RecipeError


def finetune(
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
    epochs: options.Epochs = None,
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
    as_json: options.Json = False,
) -> None:
    """Train a saved run further (or any network as it is), into a new run folder.

    \b
    Example:
    ghostify finetune runs/digits --data digits --epochs 5
    """
    asked = options.given(locals())
    options.refuse_together("--resume", resume, {**asked, "recipe": recipe, "set": set, "output": output})
    settings = (
        resumable(resume, "finetune")
        if resume
        else options.recipe_of("finetune", recipe, set, **{"epochs": 1, **asked})
    )
    if not settings.data:
        raise DataError("Fine-tuning needs images; give them, as in --data folder:PATH.")
    if settings.finetune and not settings.finetune.epochs:
        raise RecipeError("Fine-tuning for 0 epochs changes nothing; give --epochs of 1 or more.")
    from ghostify.experiment import train
    from ghostify.subject import require_source

    require_source(settings.model)
    if follows(settings):
        return
    with run_folder(settings, output, resume, None, "finetune") as folder:
        outcome = train(settings, folder, show.Watcher(quiet=as_json))
    show.outcome(outcome, as_json)
