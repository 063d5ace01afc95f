"""Which layers bear 8 bits: each alone is rounded, and the network's outputs are compared.

    error of a layer = ‖f_layer(x) − f(x)‖ / ‖f(x)‖       over all outputs, x some calibration images

where f_layer rounds what the layer reads, with one scale for the tensor, and its weights, with one for each output
channel.  Errors of layers that bear it are about 0.01 (CIFAR ResNets as they are and as C-Ghost and mixed plans make
them: 0.004 to 0.014, the classifier 0.034), so there is room between them and what is too much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ghostify.exporting.quantizing.layers import weighted_layers
from ghostify.running import quiet

TOO_MUCH = 0.1
"""A layer whose own error is larger stays in float."""
_LEVELS = 127


def errors_alone(network: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
    """By layer, how far the network's outputs move when it alone is in int8; a pass over the batches for each."""
    with quiet(network):
        wanted = _outputs(network, batches)
        scale = float(wanted.norm()) or 1.0
        found = {}
        for name, layer in weighted_layers(network):
            with _rounded(layer):
                found[name] = float((_outputs(network, batches) - wanted).norm()) / scale
    return found


def _outputs(network: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """All floats that the network gives, in a row."""
    given = [output for batch in batches for output in network(*batch) if output.is_floating_point()]
    return torch.cat([output.flatten().double() for output in given])


@contextmanager
def _rounded(layer: nn.Module) -> Iterator[None]:
    """The layer in int8 inside, and as it was afterwards."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    before = weight.data
    handle = layer.register_forward_pre_hook(lambda _, given: (_of_a_map(given[0]), *given[1:]))
    weight.data = _to_levels(before, _per_output(layer, before) / _LEVELS)
    try:
        yield
    finally:
        weight.data = before
        handle.remove()


def _per_output(layer: nn.Module, weight: Tensor) -> Tensor:
    """The largest magnitude of each output channel's weights; transposed convolutions have theirs second."""
    channel = 1 if getattr(layer, "transposed", False) else 0
    others = [place for place in range(weight.dim()) if place != channel]
    return weight.abs().amax(others, keepdim=True)


def _of_a_map(maps: Tensor) -> Tensor:
    """Rounded to 256 levels from its smallest number to its largest, 0 among them."""
    low, high = maps.amin().clamp(max=0), maps.amax().clamp(min=0)
    return _to_levels(maps, (high - low) / (2 * _LEVELS + 1))


def _to_levels(numbers: Tensor, scale: Tensor) -> Tensor:
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)  # of zeros alone
    return (numbers / scale).round() * scale
