"""What a network is written to: one file for each format, behind one protocol and one registry."""

from ghostify.exporting.formats.protocol import Format, Runner
from ghostify.exporting.formats.registry import FORMATS, format_named

__all__ = ["FORMATS", "Format", "Runner", "format_named"]
