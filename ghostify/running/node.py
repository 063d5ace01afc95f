"""Running one node of a recorded graph."""

from __future__ import annotations

from typing import Any

from torch import fx

from ghostify.running.ambient import as_called
from ghostify.running.operations import Layers
from ghostify.running.regions import within_regions


def run_node(
    layers: Layers, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], differentiated: bool = False
) -> Any:
    """What a ``call_...`` node gives for these arguments, with autocast and gradients as they were where it ran.

    Where it is ``differentiated``, gradients are on.
    """
    with within_regions(node, differentiated), as_called():
        if node.op == "call_module":
            return layers.leaf(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        return function(*args, **kwargs)
