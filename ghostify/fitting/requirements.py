"""What a network must be like to be fitted to: its recording says what it does, nothing is random, all is finite."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from ghostify.batches import Batch
from ghostify.errors import FitError
from ghostify.fitting.agenda.correspondence import Part
from ghostify.fitting.interpreter import Interpreter
from ghostify.fitting.judging import called, outputs
from ghostify.fitting.kinds.targets import Targets
from ghostify.fitting.networks import Networks
from ghostify.processes import present
from ghostify.running import ELSEWHERE, agree
from ghostify.tracing import Traced


def require_faithful(original: nn.Module, traced: Traced, batch: Batch) -> None:
    """Refuse a recording that another batch than the one it was made of shows to be wrong.

    A copy runs, for a network may remember its runs, and write into what it is given.
    """
    given = _repeatable(original, traced, batch)
    for one, other in zip(given, outputs(traced, original, batch), strict=False):
        if not agree(one, other, ELSEWHERE):
            raise FitError(
                f"{type(original).__name__} does on other images something else than its recording, so nothing can be "
                "fitted to it; use fit none."
            )


def _repeatable(original: nn.Module, traced: Traced, batch: Batch) -> list[Tensor]:
    """What a network gives each time.  Refuse one that draws random numbers in eval mode, for what it gives once cannot
    be fitted to."""
    given, again = (called(copy.deepcopy(original), batch) for _ in range(2))
    if all(agree(one, other, ELSEWHERE) for one, other in zip(given, again, strict=False)):
        return given
    node, where = _first_random(original, traced, batch), ""
    if node is not None:
        module = str(node.meta.get("module", ""))
        where = f" ({node.name} in {module!r})" if module else f" ({node.name})"
    raise FitError(
        f"{type(original).__name__} is random in eval mode, too: it gives something else each time it runs on the same "
        f"images{where}, so nothing can be fitted to it; make it draw nothing in eval mode, or use fit none."
    )


def _first_random(original: nn.Module, traced: Traced, batch: Batch) -> fx.Node | None:
    """The first node that gives another value in a second run; None where no tensor differs."""
    walks = [Interpreter(traced, original, [batch]) for _ in range(2)]
    for index, node in enumerate(walks[0].nodes):
        for walk in walks:
            walk.keep(node)
            walk.advance(index + 1)
        one, other = (walk.values[0].get(node) for walk in walks)
        if isinstance(one, Tensor) and isinstance(other, Tensor) and not agree(one, other, ELSEWHERE):
            return node
    return None


def require_finite(part: Part, targets: Targets, networks: Networks) -> None:
    """Refuse values that least squares can make nothing of, naming the part that reads or should give them."""
    gives = all(bool(torch.isfinite(sums).all()) for sums in targets.sums.values())
    reads = all(
        bool(torch.isfinite(networks.converted.values[block.batch][part.calls[block.call].inputs]).all())
        for block in targets.samples.blocks
    )
    not_given, not_read = present().total([not gives, not reads])
    if not_given or not_read:
        where = "of the original gives values" if not_given else "reads values"
        raise FitError(
            f"{part.name} {where} that are not finite (NaN or infinite) for these images, so it cannot be fitted; "
            "look at the weights before it, or use fit none."
        )
