"""Whether a file gives what its network gives, in the runtime that will run it.

The network runs in eager PyTorch and in eval mode; the file once with all that its runtime does to make it fast, and
once without, where that can be switched off.  Where its batch size is open, batches of 1, 2 and 7 are run: one is what
many exporters take for a constant, and no kernel is tuned for seven.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from ghostify.exporting.comparing import Compared, compare, scores_in
from ghostify.exporting.diverging import Divergence
from ghostify.exporting.formats import Runner
from ghostify.exporting.samples import LEAST, Samples, larger
from ghostify.exporting.tolerances import MOST, allowed
from ghostify.running import quiet
from ghostify.tables import Table
from ghostify.tracing import private_copy

OPEN_BATCHES = (1, 2, 7)
"""The batch sizes that a file with an open one is run at."""
_ROUNDED = 8
"""Samples that a network is run on in 64-bit floats."""
_ENLARGED = 4
"""Samples that are compared at another height and width."""


class Accuracies(BaseModel):
    """The share of samples that network and file put into the class they are labelled with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: float
    file: float
    samples: int

    def __str__(self) -> str:
        return f"{self.file:.2%} of {self.samples} samples are right, of the network {self.network:.2%}"


class Parity(BaseModel):
    """A file beside its network, as a value.  Printing it shows a table; it ``passed`` or tells its ``reason``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: str
    samples: int
    source: str
    """What the samples are: images of somebody's data, or noise."""
    real: bool
    compared: tuple[Compared, ...]
    rounding: float = 0.0
    """How far the network is from itself in 64-bit floats, where that was asked because the file is farther off than
    most are.
    """
    accuracy: Accuracies | None = None
    first: Divergence | None = None
    """The first layer that gives something else, of a file that does not pass."""

    @property
    def passed(self) -> bool:
        return self.failed is None

    @property
    def worst(self) -> float:
        """The largest difference of all runs."""
        return max(run.difference for run in self.compared)

    @property
    def agreement(self) -> float | None:
        """The smallest of all runs; None of what gives no class scores."""
        return min((run.agreement for run in self.compared if run.agreement is not None), default=None)

    @property
    def reason(self) -> str:
        """Why it does not pass, as the end of a sentence; empty where it does."""
        failed = self.failed
        if failed is None:
            return ""
        where = f"; {self.first}" if self.first else ""
        return f"{failed.circumstances}, {failed.missed(self.precision, self.rounding)}{where}"

    @property
    def told(self) -> str:
        """How near it is, in one line."""
        if not self.passed:
            return self.reason
        classes = "" if self.agreement is None else f", {self.agreement:.1%} of the classes agree"
        return f"outputs differ by {self.worst:.1e} of the largest at most{classes} ({self.source})"

    @property
    def failed(self) -> Compared | None:
        """The first run that does not pass; of those that do, none."""
        return next((run for run in self.compared if not run.passes(self.precision, self.rounding)), None)

    def table(self) -> Table:
        """A line for each run."""
        title = f"The file beside the network, on {self.samples} samples ({self.source}), {self.precision}"
        table = Table(title, ["batch", "run", "difference", "agreement", "verdict"], left=_LEFT)
        table.rows = [_row(run, self.precision, self.rounding) for run in self.compared]
        table.note = "\n".join(str(line) for line in (self.accuracy, self._on_rounding, self.first) if line)
        return table

    @property
    def _on_rounding(self) -> str:
        most = allowed(self.precision, self.rounding)
        if most <= allowed(self.precision):
            return ""
        return (
            f"In 64-bit floats the network differs from itself by {self.rounding:.1e}, so the file may by {most:.1e}."
        )

    def __str__(self) -> str:
        return str(self.table())


def check(
    network: nn.Module,
    file: Mapping[bool, Runner],
    samples: Samples,
    *,
    precision: str = "fp32",
    batches: Sequence[int] = OPEN_BATCHES,
    open_size: bool = False,
    exact: Callable[[], nn.Module] | None = None,
) -> Parity:
    """Compare a file with its network, which takes and gives tensors in a row.

    ``file`` is the file in its runtime: optimised (True) and, where the runtime has such a switch, not (False).
    ``batches`` are the batch sizes that the file takes; ``open_size`` says that it takes images of any size, and a few
    larger ones are compared, too.  The first ``LEAST`` samples are compared; accuracy is told of all that have labels.
    ``exact`` makes the network in 64-bit floats, which is asked where the file misses: whether it is rounding that the
    network makes much of.  A copy of the network is run, in eval mode, because running may change a module.
    """
    network = private_copy(network, share_parameters=False)
    few = samples.first(LEAST)
    given = [(few, batch) for batch in batches]
    if open_size:
        given.append((larger(samples.first(_ENLARGED)), min(batches)))
    with quiet(network):
        runs = [run for some, batch in given for run in compare(network, file, some, batch)]
        runs_at_all = not any(run.problem for run in runs)
        accuracy = _accuracies(network, file[True], samples, max(batches)) if runs_at_all else None
    found = Parity(
        precision=precision_of(network, precision),
        samples=len(few),
        source=samples.source,
        real=samples.real,
        compared=tuple(runs),
        accuracy=accuracy,
    )
    if found.passed or exact is None or found.precision != "fp32" or found.worst > MOST:
        return found
    return found.model_copy(update={"rounding": _rounding(network, exact(), samples.first(_ROUNDED), min(batches))})


def _rounding(network: nn.Module, exact: nn.Module, samples: Samples, batch: int) -> float:
    """How far a network is from itself in 64-bit floats; 0 where its code takes none."""
    with quiet(network, exact):
        (found,) = compare(exact, {True: network}, samples, batch)
    return 0.0 if found.problem else found.difference


def precision_of(network: nn.Module, asked: str) -> str:
    """What a file computes in: as was asked, or in less where the network itself does."""
    dtypes = {parameter.dtype for parameter in network.parameters()}
    if asked == "int8":
        return asked
    if torch.bfloat16 in dtypes:
        return "bf16"
    return "fp16" if torch.float16 in dtypes else asked


def _accuracies(network: nn.Module, file: Runner, samples: Samples, batch: int) -> Accuracies | None:
    """How often both are right; None where nothing is labelled, or nothing gives class scores."""
    if samples.labels is None:
        return None
    right = {"network": 0, "file": 0}
    for tensors, fresh in samples.batches(batch):
        labels = samples.labels[fresh]
        for name, run in (("network", network), ("file", file)):
            scores = scores_in(run(*tensors))
            if scores is None:
                return None
            right[name] += int((scores.argmax(1)[: len(labels)] == labels).sum())
    return Accuracies(samples=len(samples), **{name: count / len(samples) for name, count in right.items()})


_LEFT = frozenset({"run", "verdict"})


def _row(run: Compared, precision: str, rounding: float) -> list[str]:
    return [
        f"{run.batch} of {run.size}" if run.size else str(run.batch),
        "optimised" if run.optimized else "as written",
        f"{run.difference:.1e}",
        "-" if run.agreement is None else f"{run.agreement:.1%}",
        run.missed(precision, rounding) or "passes",
    ]
