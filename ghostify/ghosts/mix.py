"""The mix operation of a G-Ghost stage: intrinsic feature aggregation (IJCV paper, section 4.2, Eq. 11-12).

    Eq. 12   τ(Z) = W · Pooling(Z) + b      Z = [Y^c_2, …, Y^c_n],  (N, c', H, W) → (N, λc, 1, 1)
    Eq. 11   Y^g_n ← Y^g_n + τ(Z)           the stage's part, which adds τ to every pixel of its ghost maps

The equations have one fully connected layer.  RegNetX has two, each a 1x1 convolution with batch norm and without a
bias, and a ReLU between them (Tables 17 and 18 count so): ``layers=2``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghostify.errors import PlanError


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm for maps pooled to 1x1, which also trains on a batch of one.  (N, C, H, W) → (N, C, H, W)

    One value per channel has no variance, and ``nn.BatchNorm2d`` refuses it in training.  Here such a batch is
    normalised by the running statistics, as in eval mode, and leaves them as they are.  Anything larger, and eval
    mode, is ``nn.BatchNorm2d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _pooled_norm(
            input,
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )


@fx.wrap  # to symbolic tracing one call, for it asks how large its input is
def _pooled_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    batches: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """``F.batch_norm`` with ``nn.BatchNorm2d``'s bookkeeping, if there is more than one value per channel."""
    learns = mean is None or (training and x.numel() > x.shape[1])
    rate = 0.0 if momentum is None else momentum
    if learns and batches is not None:
        batches.add_(1)
        # Without a momentum the statistics are means over all batches so far, as those of ``nn.BatchNorm2d``.
        rate = 1.0 / float(batches) if momentum is None else momentum
    return F.batch_norm(x, mean, var, weight, bias, learns, rate, eps)


class Mix(nn.Module):
    """τ of Eq. 12 over a list of maps: pooled, concatenated, and mapped by one or two fully connected layers.

    [(N, c_1, H, W), (N, c_2, H, W), …] → (N, out_channels, 1, 1), where the c_i add up to ``in_channels``.  One layer
    is ``nn.Linear`` with a bias; two are convolutions, 1x1 → BN → ReLU → 1x1 → BN, without biases,
    ``out_channels`` wide in between.  Raises ``PlanError`` for another number of layers and for widths below one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: Literal[1, 2] = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if layers not in (1, 2):
            raise PlanError(f"mix layers = {layers}: the mix operation has 1 fully connected layer or 2.")
        if in_channels < 1 or out_channels < 1:
            raise PlanError(f"a mix operation of {in_channels} channels to {out_channels}: both must be 1 or more.")
        place = {"device": device, "dtype": dtype}
        self.in_channels, self.out_channels, self.layers = in_channels, out_channels, layers
        self.fc: nn.Module
        if layers == 1:
            self.fc = nn.Linear(in_channels, out_channels, **place)
        else:
            self.fc = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False, **place),
                PooledBatchNorm2d(out_channels, **place),
                nn.ReLU(),
                nn.Conv2d(out_channels, out_channels, 1, bias=False, **place),
                PooledBatchNorm2d(out_channels, **place),
            )

    def forward(self, maps: list[Tensor]) -> Tensor:
        pooled = torch.cat([F.adaptive_avg_pool2d(y, 1) for y in maps], 1)
        mixed: Tensor = self.fc(pooled.flatten(1))[:, :, None, None] if self.layers == 1 else self.fc(pooled)
        return mixed

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, layers={self.layers}"
