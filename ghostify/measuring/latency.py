"""How long a forward pass takes, measured on models side by side, on any runtime.

A machine drifts (clocks, heat, neighbours), so models take turns, A B B A, in one process, and two of them are
compared by the median of the ratios within each turn, in which drift cancels, not by the ratio of their medians.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ghostify import runtimes
from ghostify.errors import ModelError, RecipeError
from ghostify.measuring.borrowing import Device, device_for, on_device
from ghostify.running import as_called, evaluating, undisturbed
from ghostify.runtimes import Runtime, Session, pinned_threads

Arguments = Tensor | tuple[Any, ...]

MIN_ROUNDS = 5
WARM_UP_ROUNDS = 2
WARM_UP_SHARE = 0.2

ROUGH = 1.5
"""How far speed-ups may lie apart from turn to turn, the 90th from the 10th percentile, on an idle machine."""


class Latency(BaseModel):
    """Time of one forward pass, in milliseconds: its median, and its 10th and 90th percentiles as low and high."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    threads: int
    device: str
    runtime: str = "eager"

    @property
    def place(self) -> str:
        """Where it was measured: the threads of a CPU, or the device, behind the runtime if it is not eager torch."""
        where = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.device == "cpu" else self.device
        return where if self.runtime == "eager" else f"{self.runtime}, {where}"

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ms ({self.low_ms:.2f} to {self.high_ms:.2f} over {self.runs} runs)"


class Comparison(BaseModel):
    """Two models timed in turns.  ``speedup`` is the median of before / after within each turn: above 1 is faster.

    ``low`` and ``high`` are the 10th and 90th percentiles of the same ratios.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Latency
    after: Latency
    speedup: float
    low: float
    high: float

    @property
    def is_rough(self) -> bool:
        """Whether the turns are so far apart that nothing should be chosen by them: something else was running."""
        return self.high > ROUGH * self.low

    @property
    def spread(self) -> str:
        """How far the turns are apart, in words."""
        return f"{self.low:.2f}x to {self.high:.2f}x as fast from turn to turn"

    def __str__(self) -> str:
        times = f"{self.before.median_ms:.2f} ms -> {self.after.median_ms:.2f} ms"
        return f"{times}, {self.speedup:.2f}x ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Timings:
    """Every time measured, in milliseconds, by model name.  Entry ``i`` of each list comes from turn ``i``."""

    ms: Mapping[str, list[float]]
    threads: int
    device: str
    runtime: str = "eager"

    def latency(self, name: str) -> Latency:
        """Summary of one model."""
        low, median, high = _percentiles(self.ms[name])
        return Latency(
            median_ms=median,
            low_ms=low,
            high_ms=high,
            runs=len(self.ms[name]),
            threads=self.threads,
            device=self.device,
            runtime=self.runtime,
        )

    def compare(self, before: str, after: str) -> Comparison:
        """How much faster ``after`` is than ``before``."""
        low, median, high = _percentiles(_ratios(self.ms[before], self.ms[after]))
        return Comparison(before=self.latency(before), after=self.latency(after), speedup=median, low=low, high=high)


def latency(
    models: Mapping[str, nn.Module],
    args: Arguments = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    seconds: float = 2.0,
    threads: int = 1,
    device: Device | None = None,
    runtime: str = "eager",
) -> dict[str, Latency]:
    """Latency of each model on one example.  Arguments and errors are those of ``measure``."""
    timings = measure(models, args, kwargs, seconds=seconds, threads=threads, device=device, runtime=runtime)
    return {name: timings.latency(name) for name in models}


@undisturbed()
@as_called()
def compare(
    before: nn.Module,
    after: nn.Module,
    args: Arguments = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    seconds: float = 2.0,
    threads: int = 1,
    device: Device | None = None,
    runtime: str = "eager",
) -> Comparison:
    """How much faster ``after`` is than ``before`` on one example.  Arguments and errors are those of ``measure``."""
    models = {"before": before, "after": after}
    timings = measure(models, args, kwargs, seconds=seconds, threads=threads, device=device, runtime=runtime)
    return timings.compare("before", "after")


def measure(
    models: Mapping[str, nn.Module],
    args: Arguments = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    seconds: float = 2.0,
    threads: int = 1,
    device: Device | None = None,
    runtime: str = "eager",
) -> Timings:
    """Time forward passes of all models in turns, in eval mode, after a warm-up.

    The example is ``args`` (a tuple, or the one tensor) and ``kwargs``.  ``seconds`` is for all models together,
    warm-up aside; five turns are always taken.  ``threads`` is the number of CPU threads, put back afterwards.
    ``device`` None means where the first model is; models elsewhere are copied there, none is moved.  ``runtime`` is
    the name of what runs them: eager, compile, onnxruntime or openvino; setting it up is not in the times.

    Raises ``RecipeError`` for a setting out of range or a runtime that is not here, ``ModelError`` when a model does
    not take the example or the runtime cannot run it.
    """
    _require_sensible(models, seconds, threads)
    chosen = runtimes.runtime(runtime)
    here = device_for(next(iter(models.values())), device)
    ready = {name: on_device(model, here) for name, model in models.items()}
    positional, named = _moved(args if isinstance(args, tuple) else (args,), here), _moved(dict(kwargs or {}), here)
    with evaluating(*ready.values()):
        _try_once(ready, positional, named, threads)
        sessions = {
            name: _session(chosen, name, model, positional, named, threads, here) for name, model in ready.items()
        }
        return timed(sessions, seconds=seconds, threads=threads, device=here, runtime=runtime)


def timed(
    sessions: Mapping[str, Session],
    *,
    seconds: float = 2.0,
    threads: int = 1,
    device: torch.device | str = "cpu",
    runtime: str = "eager",
) -> Timings:
    """Time sessions of one runtime, or any other calls, in turns, after a warm-up.

    ``seconds`` is for all together, warm-up aside; five turns are always taken.  The calls run in inference mode with
    ``threads`` of torch's threads, and on a device that is no CPU each is waited for.
    """
    _require_sensible(sessions, seconds, threads)
    here = torch.device(device)
    with pinned_threads(threads), torch.inference_mode():
        # first runs choose kernels and fill caches, and a processor takes a while to reach its clock
        _take_turns(sessions, here, WARM_UP_SHARE * seconds, WARM_UP_ROUNDS)
        times = _take_turns(sessions, here, seconds, MIN_ROUNDS)
    return Timings(times, threads, str(here), runtime)


def speedup(before_ms: Sequence[float], after_ms: Sequence[float]) -> float:
    """Median of the pairwise ratios before / after, of times taken in turns: above 1 means that after is faster."""
    return statistics.median(_ratios(before_ms, after_ms))


def _take_turns(
    sessions: Mapping[str, Session], device: torch.device, seconds: float, at_least: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sessions}
    # Who runs behind a large network finds the caches full of it: in an order that stays, one would always be that.
    order, shuffle = list(sessions), Random(0).shuffle
    end = time.perf_counter() + seconds
    turns = 0
    while turns < at_least or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            # one run of each in turn: what disturbs the machine for a while disturbs all of them alike
            times[name].append(_one_run(sessions[name], device))
        turns += 1
    return times


def _one_run(session: Session, device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    session()
    _wait_for(device)
    return 1e3 * (time.perf_counter() - start)


def _wait_for(device: torch.device) -> None:
    """An accelerator only queues work; its clock stops when the queue is empty."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _try_once(models: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> None:
    """A network that does not run is told before any time is spent on runtimes and turns."""
    with pinned_threads(threads), torch.inference_mode():
        for name, model in models.items():
            try:
                model(*args, **kwargs)
            except Exception as problem:
                reason = str(problem).strip().partition("\n")[0] or type(problem).__name__
                raise ModelError(f"Model {name!r} does not run on the example: {reason}") from problem


def _session(
    runtime: Runtime,
    name: str,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    threads: int,
    device: torch.device,
) -> Session:
    try:
        return runtime.session(model, args, kwargs, threads=threads, device=device)
    except ModelError as problem:
        raise ModelError(f"{name!r}: {problem}") from problem


def _moved(value: Any, device: torch.device) -> Any:
    match value:
        case Tensor():
            return value.to(device)
        case dict():
            return {key: _moved(part, device) for key, part in value.items()}
        case tuple() if hasattr(value, "_fields"):
            return type(value)(*(_moved(part, device) for part in value))
        case list() | tuple():
            return type(value)(_moved(part, device) for part in value)
    return value


def _ratios(before: Sequence[float], after: Sequence[float]) -> list[float]:
    # within a turn, so that a slow moment cancels out of the ratio
    return [b / a for b, a in zip(before, after, strict=True)]


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 10th, 50th and 90th, interpolated."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[4], tenths[8]


def _require_sensible(models: Mapping[str, Any], seconds: float, threads: int) -> None:
    if not models:
        raise RecipeError("There is no model to measure.")
    if not 0 < seconds < math.inf:
        raise RecipeError(f"Measuring needs seconds > 0, not {seconds}.")
    if threads < 1:
        raise RecipeError(f"Measuring needs at least 1 thread, not {threads}.")
