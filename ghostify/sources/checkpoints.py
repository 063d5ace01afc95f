"""Checkpoint files of others, read without running anything in them.

What a file is, its first bytes tell, not the ending of its name.  ``torch.save`` files are read with ``weights_only``:
tensors and plain containers, a few plain classes that training scripts put beside them, and whatever classes a person
vouches for by name.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import pathlib
import pickle
import re
import types
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ghostify.errors import WeightsError, did_you_mean
from ghostify.files import near_path

PICKLES = (b"P", b"\x80")  # how archives (PK) and bare pickles begin
_NAMED = 4
"""Classes that are named in a sentence; the others are counted."""

_PLAIN: list[Any] = [
    # Unpickling these sets attributes or numbers and runs nothing else.
    argparse.Namespace,
    types.SimpleNamespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    datetime.date,
    datetime.datetime,
    datetime.timedelta,
    numpy.ndarray,
    numpy.dtype,
    *(kind for kind in vars(numpy.dtypes).values() if isinstance(kind, type)),
    # The two functions that NumPy's arrays and scalars are made by, under the names of NumPy 2 and 1.
    *(
        (getattr(importlib.import_module("numpy._core.multiarray"), name), f"{home}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for home in ("numpy._core", "numpy.core")
    ),
]


def read_checkpoint(path: Path, allowed: Iterable[str] = ()) -> Any:
    """Whatever a checkpoint file holds, on the CPU.

    ``allowed`` names classes (``package.module.Class``) that the file may hold besides tensors and plain containers.
    Raises ``WeightsError`` when the file is missing, damaged, or holds anything else.
    """
    if not path.exists():
        raise WeightsError(f"Weights file {str(path)!r} does not exist.{near_path(path)}")
    if path.is_dir():
        raise WeightsError(f"Weights {str(path)!r} is a folder; name the checkpoint file in it.")
    if path.stat().st_size == 0:
        raise WeightsError(f"Weights file {str(path)!r} is empty.")
    vouched = [_class_named(name) for name in allowed]
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path, vouched)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header, eight bytes, and its opening brace."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False  # the reader will say why


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise WeightsError(_damaged(path, problem)) from None


def _read_torch(path: Path, vouched: list[type]) -> Any:
    try:
        # Opened here, because torch goes by a name's ending when it is given one.
        with path.open("rb") as file, torch.serialization.safe_globals([*_PLAIN, *vouched]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what is wrong; the error says it
            return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as problem:  # a damaged archive fails in many ways
        raise WeightsError(_refused(path, problem) or _damaged(path, problem)) from None


def _class_named(name: str) -> type:
    """The class a person vouches for.  Raises ``WeightsError`` where there is none of that name."""
    home, _, last = name.rpartition(".")
    try:
        module = importlib.import_module(home)
    except (ImportError, ValueError):
        raise WeightsError(
            f"weights_allow {name!r} names no class; write it as in the message, package.module.Class."
        ) from None
    found = getattr(module, last, None)
    if not isinstance(found, type):
        classes = (other for other, value in vars(module).items() if isinstance(value, type))
        raise WeightsError(f"weights_allow {name!r}: {home!r} has no class {last!r}.{did_you_mean(last, classes)}")
    return found


def _refused(path: Path, problem: Exception) -> str:
    """Why a file is refused because it holds code; empty when that is not the problem."""
    where = f"Weights file {str(path)!r} holds"
    if "TorchScript" in str(problem):
        return f"{where} a TorchScript program, refused; re-save it as model.state_dict()."
    if not (isinstance(problem, pickle.UnpicklingError) and "Unsupported" in str(problem)):
        return ""
    with path.open("rb") as file:
        if file.read(1) not in PICKLES:
            return ""  # any text is "unsupported", too
    classes = _classes_refused(path, problem)
    if not classes:
        return f"{where} pickled Python objects, refused; re-save it as model.state_dict()."
    few = classes[:_NAMED]
    more = f" and {len(classes) - len(few)} more" if len(classes) > len(few) else ""
    allow = " ".join(f"--weights-allow {name}" for name in few)
    return (
        f"{where} pickled Python objects, refused because reading them may run code ({', '.join(few)}{more}); "
        f"re-save it as model.state_dict() or, where you trust the file, add {allow}{' ...' if more else ''}."
    )


def _classes_refused(path: Path, problem: Exception) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not an archive, or one whose pickle cannot be followed
        found = re.findall(r"GLOBAL ([\w.]+)", str(problem))
    plain = {f"{one.__module__}.{one.__qualname__}" for one in _PLAIN if isinstance(one, type)}
    plain |= {one[1] for one in _PLAIN if isinstance(one, tuple)}
    return sorted(set(found) - plain)


def _damaged(path: Path, problem: Exception) -> str:
    if isinstance(problem, PermissionError):
        return f"Weights file {str(path)!r} cannot be read: permission denied."
    return f"Weights file {str(path)!r} is damaged, truncated, or not a checkpoint ({type(problem).__name__})."
