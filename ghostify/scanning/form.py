"""The form of what a network was scanned on, and inputs made in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ghostify.scanning.result import Scan
from ghostify.scanning.whole import forms
from ghostify.tracing import tensors_of_call


@dataclass(frozen=True)
class Form:
    """The shapes of the tensors in an example, and, where it is a tensor, or a tuple or dict of some, their types."""

    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    names: tuple[str, ...]

    @staticmethod
    def of_scan(scan: Scan) -> Form:
        """The form of what a network was scanned on."""
        return Form(scan.inputs, scan.kinds, scan.names)

    @staticmethod
    def of_example(example: Any) -> Form:
        """The form of an input."""
        return Form(tuple(tuple(tensor.shape) for tensor in tensors_of_call(example)), *forms(example))


def example_for(module: nn.Module, form: Form, random: bool = False) -> Any:
    """An input of a form, in the module's own precision: zeros, or ``random`` numbers.

    Of whole numbers, ones, which are lengths and places, too.
    """
    floats = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    kinds = [getattr(torch, kind) for kind in form.kinds] or [floats] * len(form.shapes)
    tensors = []
    for shape, kind in zip(form.shapes, kinds, strict=True):
        if kind.is_floating_point:
            tensors.append((torch.randn(shape) if random else torch.zeros(shape)).to(floats))
        else:
            tensors.append(torch.ones(shape, dtype=kind))
    return dict(zip(form.names, tensors, strict=True)) if form.names else tuple(tensors)
