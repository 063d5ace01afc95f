"""One file beside its network on some samples, batch by batch: how far apart their outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ghostify.exporting.formats import Runner
from ghostify.exporting.samples import Samples
from ghostify.exporting.tolerances import TIE, TOLERANCES, allowed, judged_by_agreement
from ghostify.running import one_line

Outputs = Sequence[Tensor] | str
"""What a run gives; in words, why it gives nothing."""


class Compared(BaseModel):
    """A file beside its network at one batch size, ``optimized`` by its runtime or run as it is written.

    ``difference`` and ``agreement`` are those of ``tolerances.py``; scores, (N, k ≥ 2), have an agreement.
    ``problem`` says what keeps the two from being compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    optimized: bool
    batch: int
    difference: float
    agreement: float | None = None
    problem: str = ""
    size: str = ""
    """That of the images, where it is another one than that of the example."""

    def passes(self, precision: str, rounding: float = 0.0) -> bool:
        """Whether a file of this precision may do so, whose network is ``rounding`` from itself in 64-bit floats."""
        return not self.missed(precision, rounding)

    def missed(self, precision: str, rounding: float = 0.0) -> str:
        """What it misses of what is asked, as the end of a sentence; empty where it misses nothing."""
        asked, most = TOLERANCES[precision], allowed(precision, rounding)
        if self.problem:
            return self.problem
        if self.difference > most and not judged_by_agreement(precision, self.agreement is not None):
            return f"outputs differ by {self.difference:.2g} of the largest (at most {most:.2g} may be)"
        if self.agreement is not None and self.agreement < asked.agreement:
            return f"{self.agreement:.1%} of the samples get the same class (at least {asked.agreement:.0%} must)"
        return ""

    @property
    def circumstances(self) -> str:
        """At which batch size, and how it is run."""
        images = f" of {self.size}" if self.size else ""
        return f"at batch {self.batch}{images}, {'optimised by its runtime' if self.optimized else 'not optimised'}"


def compare(network: Runner, file: Mapping[bool, Runner], samples: Samples, batch: int) -> list[Compared]:
    """Run the network, and the file optimised (True) or not (False), on the samples in batches of one size.

    What any of them raises is a ``problem``, behind which that run of the file is not gone on with.
    """
    tallies = {optimized: _Tally() for optimized in file}
    for tensors, fresh in samples.batches(batch):
        wanted = _run(network, tensors, "the network itself does not run")
        for optimized, tally in tallies.items():
            if not tally.problem:
                found = _run(file[optimized], tensors, "it does not run")
                tally.add(wanted, found, fresh.stop - fresh.start)
    return [tally.compared(batch, optimized, samples.size) for optimized, tally in tallies.items()]


def scores_in(outputs: Sequence[Tensor]) -> Tensor | None:
    """The first output that may hold class scores, (N, k ≥ 2)."""
    return next((one for one in outputs if one.dim() == 2 and one.shape[1] > 1 and one.is_floating_point()), None)


@dataclass
class _Distance:
    """How far two outputs are apart at most, and how large the wanted one is at most, batch after batch."""

    furthest: float = 0.0
    largest: float = 0.0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        one, other = _numbers(wanted), _numbers(found)
        same = (one == other) | (one.isnan() & other.isnan())
        apart = (one - other).abs().masked_fill(same, 0.0).nan_to_num(torch.inf, torch.inf)
        self.furthest = max(self.furthest, _largest(apart))
        self.largest = max(self.largest, _largest(one.abs().nan_to_num(0.0, 0.0, 0.0)))

    @property
    def relative(self) -> float:
        if not self.furthest:
            return 0.0
        return self.furthest / self.largest if self.largest else torch.inf


@dataclass
class _Share:
    """How many whole numbers of two outputs differ: of classes and indices, it does not matter by how much."""

    differing: int = 0
    total: int = 0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        self.differing += int((wanted != found).sum())
        self.total += wanted.numel()

    @property
    def relative(self) -> float:
        return self.differing / self.total if self.total else 0.0


@dataclass
class _Tally:
    outputs: list[_Distance | _Share] = field(default_factory=list)
    agreeing: int = 0
    scored: int = 0
    problem: str = ""

    def add(self, wanted: Outputs, found: Outputs, fresh: int) -> None:
        """Count one batch; ``fresh`` of its samples were not counted before."""
        if isinstance(wanted, str) or isinstance(found, str):
            self.problem = next(one for one in (wanted, found) if isinstance(one, str))
            return
        self.problem = _unlike(wanted, found)
        if self.problem:
            return
        self.outputs = self.outputs or [_measure_for(one) for one in wanted]
        for distance, one, other in zip(self.outputs, wanted, found, strict=True):
            distance.add(one, other)
        scores, others = scores_in(wanted), scores_in(found)
        if scores is not None and others is not None:
            self.agreeing += int(_agreeing(scores, others)[:fresh].sum())
            self.scored += min(fresh, len(scores))

    def compared(self, batch: int, optimized: bool, size: str) -> Compared:
        difference = max((one.relative for one in self.outputs), default=0.0)
        return Compared(
            optimized=optimized,
            batch=batch,
            difference=torch.inf if self.problem else difference,
            agreement=self.agreeing / self.scored if self.scored and not self.problem else None,
            problem=self.problem,
            size=size,
        )


def _run(runner: Runner, tensors: tuple[Tensor, ...], failed: str) -> Outputs:
    try:
        return runner(*tensors)
    except Exception as error:  # of a runtime in C++, any
        return f"{failed}: {one_line(error).rstrip('.')}"


def _measure_for(output: Tensor) -> _Distance | _Share:
    return _Distance() if output.is_floating_point() or output.is_complex() else _Share()


def _unlike(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> str:
    """What makes two rows of outputs no rows of the same; empty where nothing does."""
    shapes, others = [tuple(one.shape) for one in wanted], [tuple(one.shape) for one in found]
    if shapes == others:
        return ""
    return f"it gives outputs of shape {_told(others)}, and the network of {_told(shapes)}"


def _agreeing(scores: Tensor, others: Tensor) -> Tensor:
    """By sample, whether the class that the file puts first is the network's first, or tied with it: (N,)."""
    wanted, found = _numbers(scores), _numbers(others)
    first = wanted.gather(1, found.argmax(1, keepdim=True)).squeeze(1)
    margin = TIE * wanted.abs().amax(1)
    both_finite = found.isfinite().all(1) == wanted.isfinite().all(1)
    return (first >= wanted.amax(1) - margin) & both_finite


def _numbers(tensor: Tensor) -> Tensor:
    plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return plain.detach().double()


def _largest(tensor: Tensor) -> float:
    return float(tensor.max()) if tensor.numel() else 0.0


def _told(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) or "()" for shape in shapes) or "none"
