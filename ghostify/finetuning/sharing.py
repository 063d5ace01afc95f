"""What processes that train one network tell one another after each batch: their gradients, and statistics of norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghostify.processes import Processes


@torch.no_grad()
def share_gradients(model: nn.Module, processes: Processes, own: int, samples: int) -> None:
    """Add up the gradients that the processes found, each by its ``own`` part of all ``samples`` of a batch.

    So are the running statistics of batch norms that learn; other buffers become those of the first process.
    """
    if processes.world == 1:
        return
    weight, first = own / samples, float(processes.first)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=processes.device)
    mine = [torch.zeros_like(one) if one.grad is None else one.grad * weight for one in trained]
    running, others = _statistics(model), _other_buffers(model)
    sent = [used, *mine, *(buffer * weight for buffer in running), *(buffer * first for buffer in others)]
    used, *sums = _summed(sent, processes)
    for parameter, gradient, count in zip(trained, sums, used.tolist(), strict=False):
        # what had no part in any process has no gradient, as in one process: else it would decay
        parameter.grad = gradient if count else None
    for buffer, value in zip([*running, *others], sums[len(trained) :], strict=True):
        buffer.copy_(value)
    if samples < processes.world:
        _count_as_first(model, processes)


@torch.no_grad()
def join_statistics(model: nn.Module, processes: Processes) -> None:
    """Give batch norms in train mode the mean over all batches that the processes have counted since the last reset."""
    learning: list[Any] = [norm for norm in _learning_norms(model) if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in learning if norm.num_batches_tracked is not None]
    if processes.world == 1 or not norms:
        return
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    sums = [
        torch.stack([norm.running_mean, norm.running_var]) * count for norm, count in zip(norms, counts, strict=True)
    ]
    totals = _summed([*counts, *sums], processes)
    for norm, count, total in zip(norms, totals, totals[len(norms) :], strict=False):
        if count:  # one that nobody ran is as after a reset
            norm.running_mean.copy_(total[0] / count)
            norm.running_var.copy_(total[1] / count)
            norm.num_batches_tracked.copy_(count)


def _summed(tensors: Sequence[Tensor], processes: Processes) -> list[Tensor]:
    """The sums of tensors over all processes, sent as one tensor for each dtype."""
    sums: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = processes.summed(torch.cat([tensors[place].reshape(-1) for place in places]))
        parts = flat.split([tensors[place].numel() for place in places])
        sums |= {place: part.view_as(tensors[place]) for place, part in zip(places, parts, strict=True)}
    return [sums[place] for place in range(len(tensors))]


def _statistics(model: nn.Module) -> list[Tensor]:
    """The means and variances that batch norms in train mode keep."""
    kept = [(norm.running_mean, norm.running_var) for norm in _learning_norms(model)]
    return [tensor for pair in kept for tensor in pair if tensor is not None]


def _learning_norms(model: nn.Module) -> list[Any]:
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    return [norm for norm in norms if norm.training]


def _other_buffers(model: nn.Module) -> list[Tensor]:
    known = {id(tensor) for tensor in _statistics(model)}
    return [buffer for buffer in model.buffers() if buffer.is_floating_point() and id(buffer) not in known]


def _count_as_first(model: nn.Module, processes: Processes) -> None:
    """Whole numbers, as of batches counted, of the first process: a share was empty, and not counted."""
    counts = [buffer for buffer in model.buffers() if not buffer.is_floating_point()]
    for buffer, value in zip(counts, processes.same([buffer.cpu() for buffer in counts]), strict=True):
        buffer.copy_(value)
