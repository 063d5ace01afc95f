"""What is timed: a network behind its name, ready to be set up on any runtime that can run it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ghostify.batches import Batch, join, move
from ghostify.clock import Place
from ghostify.errors import GhostifyError, ModelError
from ghostify.running import one_line
from ghostify.runtimes import RUNTIMES, Session, pinned_threads, runtime
from ghostify.tracing import call_arguments


class Contender(ABC):
    """A network that is timed beside others."""

    name: str
    params: int | None
    macs: int | None
    """For one input; None where nothing tells."""
    form: str
    """The form it is timed in: ``inference`` or ``training``, or ``file`` for what somebody exported."""

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What can run it."""
        return tuple(RUNTIMES)

    def session(self, place: Place) -> Session:
        """A set-up of it, with memory of its own.  Raises ``ModelError`` where it does not run there."""
        try:
            session = self._session(place)
            with pinned_threads(place.threads), torch.inference_mode():
                session()
        except ModelError as problem:
            raise ModelError(f"{self.name!r}: {problem}") from problem
        except GhostifyError:
            raise
        except Exception as problem:  # a network may fail in any way
            raise ModelError(
                f"{self.name!r} does not run on a batch of {place.batch} in {place.runtime}: {one_line(problem)}"
            ) from problem
        return session

    @abstractmethod
    def _session(self, place: Place) -> Session:
        """As ``session``, not run yet."""


@dataclass
class Network(Contender):
    """A module, and one sample of what it takes."""

    name: str
    module: nn.Module
    example: Batch
    form: str = "training"
    params: int | None = None
    macs: int | None = None

    def _session(self, place: Place) -> Session:
        device = torch.device(place.device)
        module = copy.deepcopy(self.module).eval().to(device)
        args, kwargs = self.arguments(place.batch, device)
        return runtime(place.runtime).session(module, args, kwargs, threads=place.threads, device=device)

    def arguments(self, batch: int, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the module is called with: the sample so many times."""
        return call_arguments(move(join([self.example] * batch), device))
