"""What the errors of a recording have in common: each is one line and names the place."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.overrides import resolve_name

from ghostify.errors import TraceError
from ghostify.running import function_name, one_line
from ghostify.tracing.values import tensors_in

GIVEN_NOTHING = "was given nothing in the run on the example (no box was found, say), so what it costs is unknown"
"""Why what a detector did not come to is left alone, as the end of a sentence that begins with its name."""


def cannot_run(model: nn.Module, where: str, example: Any, problem: Exception) -> TraceError:
    """The error for a model that fails on an example by itself; ``where`` names a module of it, or is empty."""
    place = f"module {where!r}" if where else type(model).__name__
    why = f"{one_line(problem)}{_of_other_type(model, example)}"
    return TraceError(f"The model does not run on the example {_shapes_text(example)}; in {place}: {why}")


def _of_other_type(model: nn.Module, example: Any) -> str:
    """What is said where no number given is of the weights' type: torch's own words speak of Half and Float."""
    weights = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    numbers = {leaf.dtype for leaf in tensors_in(example) if leaf.is_floating_point()}
    if not numbers or len(weights) != 1 or weights & numbers:
        return ""
    wanted = str(weights.pop()).removeprefix("torch.")
    return f". Its weights are {wanted}: give an example of that type, as by --input 3,224,224:{wanted}."


def holds_original(what: str, original: str) -> str:
    """Why something that reaches a module of the user's from within a copy is refused."""
    return (
        f"{what} holds on to {original} as it was given, so a copy of the model would run the original; "
        "make it a method (types.MethodType) that finds its layers through self."
    )


def called(name: str, module: nn.Module) -> str:
    """A module by its qualified name, the root by its class."""
    return repr(name) if name else type(module).__name__


def module_text(node: fx.Node | None) -> str:
    """Where a node ran, and what it called; None is the one before the first."""
    if node is None:
        return "its first operation"
    what = str(node.target) if isinstance(node.target, str) else resolve_name(node.target) or function_name(node.target)
    return f"module {node.meta.get('module') or '(root)'!r} at {what}"


def _shapes_text(example: Any) -> str:
    return " and ".join(str(tuple(leaf.shape)) for leaf in tensors_in(example)) or "(no tensors)"
