"""A user's own measure in place of accuracy: how good a network's outputs are, larger is better.

    function (outputs, labels) → number       averaged over the batches, each by its samples
    update(outputs, labels), compute()        of the whole set, as torchmetrics' objects; ``reset()`` where it has one

``package.module:name`` names a function, an object of the second kind, its class, or a function without arguments that
makes one.  Outputs are what the network returns, in eval mode; both they and the labels are on the CPU.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from ghostify.arguments import a
from ghostify.batches import Batch, call, move
from ghostify.errors import DataError, GhostifyError, RecipeError
from ghostify.measuring.accuracy import images_and_labels, samples_in
from ghostify.measuring.borrowing import Device, device_for, on_device
from ghostify.running import evaluating
from ghostify.sources.named import find_object, reason_of

_CPU = torch.device("cpu")


@runtime_checkable
class Running(Protocol):
    """A measure of a whole set, which takes it in batch by batch."""

    def update(self, outputs: Any, labels: Any) -> Any:
        """Take a batch in."""

    def compute(self) -> Any:
        """The number for all that was taken in."""


class Score(BaseModel):
    """What a metric says of a network over ``total`` samples; larger is better."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    metric: str
    """As it was named: ``package.module:function``."""
    value: float
    total: int

    @property
    def name(self) -> str:
        """The metric's name without its place."""
        return self.metric.rpartition(":")[2]

    @property
    def shown(self) -> str:
        """The value as a table has it."""
        return f"{self.value:.4g}"

    def __str__(self) -> str:
        return f"{self.value:.6g} ({self.total} samples)"


@dataclass(frozen=True)
class Metric:
    """A metric by name.  Raises what its methods say as ``RecipeError``, which names it."""

    name: str
    made: Callable[[], Any]
    """Gives the function or, for each set anew, the object."""

    @classmethod
    def named(cls, source: str) -> Metric:
        """The metric behind ``package.module:name``.  Raises ``RecipeError`` where there is none."""
        return cls.of(named_object(source, "metric"), source)

    @classmethod
    def of(cls, metric: Any, name: str = "") -> Metric:
        """The metric that a function, an object with update and compute, its class or its maker is."""
        name = name or getattr(metric, "__name__", type(metric).__name__)
        if inspect.isclass(metric):
            return cls(name, metric)
        if isinstance(metric, Running):
            # a copy for each set, because an object adds up what it has seen
            return cls(name, lambda: copy.deepcopy(metric))
        if not callable(metric):
            raise RecipeError(
                f"Metric {name!r} is {a(type(metric).__name__)}, not a function or an object with update."
            )
        # a function that can be called without arguments, and not with two, makes the metric
        if required_arguments(metric) == 0 and not _takes_any(metric):
            return cls(name, metric)
        return cls(name, lambda: metric)

    @property
    def label(self) -> str:
        """Its name without its place."""
        return self.name.rpartition(":")[2]

    def __call__(self, model: nn.Module, loader: Iterable[Any]) -> float:
        """The number alone, as training compares epochs by."""
        return self.score(model, loader).value

    def score(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        *,
        device: Device | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Score:
        """What it says of ``model`` over a loader of ``(inputs, labels)`` batches; ``progress`` as in ``evaluate``.

        Raises ``DataError`` for an empty loader, and ``RecipeError`` where the metric fails or gives no finite number.
        """
        here = device_for(model, device)
        judge = self._judge()
        with evaluating(borrowed := on_device(model, here)), torch.no_grad():
            total = 0
            for inputs, labels, size in sized_batches(loader):
                outputs = move(call(borrowed, move(inputs, here)), _CPU)
                judge.add(outputs, labels, size)
                total += size
                if progress:
                    progress(total)
        if not total:
            raise DataError("The data holds no samples to evaluate on.")
        return Score(metric=self.name, value=judge.value(total), total=total)

    def rehearse(self, model: nn.Module, loader: Iterable[Any]) -> None:
        """Try it on one batch, so that what is wrong with it is told before any long work.  Raises ``RecipeError``."""
        judge = self._judge()
        with evaluating(model), torch.no_grad():
            for inputs, labels, size in islice(sized_batches(loader), 1):
                here = device_for(model, None)
                judge.add(move(call(model, move(inputs, here)), _CPU), labels, size)

    def _judge(self) -> _Judge:
        with failing_in_one_line(f"Metric {self.name!r}"):
            made = self.made()
        if isinstance(made, Running):
            return _OfAll(self.name, made)
        if callable(made):
            return _OfBatches(self.name, made)
        raise RecipeError(
            f"Metric {self.name!r} gives {a(type(made).__name__)}, neither a function of (outputs, labels) nor an "
            "object with update(outputs, labels) and compute()."
        )


class _Judge(Protocol):
    def add(self, outputs: Any, labels: Any, size: int) -> None: ...

    def value(self, total: int) -> float: ...


class _OfBatches:
    """A function's mean over batches, each by its samples."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function, self.sum = name, function, 0.0

    def add(self, outputs: Any, labels: Any, size: int) -> None:
        with failing_in_one_line(f"Metric {self.name!r}"):
            value = self.function(outputs, labels)
        # by samples, because the last batch may be smaller
        self.sum += size * number(value, self.name)

    def value(self, total: int) -> float:
        return self.sum / total


class _OfAll:
    """An object's number for all that it was given."""

    def __init__(self, name: str, metric: Running) -> None:
        self.name, self.metric = name, metric
        if callable(reset := getattr(metric, "reset", None)):
            with failing_in_one_line(f"Metric {name!r}"):
                reset()

    def add(self, outputs: Any, labels: Any, size: int) -> None:
        with failing_in_one_line(f"Metric {self.name!r}"):
            self.metric.update(outputs, labels)

    def value(self, total: int) -> float:
        with failing_in_one_line(f"Metric {self.name!r}"):
            value = self.metric.compute()
        return number(value, self.name)


@contextmanager
def failing_in_one_line(what: str) -> Iterator[None]:
    """Whatever a user's code raises inside is one line about ``what``."""
    try:
        yield
    except GhostifyError:
        raise
    except Exception as problem:  # a user's code may fail in any way
        raise RecipeError(f"{what} failed: {reason_of(problem)}.") from None


def number(value: Any, name: str) -> float:
    """What a metric gave as a finite number.  Raises ``RecipeError`` for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise RecipeError(
            f"Metric {name!r} gives {described(value)}; it must give one number, larger is better."
        ) from None
    if not math.isfinite(found):
        raise RecipeError(f"Metric {name!r} gives {found}; it must give a finite number, larger is better.")
    return found


def described(value: Any) -> str:
    """What a user's function gave, in a word or two."""
    if value is None:
        return "None"
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else a(type(value).__name__)


def sized_batches(loader: Iterable[Any]) -> Iterator[tuple[Batch, Any, int]]:
    """The inputs and labels of each batch, and how many samples it holds.  Raises ``DataError``."""
    for batch in loader:
        inputs, labels = images_and_labels(batch)
        yield inputs, labels, samples_in(inputs, labels)


def named_object(source: str, what: str) -> Any:
    """What stands behind ``package.module:name``.  Raises ``RecipeError`` saying ``what`` it is for."""
    place, _, name = source.partition(":")
    if not place or not name:
        raise RecipeError(f"The {what} {source!r} does not say where it is; write package.module:function.")
    return find_object(source, (), RecipeError)


def required_arguments(function: Callable[..., Any]) -> int:
    """How many positional arguments a function must be given; 0 where nobody can tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(part.kind in kinds and part.default is part.empty for part in parameters)


def _takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function may be given two arguments all the same."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
