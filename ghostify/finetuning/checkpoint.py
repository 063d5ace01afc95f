"""What a run leaves at the ends of steps: a file from which it goes on bit for bit, and one before it, if damaged.

A place in a run is (epochs done, steps done since).  ``<folder>/epoch-0003-step-000120.safetensors`` holds the network
under ``model.<name>``, the optimiser's state under ``optimizer.<parameter>.<key>``, the average of the weights under
``average.<name>``, the weights of the epoch that is kept so far under ``best.<name>``; and in its metadata settings and
history, what is known of the epoch that has begun, and a sha256 over all of it, since safetensors does not notice a
flipped bit.  Random states and rates are functions of the place, and need not be kept.  Each is one file, so that no
crash can mix two places: it is written under another name, flushed to the disk, and then takes its name in one step;
only then is the oldest of three removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ghostify.errors import RunError
from ghostify.files import replacing
from ghostify.finetuning.engine import Engine
from ghostify.finetuning.history import History
from ghostify.recipe import TrainSettings

FORMAT = 3
FILE = "epoch-{:04}-step-{:06}.safetensors"
_NUMBERED = re.compile(r"epoch-(\d+)(?:-step-(\d+))?\.safetensors")
"""The files of format 2 have no step: they stood at the ends of epochs."""
_HALF_WRITTEN = re.compile(r"\.epoch-.*\.safetensors.*\.partial")
KEPT = 2
"""So many of the newest files stay: one that is damaged does not lose the training."""


class Begun(BaseModel):
    """What is known of an epoch that has begun: its steps, and sums over the samples of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 0
    loss: float = 0.0
    correct: int = 0
    samples: int = 0
    skipped: int = 0
    """Steps that were not taken, because gradients in float16 overflowed."""
    seconds: float = 0.0


class RunState(BaseModel):
    """What of a run is no tensor: how it is trained, what it has been through, and where it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[3] = 3
    settings: TrainSettings
    seed: int
    batch_size: int
    history: History = History()
    begun: Begun = Begun()
    world: int = 1
    """How many processes trained it."""
    micro: int | None = None
    """At most so many samples were run at once, where memory is too small for more."""
    scaler: dict[str, int | float] = {}
    """The state of the scale of gradients in float16."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of a step: its state, and tensors of its network, its optimiser (by parameter and key) and the
    average of its weights.

    ``best`` are the tensors of the epoch that is kept so far; ``problem`` says which newer file was damaged, if any.
    """

    run: RunState
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    problem: str = ""


def save_checkpoint(folder: Path, run: RunState, engine: Engine, best: Mapping[str, Any]) -> None:
    """Add the present state to ``folder`` (made when missing), entirely or not at all; the one before it stays.

    ``best`` is the state of the epoch that is kept so far.  Raises ``RunError`` when it cannot be written, or when the
    network keeps state that is no tensor.
    """
    place = len(run.history.epochs), run.begun.steps
    tensors = _tensors_of(engine)
    # at the end of the best epoch its tensors are there already, and are not written twice
    if engine.average is not None or place != (run.history.kept, 0):
        tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors = _own(tensors)
    text = run.model_copy(update={"micro": engine.micro, "scaler": engine.scaler.state_dict()}).model_dump_json()
    content = save(tensors, metadata={"run": text, "sha256": _fingerprint(text, tensors)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE.format(*place)) as new:
            new.write_bytes(content)
        _sweep(folder)
    except OSError as problem:
        raise RunError(f"Checkpoint {str(folder)!r} cannot be written: {problem}.") from problem


def remove_checkpoint(folder: Path) -> None:
    """Remove what a finished training no longer needs to go on from; ``folder`` too, unless it holds anything else."""
    with contextlib.suppress(OSError):
        for path in [*_newest_first(folder), *_half_written(folder)]:
            path.unlink(missing_ok=True)
        folder.rmdir()


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something in ``folder`` to go on from."""
    return bool(_newest_first(folder))


def check_checkpoint(folder: Path) -> None:
    """Make sure that training can go on from ``folder``, if any was done there: to be asked before other long work.

    It takes as long as reading a file.  Raises ``RunError`` when every checkpoint there is damaged.
    """
    if has_checkpoint(folder):
        load_checkpoint(folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint in ``folder`` that is not damaged, on the CPU.

    Raises ``RunError`` when there is none, or when all are damaged.
    """
    problems: list[str] = []
    for path in _newest_first(folder):
        try:
            found = _checked(path)
        except _Damaged as damage:
            problems.append(f"Checkpoint {str(path)!r} is damaged ({damage})")
            continue
        problem = f"{problems[0]}; training goes on from the one before it, {path.name}." if problems else ""
        return replace(found, problem=problem)
    if not problems:
        raise RunError(f"There is no checkpoint in {str(folder)!r}.")
    others = f", and so is {'the one' if len(problems) == 2 else 'every one'} before it" if len(problems) > 1 else ""
    raise RunError(f"{problems[0]}{others}; delete {str(folder)!r} to train from the beginning.")


def restore(checkpoint: Checkpoint, engine: Engine) -> None:
    """Put a checkpoint's state into the network, the optimiser and all else of an engine, where those are.

    Raises ``RunError``, with nothing changed, when the checkpoint was made for another network.
    """
    # all is compared before anything is changed: a network half loaded would be neither
    _require_same_network(checkpoint.model, engine.model.state_dict())
    engine.model.load_state_dict(dict(checkpoint.model))
    engine.optimizer.load_state_dict(_optimizer_state(checkpoint.optimizer, engine))
    if engine.average is not None:
        engine.average.load(checkpoint.average)
    engine.scaler.load_state_dict(checkpoint.run.scaler)
    engine.micro = checkpoint.run.micro


class _Damaged(Exception):
    """Why a file is not what was written."""


def _checked(path: Path) -> Checkpoint:
    """The checkpoint in a file.  Raises ``_Damaged``."""
    try:
        text, digest, tensors = _read(path)
        if digest != _fingerprint(text, tensors):
            raise ValueError("its contents are not what was written")
        _require_format(path, text)
        run = RunState.model_validate_json(text)
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError) as problem:
        raise _Damaged(_short(problem)) from None
    model = _under("model.", tensors)
    optimizer, average = _under("optimizer.", tensors), _under("average.", tensors)
    return Checkpoint(run, model, optimizer, average, _under("best.", tensors) or model)


def _require_format(path: Path, text: str) -> None:
    """Refuse what an earlier version left: it drew its random numbers otherwise, so nothing would go on exactly."""
    if json.loads(text).get("format") != FORMAT:
        raise RunError(
            f"Checkpoint {str(path)!r} was made by another version of ghostify; go on with that version, or delete "
            f"{str(path.parent)!r} to train from the beginning."
        )


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder."""
    places = {path: match for path in folder.glob("*") if (match := _NUMBERED.fullmatch(path.name))}
    return sorted(places, key=lambda path: (int(places[path][1]), int(places[path][2] or 0)), reverse=True)


def _sweep(folder: Path) -> None:
    """Remove what is older than the file before the newest, and what a process that was killed left half-written."""
    for path in [*_newest_first(folder)[KEPT:], *_half_written(folder)]:
        path.unlink(missing_ok=True)


def _half_written(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*") if _HALF_WRITTEN.fullmatch(path.name)]


def _tensors_of(engine: Engine) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in engine.model.state_dict().items()}
    for name, parameter in engine.model.named_parameters():
        for key, value in engine.optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer.{name}.{key}"] = value
    if engine.average is not None:
        tensors |= {f"average.{name}": value for name, value in engine.average.state().items()}
    return tensors


def _optimizer_state(saved: Mapping[str, Tensor], engine: Engine) -> dict[str, Any]:
    """What an optimiser loads: by the numbers it gives parameters, which it counts through its groups."""
    names = {parameter: name for name, parameter in engine.model.named_parameters()}
    groups = engine.optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for number, parameter in enumerate(parameters):
        if found := _under(f"{names[parameter]}.", saved):
            state[number] = found
    return {"state": state, "param_groups": groups}


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies.  Tied tensors become equal ones: safetensors refuses shared memory."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise RunError(f"The network keeps {name!r}, which is no tensor and cannot be put in a checkpoint.")
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _fingerprint(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        # names and shapes are part of it, because equal bytes under exchanged names are another network
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[str, str, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # cloned, because what safetensors gives is a map of the file, which the next checkpoint replaces
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return metadata["run"], metadata["sha256"], tensors


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _require_same_network(saved: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    for name in sorted(saved.keys() | present.keys()):
        then, now = _kind(saved.get(name)), _kind(present.get(name))
        if then != now:
            raise RunError(f"The checkpoint was made for another network: {name!r} was {then} and is {now}.")


def _kind(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _short(problem: Exception) -> str:
    if isinstance(problem, KeyError):
        return f"it has no {problem.args[0]!r} entry"
    if isinstance(problem, ValidationError):
        return "its settings or history cannot be read"
    return str(problem).partition("\n")[0]
