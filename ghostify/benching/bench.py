"""Networks side by side, in one run: at every place (runtime, batch, threads), all of them in turns."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

import torch
from torch import nn

from ghostify import runtimes as known
from ghostify.arguments import example_input, given, network, takes
from ghostify.batches import take
from ghostify.benching.contenders import Contender
from ghostify.benching.memory import peak_bytes
from ghostify.benching.result import Bench, Benched, Result
from ghostify.benching.sources import Source, Told, contender_of, of_module
from ghostify.benching.verdicts import speedups
from ghostify.clock import Place
from ghostify.errors import ModelError, RecipeError
from ghostify.measuring import Latency, Timings, timed
from ghostify.measuring.borrowing import Device, device_for, pick_device
from ghostify.rewriting import Ghosted
from ghostify.running import as_called, undisturbed
from ghostify.runtimes import RUNTIMES
from ghostify.saving import describe_environment

SECONDS = 3.0
"""For each network at each place."""
SETUPS = 3
"""How often each network is set up: as often as its own differences are sampled."""
Peak = Callable[[Contender, Place], int | None]


def _models(value: Any) -> dict[str, nn.Module | Ghosted]:
    """Networks by name.  Raises ``ModelError``."""
    if not isinstance(value, Mapping) or not value:
        raise ModelError(
            f"Networks by name are wanted, as in {{'mine': model, 'ghosted': ghosted}}, and {given(value)} was given."
        )
    return {str(name): one if isinstance(one, Ghosted) else network(one) for name, one in value.items()}


@takes(models=_models, example=example_input)
@undisturbed()
@as_called()
def bench(
    models: Mapping[str, nn.Module | Ghosted],
    example: Any,
    *,
    runtimes: str | Sequence[str] = "eager",
    batches: int | Sequence[int] = 1,
    threads: int | Sequence[int] = 1,
    device: Device | None = None,
    seconds: float = SECONDS,
) -> Bench:
    """Time networks side by side on an input of the form of ``example``, the first of them as the baseline.

    Each is timed as it is handed over: give ``ghostify.optimize(…)`` of it for its inference form.  ``runtimes`` (of
    eager, compile, onnxruntime, openvino), ``batches`` and ``threads`` of the CPU are combined, all with all;
    ``seconds`` is for each network in each combination.  ``device`` None means where the first network is.

    The result says of each how many times faster than the baseline it is, between which two numbers that lies with a
    confidence of 95 %, and calls it faster or slower only where that is beyond the noise.  How much memory each
    takes is told by the command only, which builds networks in processes of their own.

    Raises ``RecipeError`` for a setting out of range, ``ModelError`` where a network does not run.
    """
    combined = _many(runtimes), _many(batches), _many(threads)
    _require_sensible(*combined)
    sample = take(example, slice(0, 1))
    contenders = [of_module(name, one, sample) for name, one in models.items()]
    here = device_for(contenders[0].module, device)
    return _benched(contenders, places(*combined, str(here)), seconds)


def bench_sources(
    names: Sequence[str],
    source: Source,
    *,
    runtimes: Sequence[str] = (),
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    device: str = "auto",
    seconds: float = SECONDS,
    memory: bool = True,
    told: Told = lambda note: None,
) -> Bench:
    """``bench`` of networks by their names, run folders and exported files, each built as ``source`` says.

    Without ``runtimes``, they run on the first that can run all of them, which is eager where no file is among them.
    Their peak memory is measured as well.  ``told`` is called with what happens.
    """
    _require_sensible(runtimes, batches, threads)  # before networks are built, which may take a minute
    notes: list[str] = []
    sources = [source.model_copy(update={"name": name}) for name in names]
    contenders = [contender_of(one, notes.append) for one in sources]
    for contender, label in zip(contenders, labels(names), strict=True):
        contender.name = label
    chosen = list(runtimes) or [_common_runtime(contenders)]
    where = places(chosen, batches, threads, _device(device, chosen))
    built = {one.name: one_source for one, one_source in zip(contenders, sources, strict=True)}
    peak = (lambda one, place: peak_bytes(built[one.name], place)) if memory else None
    return _benched(contenders, where, seconds, notes, told, peak)


def _require_sensible(runtimes: Sequence[str], batches: Sequence[int], threads: Sequence[int]) -> None:
    """Raises ``RecipeError`` for a number below 1, or a runtime that is not here."""
    for name in runtimes:
        known.runtime(name)
    for what, numbers in {"batches": batches, "threads": threads}.items():
        if wrong := [number for number in numbers if not isinstance(number, int) or number < 1]:
            raise RecipeError(f"Networks are timed with {what} of 1 or more, not {wrong[0]}.")


def places(runtimes: Sequence[str], batches: Sequence[int], threads: Sequence[int], device: str) -> tuple[Place, ...]:
    """Every combination.  Raises ``RecipeError`` where a runtime does not run on the device."""
    for name in runtimes:
        known.runtime(name).require_device(torch.device(device))
    combined = product(runtimes, batches, threads)
    return tuple(Place(runtime=name, device=device, threads=n, batch=batch) for name, batch, n in combined)


def labels(names: Sequence[str]) -> list[str]:
    """The names, told apart where one stands there more than once: ``a``, ``a (2)``."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _benched(
    contenders: Sequence[Contender],
    where: Sequence[Place],
    seconds: float,
    notes: Sequence[str] = (),
    told: Told = lambda note: None,
    peak: Peak | None = None,
) -> Bench:
    _require_runnable(contenders, where)
    networks = [Benched(name=one.name, form=one.form, params=one.params, macs=one.macs) for one in contenders]
    results: list[Result] = []
    for place in where:
        told(f"Timing in {place}, batch {place.batch}")
        results += _results(contenders, place, seconds, peak)
    return Bench(
        networks=tuple(networks), results=tuple(results), notes=tuple(notes), environment=describe_environment()
    )


def _results(contenders: Sequence[Contender], place: Place, seconds: float, peak: Peak | None) -> Iterator[Result]:
    timings = _timings(contenders, place, seconds * len(contenders))
    found = speedups({one.name: [timings.ms[key] for key in _setups(one)] for one in contenders})
    for one in contenders:
        compared = found[one.name]
        yield Result(
            network=one.name,
            place=place,
            latency=_pooled(timings, one),
            speedup=compared.ratio,
            low=compared.low,
            high=compared.high,
            verdict="baseline" if one is contenders[0] else compared.verdict,
            peak_bytes=peak(one, place) if peak else None,
        )


def _timings(contenders: Sequence[Contender], place: Place, seconds: float) -> Timings:
    """Every set-up of every network, in turns: one of each, then the next of each."""
    # Neighbours in memory and in the caches of a runtime are then others, not set-ups of the same network.
    keys = [(index, one) for index in range(SETUPS) for one in contenders]
    sessions = {_setups(one)[index]: one.session(place) for index, one in keys}
    return timed(sessions, seconds=seconds, threads=place.threads, device=place.device, runtime=place.runtime)


def _setups(one: Contender) -> list[str]:
    """What the set-ups of a network are called among all of them."""
    return [f"{index} {one.name}" for index in range(SETUPS)]


def _pooled(timings: Timings, one: Contender) -> Latency:
    """The latency of a network, over all its set-ups."""
    times = list(chain.from_iterable(timings.ms[key] for key in _setups(one)))
    return dataclasses.replace(timings, ms={one.name: times}).latency(one.name)


def _require_runnable(contenders: Sequence[Contender], where: Sequence[Place]) -> None:
    """Refuse, before anything is timed, what cannot run somewhere.  Raises ``RecipeError``."""
    for one, place in product(contenders, where):
        if place.runtime not in one.runtimes:
            raise RecipeError(f"{one.name!r} runs on {' or '.join(one.runtimes)}, not on {place.runtime}.")


def _common_runtime(contenders: Sequence[Contender]) -> str:
    """The first runtime that runs them all.  Raises ``RecipeError`` where there is none."""
    for name in RUNTIMES:
        if all(name in one.runtimes for one in contenders):
            return name
    told = "; ".join(f"{one.name!r} runs on {' or '.join(one.runtimes)}" for one in contenders)
    raise RecipeError(f"No runtime runs all of these: {told}.")


def _device(name: str, runtimes: Sequence[str]) -> str:
    """The device of that name; ``auto`` is a GPU only where all the runtimes run on one."""
    on_cpu = name == "auto" and any(known.runtime(one).devices == ("cpu",) for one in runtimes)
    return str(device_for(nn.Identity(), "cpu" if on_cpu else pick_device(name)))


def _many(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | int) else list(value)
