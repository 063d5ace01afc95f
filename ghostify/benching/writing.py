"""Networks timed side by side → a folder: JSON for machines, a picture for people."""

from __future__ import annotations

from pathlib import Path

from ghostify.benching.picture import drawn
from ghostify.benching.result import Bench
from ghostify.errors import RunError
from ghostify.files import replacing, undone_on_failure

NUMBERS, PICTURE = "bench.json", "bench.svg"


def write_bench(folder: Path, bench: Bench) -> None:
    """Write both files into a folder that is there, or none.  Raises ``RunError``."""
    texts = {NUMBERS: bench.model_dump_json(indent=1), PICTURE: drawn(bench)}
    try:
        with undone_on_failure() as made:
            for name, text in texts.items():
                with replacing(folder / name) as new:
                    new.write_text(text, encoding="utf-8")
                made.file(folder / name)
    except OSError as problem:
        raise RunError(f"The times cannot be written to {str(folder)!r}: {problem.strerror}.") from None
