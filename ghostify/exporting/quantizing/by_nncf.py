"""An OpenVINO model → the same in int8, by NNCF.

Scales are the extremes over all images.  NNCF's own choice is the mean of the extremes of each batch, which cuts off
much where batches are of one image: a ResNet20 then moves its outputs by 16 % where extremes move them by 4 %.  Biases
are corrected by what rounding changes in the mean of each map.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from typing import Any

from torch import Tensor

from ghostify.errors import RecipeError


def require_nncf() -> None:
    """Raises ``RecipeError`` when it is not installed."""
    if find_spec("nncf") is None:
        raise RecipeError("int8 for OpenVINO needs nncf: pip install 'ghostify[int8]'.")


def quantized(network: Any, batches: Sequence[tuple[Tensor, ...]], kept: Collection[str]) -> Any:
    """An ``openvino.Model`` in int8, but for the operations named ``kept``."""
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    extremes = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )
    with _silent():
        return nncf.quantize(
            network,
            nncf.Dataset(batches, _as_arrays),
            target_device=nncf.TargetDevice.CPU,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=list(kept), validate=False) if kept else None,
            advanced_parameters=extremes,
        )


def _as_arrays(batch: tuple[Tensor, ...]) -> list[Any]:
    return [tensor.numpy() for tensor in batch]


@contextmanager
def _silent() -> Iterator[None]:
    """Without NNCF's progress and advice, which it prints."""
    log = logging.getLogger("nncf")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        log.setLevel(before)
