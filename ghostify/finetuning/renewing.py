"""Statistics of batch norms counted anew: while weights move, running averages tell of weights that are gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ghostify.batches import call, move
from ghostify.measuring.accuracy import images_and_labels


@torch.no_grad()
def renew_norms(model: nn.Module, batches: Iterable[Any], place: torch.device) -> None:
    """Put the plain mean over ``batches`` into every batch norm of ``model`` that is in train mode; others stay.

    torch's ``update_bn`` does the same, but sets all of a network to train mode, what was frozen included.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    learning = {norm: norm.momentum for norm in norms if norm.training and norm.track_running_stats}
    if not learning:
        return
    for norm in learning:
        norm.reset_running_stats()
        norm.momentum = None  # which is a plain mean over all batches
    try:
        for batch in batches:
            images, _ = images_and_labels(batch)
            call(model, move(images, place))
    finally:
        for norm, momentum in learning.items():
            norm.momentum = momentum
