"""The processes that carry out one command together, as ``torchrun`` or ``accelerate launch`` started them; mostly one.

Each has the whole network and its share of every batch.  accelerate reads how they were started (torchrun, its own
launcher, MPI) and makes them one group on the hardware there is; this file alone knows it, and imports it only where
there is more than one process, because it takes a second.

What is done together must be done by all in the same order: a process that waits for another waits until that comes, or
until the launcher stops both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from ghostify.errors import GhostifyError, ModelError, RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("_alone", default=False)

PATIENCE = timedelta(days=7)
"""How long one process waits for another: the first plans and fits for hours while the others have nothing to do."""
_OTHER_ENGINES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def rank() -> int:
    """The number of this process among those of its command; 0 is the first, which alone prints and writes."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes carry out this command."""
    return int(os.environ.get("WORLD_SIZE", 1))


def together() -> bool:
    """Whether several processes compute here what is of all of them, such as the statistics of an analysis."""
    import torch.distributed as dist

    joined = dist.is_available() and dist.is_initialized()
    return joined and dist.get_world_size() > 1 and not _alone.get()


def present() -> Processes:
    """Those that compute here together, each from its share of what there is to look at; else this one alone."""
    if not together():
        return Processes()
    import torch
    import torch.distributed as dist

    where = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return Processes(dist.get_rank(), dist.get_world_size(), torch.device(where))


@contextmanager
def alone() -> Iterator[None]:
    """What is computed inside is of this process alone: the others do something else, or wait."""
    with _being_alone(True):
        yield


@contextmanager
def accompanied() -> Iterator[None]:
    """What is computed inside is of all processes again: the others were told to take part."""
    with _being_alone(False):
        yield


@contextmanager
def _being_alone(whether: bool) -> Iterator[None]:
    token = _alone.set(whether)
    try:
        yield
    finally:
        _alone.reset(token)


@dataclass(frozen=True)
class Processes:
    """Process ``rank`` of ``world``, and what they can do together.  Alone, each of these costs nothing.

    Methods raise ``RunError`` where another process is gone.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None
    """Where tensors must be to be sent."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sums of numbers over all processes."""
        if self.world == 1:
            return list(numbers)
        import torch

        sent = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return self.summed(sent).tolist()

    def each(self, number: int) -> list[int]:
        """A number of each process, in their order."""
        return [int(found) for found in self.total([number if one == self.rank else 0 for one in range(self.world)])]

    def share(self, numbers: Iterable[int]) -> list[int]:
        """Those of some numbers, of batches say, that are this process's: each belongs to one."""
        return [number for number in numbers if number % self.world == self.rank]

    def largest(self, sizes: Sequence[int]) -> list[int]:
        """The largest of each of some sizes over all processes."""
        return [max(self.each(size)) for size in sizes]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits in each; where it was, and itself alone."""
        if self.world == 1:
            return tensor
        import torch.distributed as dist

        total = tensor.detach().clone().to(self.device)
        with _others_there():
            dist.all_reduce(total)
        return total.to(tensor.device)

    def joined(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The rows (n, …) of all processes, in their order: each has some, of ``shape`` behind the first dimension."""
        counts = self.each(len(rows))
        first = sum(counts[: self.rank])
        # a sum of rows and zeros, because processes have unequal numbers of them
        places = rows.new_zeros(sum(counts), *shape)
        places[first : first + len(rows)] = rows
        return self.summed(places)

    def same(self, value: T) -> T:
        """What the first process has of a value, which must be one that can be pickled."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        sent = [value]
        with _others_there():
            dist.broadcast_object_list(sent)
        return sent[0]

    def decided(self, decide: Callable[[], T]) -> T:
        """What the first process alone works out, for all."""
        value: Any = decide() if self.first else None
        return self.same(value)


def group(cpu: bool) -> Processes:
    """The processes of this command, joined where they were not yet; ``cpu`` where they compute on no GPU.

    Raises ``RunError`` where they were started for another engine than this one.
    """
    return _joined(cpu) if world() > 1 else Processes()


def make_alike(module: nn.Module, processes: Processes) -> None:
    """Give each process's network the weights of the first.  Raises ``ModelError`` where they hold different ones."""
    if processes.world == 1:
        return
    own = module.state_dict()
    weights = processes.same({name: value.cpu() if hasattr(value, "cpu") else value for name, value in own.items()})
    if {name: _form(value) for name, value in own.items()} != {name: _form(value) for name, value in weights.items()}:
        raise ModelError(f"Process {processes.rank} holds another network than the first; start all by one command.")
    module.load_state_dict(weights)


def _form(value: Any) -> object:
    return (value.dtype, value.shape) if hasattr(value, "dtype") else type(value)


@cache
def _joined(cpu: bool) -> Processes:
    for name, engine in _OTHER_ENGINES.items():
        if os.environ.get(name, "false").lower() == "true":
            raise RunError(
                f"accelerate is configured for {engine}, which splits a network over processes; here each process "
                "holds the whole network. Start it with: accelerate launch --multi_gpu, or torchrun."
            )
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.device)


@contextmanager
def _others_there() -> Iterator[None]:
    """A broken connection as one line: the process that failed has said why."""
    try:
        yield
    except GhostifyError:
        raise
    except RuntimeError as problem:
        raise RunError(
            f"Another process of this run was stopped or failed, and said why itself ({_short(problem)})."
        ) from None


def _short(problem: Any) -> str:
    return str(problem).strip().partition("\n")[0][:120]
