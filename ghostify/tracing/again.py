"""A network recorded again, after another run has vouched for it: without numbers where its code needs none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ghostify.errors import TraceError
from ghostify.tracing.copies import copied
from ghostify.tracing.requirements import require_runnable
from ghostify.tracing.trace import one_run, recorded_run
from ghostify.tracing.traced import Traced
from ghostify.tracing.values import Forms, call_arguments


def recorded_shapes(module: nn.Module, example: Any, *, like: Traced | None = None, training: bool = False) -> Traced:
    """One run of ``module`` on the meta device, which computes shapes alone; that is all that a scan asks for.

    It is not verified, and is one of ``module`` itself, not of a copy.  Layers that a run ``like`` this one has are not
    computed again.  Raises ``TraceError`` where the module does not run there, because its code needs numbers, say.
    """
    private, shapes = without_numbers(module), on_meta(example)
    require_runnable(private, call_arguments(shapes))
    known = _known(module, like) if like else {}
    return one_run(private, module, module, shapes, training=training, may_write=True, known=known)


def recorded_again(module: nn.Module, example: Any, *, training: bool = False, to_run: bool = False) -> Traced:
    """One run of ``module``, not verified, on the meta device, or else on the numbers of the example.

    Where the graph is ``to_run``, no device that the code asked for may be written into it.  Raises ``TraceError`` when
    the module does not run on the example.
    """
    # Shapes alone cost next to nothing, so they are tried first; code that needs numbers fails there.
    with suppress(TraceError):
        run = recorded_shapes(module, example, training=training)
        if runs_on_numbers(run) or not to_run:
            return run
    return recorded_run(module, example, training=training)


def _known(module: nn.Module, like: Traced) -> Forms:
    """What the layers gave that are in ``module`` as they were: of one class, with the same settings."""
    layers = dict(module.named_modules(remove_duplicate=False))
    same = {name for name, _ in like.forms if name in layers and _alike(layers[name], like.part(name))}
    return {call: form for call, form in like.forms.items() if call[0] in same}


def _alike(one: nn.Module, other: nn.Module) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


def without_numbers(module: nn.Module) -> nn.Module:
    """A copy on the meta device, with parameters and buffers of the same names and shapes."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        # What is in the memo is put wherever the copy holds it, so ties stay ties and no weight is copied.
        shape = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
    return copied(module, memo)


def on_meta(example: Any) -> Any:
    """An example of which nothing but the form is left."""
    return tree_map_only(Tensor, lambda x: x.to("meta"), example)


def runs_on_numbers(run: Traced) -> bool:
    """Whether the graph of a run may be run elsewhere than on the meta device, which no operation was given by name."""
    given = (leaf for node in run.graph.nodes for leaf in tree_leaves((node.args, dict(node.kwargs))))
    named = any(isinstance(leaf, torch.device) and leaf.type == "meta" for leaf in given)
    return not named and not any(constant.is_meta for constant in run.constants.values())
