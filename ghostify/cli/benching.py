"""The verb ``bench``: networks timed side by side."""

from __future__ import annotations

from contextlib import nullcontext

from ghostify.cli import options, show
from ghostify.cli.runs import new_folder


def bench(
    networks: options.Networks,
    runtime: options.Runtimes = None,
    batch: options.Batches = None,
    threads: options.ThreadCounts = None,
    device: options.TimedOn = "auto",
    form: options.TimedForm = "inference",
    input: options.TimedInput = None,
    seconds: options.Seconds = 3.0,
    memory: options.Memory = True,
    output: options.BenchOutput = None,
    as_json: options.Json = False,
) -> None:
    """Time networks side by side, and say which is faster where that is more than noise; the first is the baseline.

    \b
    Example:
    ghostify bench torchvision:resnet50 runs/mine --batch 1,16
    """
    options.require_form(form)
    batches, counts = options.numbers("--batch", batch), options.numbers("--threads", threads)
    taken = options.input_of(input) if input else None
    from ghostify.benching import Source, bench_sources, write_bench

    with new_folder(output) if output else nullcontext() as folder:
        found = bench_sources(
            networks,
            Source(name="", form=form, input=taken),
            runtimes=options.listed(runtime),
            batches=batches,
            threads=counts,
            device=device,
            seconds=seconds,
            memory=memory,
            told=show.Watcher(quiet=as_json).say,
        )
        if folder:
            write_bench(folder, found)
    if as_json:
        show.json(found.model_dump(mode="json"))
        return
    show.table(found.table())
    if folder:
        show.say(f"Saved in {folder}: bench.json and the picture bench.svg")
