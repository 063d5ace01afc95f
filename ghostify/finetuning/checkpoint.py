"""What a run leaves after each epoch: a file from which it goes on, and the one before it in case that is damaged.

``<folder>/epoch-0003.safetensors`` holds the network under ``model.<name>``, the optimiser's momentum under
``momentum.<parameter>``, the weights of the epoch that is kept so far under ``best.<name>`` where that is another one,
and in its metadata the settings, the history, and a sha256 over all of it, since safetensors does not notice a flipped
bit.  Each is one file so that a crash cannot mix two epochs: it is written under another name, flushed to the disk, and
then takes its name in one step; only then is the oldest of three removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ghostify.errors import RunError
from ghostify.files import replacing
from ghostify.finetuning.history import History
from ghostify.recipe import TrainSettings

FILE = "epoch-{:04}.safetensors"
_NUMBERED = re.compile(r"epoch-(\d+)\.safetensors")
_HALF_WRITTEN = re.compile(r"\.epoch-\d+\.safetensors.*\.partial")
KEPT = 2
"""So many of the newest files stay: one that is damaged does not lose the training."""


class RunState(BaseModel):
    """What of a run is no tensor: how it is trained, and what it has been through."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    settings: TrainSettings
    seed: int
    batch_size: int
    history: History = History()


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of an epoch: its state, its network's tensors, its momentum by parameter name.

    ``best`` are the tensors of the epoch that is kept so far; ``problem`` says which newer file was damaged, if any.
    """

    run: RunState
    model: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    problem: str = ""


def save_checkpoint(
    folder: Path, run: RunState, model: nn.Module, optimizer: torch.optim.Optimizer, best: Mapping[str, Any]
) -> None:
    """Add the present state to ``folder`` (made when missing), entirely or not at all; the one before it stays.

    ``best`` is the state of the epoch that is kept so far.  Raises ``RunError`` when it cannot be written, or when the
    network keeps state that is no tensor.
    """
    newest = len(run.history.epochs)
    tensors = _tensors_of(model, optimizer)
    # the newest epoch is mostly the best, too: then its tensors are not written twice
    if run.history.kept != newest:
        tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors = _own(tensors)
    text = run.model_dump_json()
    content = save(tensors, metadata={"run": text, "sha256": _fingerprint(text, tensors)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE.format(newest)) as new:
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
    """Whether some epoch was finished in ``folder``."""
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


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into ``model`` and ``optimizer``, where those are.

    Raises ``RunError``, with nothing changed, when the checkpoint was made for another network.
    """
    # all is compared before anything is changed: a network half loaded would be neither
    _require_same_network(checkpoint.model, model.state_dict())
    model.load_state_dict(dict(checkpoint.model))
    for name, parameter in model.named_parameters():
        if name in checkpoint.momentum:
            optimizer.state[parameter]["momentum_buffer"] = checkpoint.momentum[name].to(parameter.device)


class _Damaged(Exception):
    """Why a file is not what was written."""


def _checked(path: Path) -> Checkpoint:
    """The checkpoint in a file.  Raises ``_Damaged``."""
    try:
        text, digest, tensors = _read(path)
        if digest != _fingerprint(text, tensors):
            raise ValueError("its contents are not what was written")
        run = RunState.model_validate_json(text)
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError) as problem:
        raise _Damaged(_short(problem)) from None
    model = _under("model.", tensors)
    return Checkpoint(run, model, _under("momentum.", tensors), _under("best.", tensors) or model)


def _newest_first(folder: Path) -> list[Path]:
    """The files of finished epochs in a folder."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _sweep(folder: Path) -> None:
    """Remove what is older than the file before the newest, and what a process that was killed left half-written."""
    for path in [*_newest_first(folder)[KEPT:], *_half_written(folder)]:
        path.unlink(missing_ok=True)


def _half_written(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*") if _HALF_WRITTEN.fullmatch(path.name)]


def _tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    return tensors


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
