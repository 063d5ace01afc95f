"""A file and what lies beside it: written under their names in one go, found again, and replaced only by their like.

mine.onnx        the file, and what its format puts beside it (OpenVINO's mine.bin)
mine.onnx.py     a few lines that run it
mine.onnx.json   what it is: the manifest, which lists the sha256 of the others and is written last
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from ghostify.errors import ExportError
from ghostify.exporting.result import Exported
from ghostify.files import flush, sha256

EXPORTS = "exports"
"""The folder of a run that its exports go to."""


def require_free(file: Path) -> None:
    """Raises ``ExportError`` where something lies under the file's name that is no export, or was changed since."""
    if not file.parent.is_dir():
        raise ExportError(f"{str(file)!r} cannot be written: there is no folder {str(file.parent)!r}.")
    if file.exists() and not _is_as_written(file):
        raise ExportError(
            f"{str(file)!r} is there already, and is not what ghostify once exported to it; choose another name."
        )


def install(folder: Path, exported: Exported, script: str) -> Exported:
    """Give what was written to ``folder`` its names beside ``exported.file``, with a script and the manifest."""
    (folder / exported.script.name).write_text(script, encoding="utf-8")
    digests = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    found = exported.model_copy(update={"sha256": digests})
    told = found.model_copy(update={"file": Path(found.file.name)})  # so that a folder can be copied
    (folder / exported.manifest.name).write_text(told.model_dump_json(indent=2), encoding="utf-8")
    for name in (*digests, exported.manifest.name):
        flush(folder / name)
        (folder / name).replace(exported.file.with_name(name))
    return found


def read_manifest(path: Path) -> Exported:
    """What a manifest says, with the path of its file.  Raises ``ExportError`` for what is none."""
    try:
        found = Exported.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise ExportError(f"{str(path)!r} is no manifest of an exported file.") from None
    return found.model_copy(update={"file": path.with_name(found.file.name)})


def exports_in(run: Path) -> list[Exported]:
    """The exports in a run folder whose files are there, by name; other files there are nobody's business."""
    return list(_found(run / EXPORTS))


def _found(folder: Path) -> Iterator[Exported]:
    for path in sorted(folder.glob("*.json")):
        try:
            found = read_manifest(path)
        except ExportError:
            continue
        if found.file.is_file():
            yield found


def _is_as_written(file: Path) -> bool:
    """Whether a file and what belongs to it is what an export left."""
    try:
        listed = read_manifest(file.with_name(f"{file.name}.json")).sha256
    except ExportError:
        return False
    paths = {file.with_name(name): digest for name, digest in listed.items()}
    return all(not path.exists() or sha256(path) == digest for path, digest in paths.items())
