"""A network → a file that its own runtime runs, with the proof that it is the same network.

``portable.py`` makes a network ready for a file, ``formats/`` write and run files, ``parity.py`` compares a file with
its network; ``export.py`` is the verb, and ``result.py`` the value.
"""

from ghostify.exporting.export import export, exported
from ghostify.exporting.formats import FORMATS, Format, Runner, format_named
from ghostify.exporting.manifest import EXPORTS, exports_in, read_manifest
from ghostify.exporting.parity import Parity
from ghostify.exporting.portable import Portable, portable
from ghostify.exporting.quantizing import Quantized
from ghostify.exporting.result import Exported, Origin

__all__ = [
    "EXPORTS",
    "FORMATS",
    "Exported",
    "Format",
    "Origin",
    "Parity",
    "Portable",
    "Quantized",
    "Runner",
    "export",
    "exported",
    "exports_in",
    "format_named",
    "portable",
    "read_manifest",
]
