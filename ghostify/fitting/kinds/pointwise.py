"""Fitting a C-Ghost module whose ghosts a full pointwise convolution makes by itself: a layer of m dimensions.

    y ≈ W u + b       W = A V, of rank m       V: the primary filters, A: the identity in their rows and P in the others

Any m maps that span the same space serve as well, so W is what the primary filters of any module with such a
convolution are solved by (``ghosts.PrimaryFit``), and P, which is found with it, makes the ghosts.  All of it comes of
the moments of what the layer reads, and no map is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghostify.fitting.kinds.ghosts import PrimaryFit, solved_for
from ghostify.fitting.kinds.least_squares import put
from ghostify.ghosts import CGhost
from ghostify.ghosts.narrowing import Conv


def is_mixed_alone(ghost: CGhost) -> bool:
    """Whether a full pointwise convolution, and nothing else, makes the ghosts of intrinsic maps that can be set."""
    return isinstance(ghost.pointwise, Conv) and not len(ghost.cheap) and solved_for(ghost.primary)


class PointwiseFit(PrimaryFit):
    """One such module, its inputs and its targets, over all its calls."""

    def write(self, weight: Tensor, biases: Sequence[Tensor] | None) -> None:
        put(self.primary, self.basis.filters(weight[:, self.intrinsic], self.intrinsic))
        pointwise = self.ghost.pointwise
        assert isinstance(pointwise, Conv)
        with torch.no_grad():
            pointwise.weight.copy_(self.mix.reshape(pointwise.weight.shape))
        if biases is None:
            return
        if pointwise.bias is None:
            self.intercepts.put([bias.flatten() for bias in biases])
            self.targets.refresh()
            return
        own, others = biases[0][0, self.intrinsic], biases[0][0, self.ghosts]
        self.intercepts.put([own])
        with torch.no_grad():
            pointwise.bias.copy_(others - self.mix @ own)  # ghosts are made of maps that have theirs
