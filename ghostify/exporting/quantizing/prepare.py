"""A network made ready for int8, whichever backend quantises it."""

from __future__ import annotations

from torch import nn

from ghostify.exporting.quantizing.calibration import Calibration
from ghostify.exporting.quantizing.faint import without_faint_maps
from ghostify.exporting.quantizing.result import Kept, Quantized
from ghostify.exporting.quantizing.sensitivity import TOO_MUCH, errors_alone

_COMPARED = 16
"""Samples that the error of each layer is told by: it takes a pass over them for each layer."""


def prepared(network: nn.Module, calibration: Calibration) -> Quantized:
    """Change the weights of ``network`` in place so that few levels hold them, and tell which layers stay in float.

    It takes and gives tensors in a row.
    """
    faint = without_faint_maps(network, calibration.batches())
    errors = errors_alone(network, calibration.batches(_COMPARED))
    kept = tuple(Kept(layer=name, error=error) for name, error in errors.items() if error > TOO_MUCH)
    return Quantized(samples=len(calibration), layers=len(errors), kept=kept, faint=faint)
