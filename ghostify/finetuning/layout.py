"""How the maps of a network lie in memory while it trains: one channel behind the other, or all of a pixel together.

Eager PyTorch on a CPU trains most networks 1.1 to 1.4 times as fast with channels last (``benchmarks/layout.py``).
A network's code may view a map as if it lay in the order (N, c, H, W), though, so that is tried out on a copy before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ghostify.batches import Batch, call
from ghostify.finetuning.feeding import Feed
from ghostify.recipe import TrainSettings
from ghostify.running import REORDERED, agree, coarsest, quiet, random_states_kept, seed, training
from ghostify.tracing import private_copy, tensors_in

LAST = torch.channels_last


def with_layout(settings: TrainSettings, module: nn.Module, feed: Feed) -> TrainSettings:
    """The settings with the layout that was asked for; where nobody did, with channels last if that serves."""
    if settings.channels_last is not None:
        return settings
    # by the first process alone: shares of a batch differ, and all must train alike
    serves = feed.device.type == "cpu" and feed.processes.decided(lambda: _serves(module, feed))
    return settings.model_copy(update={"channels_last": serves})


@contextmanager
def laid_out(module: nn.Module, settings: TrainSettings) -> Iterator[None]:
    """The network's filters with their channels last in memory, where the settings say so; then as they were."""
    if not settings.channels_last:
        yield
        return
    filters = [parameter for parameter in module.parameters() if parameter.ndim == 4 and parameter.is_contiguous()]
    strides = [parameter.stride() for parameter in filters]
    module.to(memory_format=LAST)
    try:
        yield
    finally:
        for parameter, before in zip(filters, strides, strict=True):
            # of a 1x1 filter both layouts are contiguous, and by its strides torch chooses how sums are added up
            parameter.data = parameter.data.new_empty_strided(parameter.shape, before).copy_(parameter.data)


def _serves(module: nn.Module, feed: Feed) -> bool:
    """Whether the network is one of maps, and its code takes them in another order."""
    if not any(parameter.ndim == 4 for parameter in module.parameters()):
        return False
    with random_states_kept(feed.device):
        try:
            images = feed.example(2)  # norms need two samples in train mode
            is_maps = isinstance(images, Tensor) and images.ndim == 4
            return is_maps and _takes(module, images.to(feed.device))
        except Exception:  # whatever code says to maps of another order; what is wrong with the data, training tells
            return False


def _takes(module: nn.Module, images: Tensor) -> bool:
    """Whether a copy gives the same in eval mode and can be trained, whatever the order of its maps."""
    as_is, last = private_copy(module, share_parameters=False), private_copy(module, share_parameters=False)
    last.to(memory_format=LAST)
    wanted, found = _outputs(as_is, images), _outputs(last, images.contiguous(memory_format=LAST))
    precision = coarsest(wanted, torch.float32)
    if not all(agree(one, other, REORDERED, precision) for one, other in zip(wanted, found, strict=True)):
        return False
    with training(last):
        given = tensors_in(call(last, images.contiguous(memory_format=LAST)))
        sum(one.float().mean() for one in given if one.requires_grad).backward()  # type: ignore[union-attr]
    return True


def _outputs(module: nn.Module, images: Batch) -> list[Tensor]:
    with quiet(module):
        seed()
        return tensors_in(call(module, images))
