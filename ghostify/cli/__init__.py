"""The command line: parse, call, print, exit code.  The only place that knows typer and rich."""

from ghostify.cli.app import main

__all__ = ["main"]
