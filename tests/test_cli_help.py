"""``--help``: each option's meaning and default are the recipe's, in groups, and no torch is loaded to show them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import typer
from typer.main import get_command

import ghostify
from ghostify.cli import options
from ghostify.cli.app import app
from ghostify.recipe import Recipe, meaning
from ghostify.settings import known_keys

GROUPS = {
    options.SUBJECT,
    options.CHANGES,
    options.BUDGET,
    options.FITTING,
    options.TRAINING,
    options.TIMING,
    options.OUTPUT,
    options.MORE,
}
VERBS = ("scan", "analyze", "plan", "compress", "finetune", "optimize", "bench", "eval", "report")


@cache
def told(*args: str) -> str:
    """What the command prints on a screen of 80 columns."""
    command = [sys.executable, "-m", "ghostify", *args]
    answer = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env={**os.environ, "COLUMNS": "80"}, check=True
    )
    return answer.stdout


def parameters(verb: str) -> list[Any]:
    return get_command(app).commands[verb].params  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_is_a_setting_is_explained_in_the_recipes_words(verb: str) -> None:
    if verb in ("report", "bench"):  # no recipe stands behind these
        return
    settings = [parameter for parameter in parameters(verb) if parameter.name in options.KEYS]
    for parameter in settings:
        about, default = meaning(options.KEYS[parameter.name])
        assert parameter.help.startswith(about.removesuffix(".")), parameter.name
        if default not in (None, ()) and (verb, parameter.name) != ("compress", "epochs"):
            shown = default[0] if isinstance(default, tuple) else default
            text = f"{shown:g}" if isinstance(shown, float) else str(shown)
            text = {"True": "yes", "False": "no"}.get(text, text)
            assert f"(default: {text})" in parameter.help


def test_without_epochs_compress_does_not_train_and_its_help_says_so() -> None:
    (epochs,) = [parameter for parameter in parameters("compress") if parameter.name == "epochs"]
    assert "(default: 0)" in epochs.help
    assert Recipe.model_validate({"model": {"source": "any"}}).finetune is None


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_stands_in_a_group(verb: str) -> None:
    for parameter in parameters(verb):
        if isinstance(parameter, typer.core.TyperOption) and parameter.name != "help":
            assert parameter.rich_help_panel in GROUPS, parameter.name
            assert parameter.help, parameter.name


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_can_be_copied_from_a_narrow_screen(verb: str) -> None:
    lines = [line.strip() for line in told(verb, "--help").splitlines()]
    example = lines[lines.index("Example:") + 1]
    assert example.startswith(f"ghostify {verb} ")
    assert not lines[lines.index("Example:") + 2], "the example is wrapped"


def test_every_setting_that_has_an_option_exists() -> None:
    known = set(known_keys(Recipe))
    assert {key.rpartition(".")[2] for key in options.KEYS.values()} <= known


def test_help_is_shown_without_torch() -> None:
    script = (
        "import sys; sys.argv = ['ghostify', 'compress', '--help']\n"
        "from ghostify.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_version_is_told() -> None:
    assert told("--version") == f"ghostify {ghostify.__version__}\n"


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in told("--help")
