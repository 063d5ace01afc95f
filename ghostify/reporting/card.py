"""The model card of a run: what a person who finds the folder on a hub, or on another machine, must know of it."""

from __future__ import annotations

from collections.abc import Iterable

from ghostify.recipe import ModelSettings
from ghostify.reporting.report import Report

CARD = "README.md"
"""Hubs show the file of this name."""
_TEXT = """\
---
library_name: ghostify
tags: [ghostify, compressed]
---

# {network}, made smaller by ghostify

{origin}

```text
{summary}
```

## Use it

{use}

The weights are safetensors, so loading them runs no code from this folder.  The code of the network comes
from its source.

## Files

| file | what it holds |
|---|---|
{files}
"""
_HOLDS = {
    "plan.yaml": "which layers were replaced, by what, and why the others were not",
    "report.json": "theory, counts and measurements: `ghostify report` prints them",
    "scan.json": "the network before and after, layer by layer",
    "fit.json": "how the weights were fitted, and the error of each part",
    "span.safetensors": "what its layers read of the images it was fitted to, by which `ghostify eval` knows others",
    "recipe.yaml": "all settings of the experiment: `ghostify compress --recipe` repeats it",
    "environment.json": "the versions, and the machine it was made on",
}

_FORMS = {
    "training": "This is the form that trains; `ghostify optimize` makes the one that runs fast.",
    "inference": "This is the form that runs: it is not trained further.",
}


def card(report: Report, source: ModelSettings | None, form: str, files: Iterable[str]) -> str:
    """A run's model card, in Markdown with the front matter that hubs read.

    ``source`` rebuilds the network (None where it was handed over in Python), ``form`` is ``training`` or
    ``inference``, and ``files`` are the other files of the run.
    """
    tables = [report.summary(), *report.forms()]
    return _TEXT.format(
        network=report.network,
        origin=_origin(source, form),
        summary="\n\n".join(map(str, tables)),
        use=_use(source),
        files="\n".join(f"| `{name}` | {_holds(name)} |" for name in files),
    )


def _origin(source: ModelSettings | None, form: str) -> str:
    made = "a network handed over in Python" if source is None else f"`{source.source}`"
    weights = f" with the weights `{source.weights}`" if source and source.weights else ""
    return f"It was made from {made}{weights}. {_FORMS[form]}"


def _use(source: ModelSettings | None) -> str:
    given = "" if source is not None else ", model=original"
    loading = f'network = ghostify.load("PATH OF THIS FOLDER"{given}).module'
    return f"```python\nimport ghostify\n\n{loading}  # an ordinary torch.nn.Module\n```"


def _holds(name: str) -> str:
    return _HOLDS.get(name, "the weights")
