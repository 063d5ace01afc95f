"""A program of ``torch.export`` → the same with quantising operations, by torchao (PT2E) for XNNPACK.

The quantiser is XNNPACK's own: it knows which operations that runs in int8, and marks only those.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram


def quantized(program: ExportedProgram, batches: Sequence[tuple[Tensor, ...]], kept: Collection[str]) -> nn.Module:
    """A module of the program's graph in int8, to be exported again; layers whose weights are ``kept`` stay as they are."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def is_quantized(node: fx.Node) -> bool:
        return not any(read.target in kept for read in node.all_input_nodes if read.op == "get_attr")

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(is_quantized)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        observed = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            observed(*batch)
        return convert_pt2e(observed)
