"""The verb ``export``: a network written to a file, and compared with it."""

from __future__ import annotations

from pathlib import Path

from ghostify.cli import options, show


def export(
    model: options.Model = None,
    to: options.FormatName = "onnx",
    dynamic: options.OpenSizes = None,
    precision: options.FilePrecision = "fp32",
    half_io: options.HalfIo = False,
    opset: options.Opset = None,
    form: options.WrittenForm = "inference",
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    weights_strict: options.WeightsStrict = None,
    weights_allow: options.WeightsAllow = None,
    input: options.Input = None,
    data: options.DataSource = None,
    recipe: options.RecipeFile = None,
    set: options.Set = None,
    seed: options.Seed = None,
    output: options.ExportOutput = None,
    as_json: options.Json = False,
) -> None:
    """Write a run's network to a file for its runtime, and check there that it is the same network.

    \b
    Example:
    ghostify export runs/mine --to onnx --dynamic batch
    """
    options.require_form(form)
    settings = options.recipe_of("export", recipe, set, **options.given(locals()))
    from ghostify.deployment import export as exported
    from ghostify.exporting.wanted import wanted

    asked = wanted(to, dynamic or "", precision, half_io, opset)
    found = exported(settings, asked, show.Watcher(quiet=as_json), output and Path(output), form)
    if as_json:
        show.json(found.model_dump(mode="json"))
        return
    show.table(found.table())
    show.say(f"Run it without ghostify: python {found.script}")
