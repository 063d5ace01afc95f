"""Batch norms whose statistics are those of what they now see, with the function as it was.

    z = γ (y − μ)/σ + β  =  γ' (y − μ')/σ' + β'      γ' = γ σ'/σ,   β' = β + γ (μ' − μ)/σ

with μ', σ' measured over the calibration images.  In training a norm uses its batch's own statistics; it then begins
where evaluation stands.  Renewing the statistics alone would lose the fit: least squares shrinks variances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ghostify.batches import Batch, call
from ghostify.ghosts.narrowing import holds_its_weights
from ghostify.processes import present
from ghostify.tracing import cloned

_AT_ONCE = 2**19
"""Numbers looked at together: as many as fit into a processor's cache, for each is read five times."""


class Statistics:
    """Mean and variance of each channel (dimension 1) of all that was seen, in float64."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = self.sum = torch.zeros((), dtype=torch.float64)

    def __call__(self, y: Tensor) -> None:
        """Take a batch in: (B, C, …)."""
        for part in y.split(max(1, _AT_ONCE // max(1, y[:1].numel()))):
            self._add(part.transpose(0, 1).flatten(1).double())

    def _add(self, y: Tensor) -> None:
        """Take numbers in: (C, N)."""
        count, mean = float(y.shape[1]), y.mean(1)
        # Chan's update, as in ``leastsquares.moments``: a large mean takes nothing from the variance.
        total, step = self.count + count, mean - self.mean
        self.sum = self.sum + (y - mean[:, None]).square().sum(1) + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        return self.sum / self.count

    def reduced(self) -> Statistics:
        """What all processes that compute together have seen, the same in each; itself where there is one."""
        processes = present()
        (channels,) = processes.largest([self.mean.numel() if self.count else 0])
        if processes.world == 1 or not channels:
            return self
        total = Statistics()
        # A process that saw nothing adds zeros.
        mean, squares = (one if self.count else one.new_zeros(channels) for one in (self.mean, self.sum))
        total.count = processes.total([self.count])[0]
        total.mean = processes.summed(self.count * mean) / total.count
        total.sum = processes.summed(squares + self.count * (mean - total.mean).square())
        return total


def renew_all(module: nn.Module, batches: Sequence[Batch], kept: Callable[[str], bool] = lambda name: False) -> None:
    """Renew every norm of a network in eval mode by what it sees of ``batches``, over all its calls, but those
    ``kept``, by name."""
    norms: list[nn.Module] = [
        norm
        for name, norm in module.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not kept(name)
    ]
    statistics = {norm: Statistics() for norm in norms}

    def watch(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        statistics[norm](inputs[0])

    hooks = [norm.register_forward_pre_hook(watch) for norm in norms]
    try:
        with torch.no_grad():
            for batch in batches:
                call(module, cloned(batch))  # a network may write into what it is given
    finally:
        for hook in hooks:
            hook.remove()
    for norm in norms:
        renew(norm, statistics[norm])


def renew(norm: nn.Module, statistics: Statistics) -> None:
    """Give ``norm`` the statistics seen, and the slope and offset with which its function in eval mode stays.

    Channels that do not vary keep theirs, and so do norms without a slope and offset of their own, which a hook
    may compute.
    """
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    mean, var, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
    if mean is None or var is None or weight is None or bias is None or not statistics.count:
        return
    if not holds_its_weights(norm):
        return
    # With σ' next to nothing, γ' would be so, too, and what training gave the channel would be lost.
    varies = statistics.variance > 1e-8 * var.double().clamp_min(norm.eps)
    slope = weight.detach().double() * (var.double() + norm.eps).rsqrt()
    with torch.no_grad():
        bias.copy_(torch.where(varies, bias.double() + slope * (statistics.mean - mean.double()), bias.double()))
        weight.copy_(torch.where(varies, slope * (statistics.variance + norm.eps).sqrt(), weight.double()))
        mean.copy_(torch.where(varies, statistics.mean, mean.double()))
        var.copy_(torch.where(varies, statistics.variance, var.double()))
