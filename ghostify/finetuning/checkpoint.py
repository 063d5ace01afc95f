"""What a run leaves after each epoch: its history, and one file from which it goes on.

``<folder>/state.safetensors`` holds the network under ``model.<name>``, the optimiser's momentum under
``momentum.<parameter>``, and in its metadata the settings, the history, and a sha256 over all of it, since safetensors
does not notice a flipped bit.  It is one file so that a crash cannot mix two epochs: a new one is written beside it,
flushed to the disk, and then takes its name in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ghostify.errors import RunError
from ghostify.files import replacing
from ghostify.recipe import TrainSettings
from ghostify.tables import Table

FILE = "state.safetensors"


class Epoch(BaseModel):
    """One finished epoch, counted from 1.

    ``lr`` is the learning rate of its last step, ``loss`` the mean training loss per image, ``train_top1`` the share
    (0 to 1) of augmented training images that were right while it trained, ``test_top1`` that of the test images
    afterwards, and ``seconds`` the time of both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int
    lr: float
    loss: float
    train_top1: float
    test_top1: float
    seconds: float

    def __str__(self) -> str:
        return f"epoch {self.epoch}: loss {self.loss:.4f}, test {100 * self.test_top1:.2f}%"


class History(BaseModel):
    """The finished epochs of a run, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: tuple[Epoch, ...] = ()

    def plus(self, epoch: Epoch) -> History:
        """This history with one more epoch."""
        return History(epochs=(*self.epochs, epoch))

    def table(self) -> Table:
        """One row per epoch."""
        return Table(
            "Training", ["epoch", "lr", "loss", "train", "test", "seconds"], [_row(epoch) for epoch in self.epochs]
        )

    def __str__(self) -> str:
        return str(self.table())


class RunState(BaseModel):
    """What of a run is no tensor: how it is trained, and what it has been through."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    settings: TrainSettings
    seed: int
    batch_size: int
    history: History = History()


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of an epoch: its state, its network's tensors, and its momentum by parameter name."""

    run: RunState
    model: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]


def save_checkpoint(folder: Path, run: RunState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Replace the checkpoint in ``folder`` (made when missing) by the present one, entirely or not at all.

    Raises ``RunError`` when it cannot be written, or when the network keeps state that is no tensor.
    """
    tensors = _own(_tensors_of(model, optimizer))
    text = run.model_dump_json()
    content = save(tensors, metadata={"run": text, "sha256": _fingerprint(text, tensors)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE) as new:
            new.write_bytes(content)
    except OSError as problem:
        raise RunError(f"Checkpoint {str(folder)!r} cannot be written: {problem}.") from problem


def remove_checkpoint(folder: Path) -> None:
    """Remove what a finished training no longer needs to go on from; ``folder`` too, unless it holds anything else."""
    with contextlib.suppress(OSError):
        (folder / FILE).unlink(missing_ok=True)
        folder.rmdir()


def has_checkpoint(folder: Path) -> bool:
    """Whether some epoch was finished in ``folder``."""
    return (folder / FILE).exists()


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, on the CPU.  Raises ``RunError`` when it is missing or damaged."""
    path = folder / FILE
    if not path.is_file():
        raise RunError(f"There is no checkpoint {str(path)!r}.")
    try:
        text, digest, tensors = _read(path)
        if digest != _fingerprint(text, tensors):
            raise ValueError("its contents are not what was written")
        run = RunState.model_validate_json(text)
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError) as problem:
        raise RunError(f"Checkpoint {str(path)!r} is damaged ({_short(problem)}); delete it to start again.") from None
    return Checkpoint(run, _under("model.", tensors), _under("momentum.", tensors))


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into ``model`` and ``optimizer``, where those are.

    Raises ``RunError``, with nothing changed, when the checkpoint was made for another network.
    """
    _require_same_network(checkpoint.model, model.state_dict())
    model.load_state_dict(dict(checkpoint.model))
    for name, parameter in model.named_parameters():
        if name in checkpoint.momentum:
            optimizer.state[parameter]["momentum_buffer"] = checkpoint.momentum[name].to(parameter.device)


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


def _row(epoch: Epoch) -> list[str]:
    shares = [f"{100 * epoch.train_top1:.2f}%", f"{100 * epoch.test_top1:.2f}%"]
    return [str(epoch.epoch), f"{epoch.lr:.2g}", f"{epoch.loss:.4f}", *shares, f"{epoch.seconds:.1f}"]
