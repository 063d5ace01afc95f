"""The console script: run a verb, and turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer

from ghostify.cli import show, streams
from ghostify.cli.app import app
from ghostify.cli.runs import RunInterrupted
from ghostify.errors import GhostifyError, RunError, Stopped
from ghostify.processes import rank

UsageError: Any = typer.BadParameter.__mro__[1]
"""Every command that cannot be parsed; typer shows its children only."""


def main() -> None:
    """The console script: run a verb, and turn what goes wrong into one line and an exit code.

    0 done; 1 an error of ours; 2 a command that cannot be parsed; 130 interrupted by Ctrl-C, 143 by SIGTERM; 141 nobody
    reads the output.
    """
    streams.prepare()
    try:
        code = _run()
    finally:
        streams.stdout.end()
    sys.exit(code)


def _run() -> int:
    try:
        return app(prog_name="ghostify", standalone_mode=False) or 0
    except GhostifyError as problem:
        tell(problem)
        return 1
    except UsageError as problem:
        return _explain(problem)
    except RunInterrupted as stop:
        show.error(str(stop))
        return stop.code
    except (KeyboardInterrupt, typer.Abort) as stop:
        if not rank():
            show.error("Interrupted.")
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except streams.OutputLost as problem:
        if problem.quiet:
            return 141
        show.error(str(problem))
        return 1
    except OSError as problem:  # a disk that is full, a folder without permission
        where = f"{problem.filename!r}: " if problem.filename else "Something could not be read or written: "
        show.error(f"{where}{problem.strerror or problem}.")
        return 1


def tell(problem: GhostifyError) -> None:
    """The one line of an error; of several processes the first tells what all know, and each what is its own."""
    if not rank():
        show.error(str(problem))
    elif type(problem) not in (GhostifyError, RunError):
        show.error(f"(process {rank()}) {problem}")


def _explain(problem: Any) -> int:
    """What cannot be parsed, in one line; a verb that is missing has been answered with the help."""
    if said := problem.format_message():
        verb = problem.ctx.command_path if problem.ctx else "ghostify"
        show.error(f"{said}{'' if said.endswith(('.', '?')) else '.'} See: {verb} --help")
    return 2
