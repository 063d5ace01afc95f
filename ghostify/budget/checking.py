"""What a network gives for images held out, beside what the original gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ghostify.batches import Batch, count, move
from ghostify.budget.agreeing import Curve
from ghostify.fitting.interpreter import batched
from ghostify.fitting.judging import called
from ghostify.harm.outputs import Judge
from ghostify.measuring.borrowing import on_device
from ghostify.running import evaluating
from ghostify.scanning import Scan


class Seen(NamedTuple):
    """What became of a network's outputs."""

    harm: float
    agreement: float | None
    """The share of images with the original's answer; None of what gives no class scores."""

    @property
    def kept(self) -> float:
        """The share that is kept: of answers, or where there are none of the outputs' variance."""
        return max(0.0, 1 - self.harm) if self.agreement is None else self.agreement


class Witness:
    """The original's outputs on images held out."""

    def __init__(self, model: nn.Module, scan: Scan, images: Batch, device: torch.device) -> None:
        self.device = device
        self.batches: Sequence[Batch] = [move(batch, device) for batch in batched(images)]
        self.images = sum(map(count, self.batches))
        self.wanted = self._outputs(model)
        self.judge = Judge(self.wanted, any(site.role == "classifier" for site in scan.sites))

    @property
    def curve(self) -> Curve:
        """What is kept, by harm: of answers; where there are none, of the outputs' variance, what is not missed."""
        return Curve(np.array([0.0, 1.0]), np.array([1.0, 0.0])) if self.scores is None else Curve.of(self.scores)

    @property
    def scores(self) -> Tensor | None:
        """The original's class scores (N, k); None of what gives none."""
        if self.judge.unit != "KL":
            return None
        return torch.cat([given[0] for given in self.wanted])

    def saw(self, module: nn.Module) -> Seen:
        """What a network does to the outputs."""
        found = self._outputs(module)
        pairs = zip(found, self.wanted, strict=True)
        if self.scores is None:
            return Seen(self.judge.harm(found), None)
        same = sum(int((one[0].argmax(1) == other[0].argmax(1)).sum()) for one, other in pairs)
        return Seen(self.judge.harm(found), same / self.images)

    def _outputs(self, module: nn.Module) -> list[list[Tensor]]:
        here = on_device(module, self.device)
        with evaluating(here), torch.no_grad():
            return [[output.cpu() for output in called(here, batch)] for batch in self.batches]
