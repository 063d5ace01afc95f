"""What is refused before it runs, for it would fail later in words that do not help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn.parameter import is_lazy

from ghostify.errors import TraceError
from ghostify.tracing.naming import is_leaf
from ghostify.tracing.values import tensors_in
from ghostify.tracing.wording import called, holds_original


def require_runnable(module: nn.Module, example: Any) -> None:
    """Refuse what would fail later in words that do not help."""
    if not isinstance(module, nn.Module):
        raise TraceError(f"The model is a {type(module).__name__}, not a torch.nn.Module.")
    if isinstance(module, torch.jit.ScriptModule):
        raise TraceError("The model is a ScriptModule, whose layers cannot be replaced; pass the Python module.")
    if isinstance(module, fx.GraphModule) and any(isinstance(n.target, OpOverload) for n in module.graph.nodes):
        raise TraceError("The model is an exported program, in which no layer is left; pass the Python module.")
    if "_orig_mod" in module._modules:
        raise TraceError("The model is compiled, which hides its layers; pass the module that torch.compile was given.")
    if is_leaf(module) or isinstance(module, (nn.Conv2d, nn.Linear)):
        raise TraceError(
            f"The model is a single {type(module).__name__}, which has no name to be replaced by; "
            "put it into an nn.Sequential."
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(f"{name} is lazy and has no shape yet; run the model once before it is traced.")
    inputs = tensors_in(example)
    if any(p.is_meta for p in module.parameters()) and inputs and not any(leaf.is_meta for leaf in inputs):
        raise TraceError("The model is on the meta device and the example is not; move both to one device.")


def require_own_forwards(module: nn.Module) -> None:
    """Refuse a forward put on an instance that holds on to a module: in a copy, it would still run the original."""
    parts = {part: name for name, part in module.named_modules()}
    for part, name in parts.items():
        for owner in _enclosed_modules(vars(part).get("forward")):
            if owner in parts:
                raise TraceError(holds_original(f"The forward of {called(name, part)}", called(parts[owner], owner)))


def _enclosed_modules(function: Any) -> Iterator[nn.Module]:
    """Modules in the closure of a function, or whose methods are there."""
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            held = cell.cell_contents
            owner = held if isinstance(held, nn.Module) else getattr(held, "__self__", None)
            if isinstance(owner, nn.Module):
                yield owner
