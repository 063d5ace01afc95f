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
    """The program's graph in int8, to be exported again; layers whose weights are ``kept`` stay as they are."""

    def is_quantized(node: fx.Node) -> bool:
        return not any(read.target in kept for read in node.all_input_nodes if read.op == "get_attr")

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own deprecations, when they are imported, too
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
        quantizer = xnnpack.XNNPACKQuantizer().set_global(config).set_filter_function(is_quantized)
        observed = prepare_pt2e(program.module(), quantizer)
        for batch in batches:
            observed(*batch)
        return convert_pt2e(observed)
