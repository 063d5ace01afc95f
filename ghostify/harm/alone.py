"""The harm of what no value on the way stands for, such as a stage: that swap alone is made, fitted and run."""

from __future__ import annotations

from collections.abc import Sequence

from ghostify.batches import Batch, join
from ghostify.fitting.judging import called
from ghostify.fitting.transfer import fit_run
from ghostify.harm.outputs import Outputs
from ghostify.planning import Plan
from ghostify.recipe import FitSettings
from ghostify.rules import Swap
from ghostify.running import evaluating
from ghostify.tracing import Traced


def fitted_alone(traced: Traced, swap: Swap, seen: Sequence[Batch], held: Sequence[Batch]) -> Outputs:
    """What the network gives for ``held`` batches with one swap, and all behind it, fitted to the ``seen`` ones."""
    # Of one swap, as if written by hand: one that told costs would be taken for another network's.
    plan = Plan(network=type(traced.module).__name__, inputs=tuple(traced.input_shapes), swaps=(swap,))
    ghosted = fit_run(traced, plan, join(seen), FitSettings(how="data"))
    with evaluating(ghosted.module):
        return [called(ghosted.module, batch) for batch in held]
