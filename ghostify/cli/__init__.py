"""The command line: parse, call, print, exit code.  The only place that knows typer and rich."""

from ghostify.cli.entry import main

__all__ = ["main"]
