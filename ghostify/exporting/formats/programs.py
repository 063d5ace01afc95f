"""A network as a program of ``torch.export``, which most formats are written from."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from ghostify.errors import ExportError
from ghostify.exporting.portable import Portable

_OF_THE_MAKER = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")
"""What a program notes of the code it was made of: files on this machine, and classes that nobody else has."""


def program(network: Portable) -> ExportedProgram:
    """The network as one graph of torch's own operations.

    Raises ``ExportError`` where its code makes a constant of a size that is to stay open; and what torch raises where
    it cannot follow the code.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        try:
            made = torch.export.export(network.computing, network.arguments, dynamic_shapes=_dynamic_shapes(network))
        except Exception as problem:
            if network.dynamic and "specialized it to be a constant" in str(problem):
                raise ExportError(_wants_one_size(network)) from problem
            raise
    for node in made.graph.nodes:
        for key in _OF_THE_MAKER:
            node.meta.pop(key, None)
    return made


def _dynamic_shapes(network: Portable) -> Any:
    """The open sizes, one entry for each tensor of the one argument that holds all, and only where there are any."""
    if not network.dynamic:
        return None
    return (tuple(dict.fromkeys(sizes, Dim.DYNAMIC) for sizes in network.open_sizes),)


def _wants_one_size(network: Portable) -> str:
    what, instead = {
        "batch": ("the number of samples", "leave out --dynamic"),
        "size": ("the size of its images", "give --dynamic batch, or leave it out"),
    }[network.dynamic]
    return f"The network's code makes a constant of {what}, so the file cannot leave it open; {instead}."
